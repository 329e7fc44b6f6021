"""What is told and kept of a collective that not every rank came to.

Under Gloo the wait ends with an error in Python, which becomes one sentence here and a file beside it. Under NCCL the
watchdog of torch ends the process by itself, after it has written what the flight recorder holds (`environment.py`).
"""

import json
import re
import socket
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import torch.distributed as dist
from torch._C._distributed_c10d import _dump_fr_trace_json  # type: ignore[attr-defined]
from torch.distributed import distributed_c10d

from parallel.runtime import Grid

MESSAGES = "p2p_communication.py"
"""Megatron-core's file of messages between stages, which Gloo does not record."""


@contextmanager
def hangs_told(grid: Grid, where: Callable[[], str]) -> Iterator[None]:
    """Turn a failed collective into one sentence; `where` says how far this rank is, such as "after step 12".

    Raises:
        TimeoutError: other ranks did not come in time.
        ConnectionError: a rank is gone.
    """
    try:
        yield
    except RuntimeError as error:
        if not _is_of_a_collective(error):
            raise
        note = _note(grid, where(), error)
        text = str(error).splitlines()[0]
        who, what = f"rank {grid.rank}", f"{where()}, in {note['waiting_in']}"
        if "timed out" in text.lower() or "timeout" in text.lower():
            raise TimeoutError(
                f"{who} waited {_limit(grid, text)} for other ranks {what}; {_kept(grid, note)}, and a rank without "
                "such a file is one that never came: see what it did last (docs/slurm.md)"
            ) from error
        why = text.split("] ", 1)[-1].split(". ")[0]
        raise ConnectionError(
            f"{who} lost another rank {what} ({why}); what that one said last tells the cause, and {_kept(grid, note)} "
            "(docs/slurm.md)"
        ) from error


def _is_of_a_collective(error: RuntimeError) -> bool:
    return isinstance(error, dist.DistError) or "/gloo/" in str(error)


def _limit(grid: Grid, text: str) -> str:
    """`5 s (parallel.timeout_s)`, as the error says where it does."""
    names = {getattr(grid.dims, name): name for name in ("start_timeout_s", "timeout_s")}
    told = re.search(r"waiting (\d+)ms", text)
    seconds = int(told[1]) / 1000 if told else getattr(grid.dims, grid.limit)
    return f"{seconds:g} s (parallel.{names.get(seconds, grid.limit)})"


def _note(grid: Grid, where: str, error: RuntimeError) -> dict[str, Any]:
    """All that this rank knows: where it stood, what it waited in, and its last collectives."""
    groups: dict[str, Any] = {
        str(name): {"what": group.group_desc, "ranks": dist.get_process_group_ranks(group)}
        for group, name in distributed_c10d._world.pg_names.items()
    }
    entries = json.loads(_dump_fr_trace_json()).get("entries", [])  # it has none while there are none
    return {
        "rank": grid.rank,
        "host": socket.gethostname(),
        "time": time.strftime("%Y-%m-%d %H:%M:%S"),
        "where": where,
        "waiting_in": _waiting_in(entries, groups, error.__traceback__),
        "error": traceback.format_exception(error),
        "groups": groups,
        "recorded": entries,
    }


def _waiting_in(entries: list[dict[str, Any]], groups: dict[str, Any], trace: TracebackType | None) -> str:
    """`all_reduce number 12 of DATA_PARALLEL_GROUP [0, 1]`; the number counts the collectives of that group."""
    if MESSAGES in "".join(frame.filename for frame in traceback.extract_tb(trace)):
        return "a message between pipeline stages"
    open_ones = [entry for entry in entries if not entry["retired"] and entry["state"] != "completed"]
    if not entries:
        return "its first collective"
    last = (open_ones or entries[-1:])[0]
    operation = last["profiling_name"].split(":")[-1]
    name, what = last["process_group"]
    ranks = f" {groups[name]['ranks']}" if name in groups else ""
    return f"{operation} number {last['collective_seq_id']} of {what}{ranks}"


def _kept(grid: Grid, note: dict[str, Any]) -> str:
    if grid.hang_folder is None:
        return "nothing more is kept"
    path = grid.hang_folder / f"waiting_{grid.rank}.json"
    try:
        _write(path, note)
    except OSError as error:
        return f"what else it knew could not be written to {path} ({error.strerror})"
    return f"what it knew is in {path}"


def _write(path: Path, note: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(note, indent=1), encoding="utf-8")
