"""torchrun, quietly: a line for what ended a run badly, and the exit code of its first rank to fail.

    python -m parallel.torchrun --standalone --nproc-per-node 4 -m trainer.train experiment=demo

The words are torchrun's. Its own exit code is 1 whatever happened, under a traceback of some thirty lines.
"""

import contextlib
import logging
import os
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType

from torch.distributed import DistError
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.elastic.rendezvous import RendezvousError
from torch.distributed.run import parse_args, run

_PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1)


def main(words: Sequence[str] | None = None) -> int:
    """Start ranks and wait for them; 128 + n where signal n killed the first to fail."""
    logging.disable(logging.WARNING)
    # Is told below, in our words.
    logging.getLogger("torch.distributed.elastic.multiprocessing.api").addFilter(
        lambda record: not record.msg.startswith("failed (exitcode")
    )
    given = parse_args(words)
    # Those that torchrun handles end it by an exception, and what the ranks end with then is lost.
    given.signals_to_handle = "SIGUSR2"
    for number in _PASSED_ON:
        if signal.getsignal(number) is not signal.SIG_IGN:  # the ranks ignore it too, until they know better
            signal.signal(number, _pass_on)
    try:
        run(given)
    except ChildFailedError as error:
        return _tell(error)
    except (RendezvousError, DistError) as error:
        why = str(error.__cause__ or error).split("\n")[0]
        print(f"error: {socket.gethostname()} did not meet the other nodes ({why})", file=sys.stderr)
        return 1
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _pass_on(number: int, _frame: FrameType | None) -> None:
    """To the ranks, whose ends are waited for; while there are none, this process ends."""
    ranks = Path(f"/proc/self/task/{os.getpid()}/children").read_text(encoding="ascii").split()
    if not ranks:
        sys.exit(128 + number)
    for rank in ranks:
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(rank), number)


def _tell(error: ChildFailedError) -> int:
    """A line for each way in which ranks ended; those that were ended because others had failed count nothing."""
    _, first = error.get_first_failure()
    for code, ranks in _by_exit_code(error.failures).items():
        if code == first.exitcode or code != -signal.SIGTERM:
            how = f"exit code {code}" if code > 0 else f"killed by {signal.Signals(-code).name}"
            who = f"rank{'s' * (len(ranks) > 1)} {', '.join(map(str, ranks))}"
            print(f"{who} on {socket.gethostname()}: {how}", file=sys.stderr)
    return first.exitcode if first.exitcode > 0 else 128 - first.exitcode


def _by_exit_code(failures: Mapping[int, ProcessFailure]) -> dict[int, list[int]]:
    found: dict[int, list[int]] = {}
    for rank, failure in sorted(failures.items()):
        found.setdefault(failure.exitcode, []).append(rank)
    return found


if __name__ == "__main__":
    sys.exit(main())
