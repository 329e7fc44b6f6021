"""Look at the nodes of a job before a run starts on them, and name the ones that are not as the others.

One process a node, started by slurm/train.sbatch:

    python -m slurm.preflight --node NAME --rank K --nodes NAME,NAME --meet HOST:PORT --folder runs

All nodes have to come, agree on the time and on the versions of what they run, be able to write to the folder and to
compute on each of their GPUs, and pass messages as fast as the others. Nodes that fail are written into a file, for the
job to be started again without them.
"""

import argparse
import json
import logging
import platform
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median

import torch
import torch.distributed as dist

_PACKAGES = ("torch", "deepspeed", "megatron-core", "numpy")
_CLOCKS_S = 5.0
"""Clocks may be so far apart: rows and rendezvous carry times, nothing is ordered by them."""
_SLOW = 0.25
"""Of the median pair, what a node must reach with at least one of its neighbours."""
_MESSAGE_BYTES = {"cpu": 32 << 20, "cuda": 256 << 20}
_ROUNDS = 3
_Move = tuple[Callable[[torch.Tensor, int], dist.Work | None], torch.Tensor, int]


@dataclass(kw_only=True)
class NodeFacts:
    """What a node says of itself."""

    node: str
    versions: dict[str, str] = field(default_factory=dict)
    """Which all nodes must share."""
    problems: list[str] = field(default_factory=list)
    clock: float = 0.0
    """Seconds since 1970, at a moment that is the same for all."""
    gb_s: list[float] = field(default_factory=list)
    """What got through to each neighbour; 0 where nothing did."""


def look_around(node: str, folder: Path) -> NodeFacts:
    """What one node can find out alone."""
    facts = NodeFacts(node=node, versions={"python": platform.python_version(), "gpus": str(torch.cuda.device_count())})
    for name in _PACKAGES:
        try:
            facts.versions[name] = version(name)
        except PackageNotFoundError:
            facts.versions[name] = "none"
    facts.versions |= {"cuda": str(torch.version.cuda), **_drivers()}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".preflight-{node}"
        probe.write_bytes(bytes(1 << 20))
        probe.unlink()
    except OSError as error:
        facts.problems.append(f"cannot write to {folder} ({error.strerror})")
    for index in range(torch.cuda.device_count()):
        try:
            ones = torch.ones(1024, 1024, device=f"cuda:{index}")
            if float((ones @ ones).sum()) != 1024**3:
                facts.problems.append(f"GPU {index} computes wrong sums")
        except RuntimeError as error:
            facts.problems.append(f"GPU {index} does not compute ({str(error).splitlines()[0]})")
    return facts


def _drivers() -> dict[str, str]:
    """Driver and kinds of the GPUs, where there are any."""
    if shutil.which("nvidia-smi") is None:
        return {}
    query = ("nvidia-smi", "--query-gpu=driver_version,name", "--format=csv,noheader")
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=60, check=False)
    except subprocess.TimeoutExpired:
        return {"driver": "nvidia-smi does not answer"}
    lines = Counter(done.stdout.splitlines())
    return {"driver": "; ".join(f"{count} x {line}" for line, count in sorted(lines.items())) or "nvidia-smi failed"}


def meet(store: dist.Store, facts: NodeFacts, nodes: Sequence[str], timeout: timedelta) -> list[str]:
    """Wait for all nodes; those that did not come. Sets the clock of those that did."""
    store.set(f"here/{facts.node}", "")
    try:
        store.wait([f"here/{node}" for node in nodes], timeout)
    except dist.DistStoreError:
        return [node for node in nodes if not store.check([f"here/{node}"])]
    store.add("ready", 1)
    while store.add("ready", 0) < len(nodes):
        time.sleep(0.005)
    facts.clock = time.time()
    return []


def measure_pairs(nodes: Sequence[str], rank: int, timeout: timedelta) -> list[float]:
    """GB/s that this node exchanges with each neighbour in the ring of nodes; all nodes go by one order of pairs."""
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    message = torch.zeros(_MESSAGE_BYTES[device.type], dtype=torch.uint8, device=device)
    answer, rates = torch.empty_like(message), []
    for first, second in neighbours(len(nodes)):
        if rank not in (first, second):
            continue
        sends = (dist.isend, message, second if rank == first else first)
        receives = (dist.irecv, answer, second if rank == first else first)
        try:
            rates.append(_exchange((sends, receives) if rank == first else (receives, sends), timeout))
        except RuntimeError as error:
            logging.error("preflight: %s and %s: %s", nodes[first], nodes[second], str(error).splitlines()[0])
            rates.append(0.0)
    return rates


def _exchange(moves: Sequence[_Move], timeout: timedelta) -> float:
    """GB/s of messages there and back, one after the other: NCCL would wait for ever if both nodes sent first."""
    for number in range(_ROUNDS + 1):
        if number == 1:  # the first one connects
            start = time.perf_counter()
        for move, tensor, other in moves:
            work = move(tensor, other)
            assert work is not None
            work.wait(timeout)
            tensor[:1].item()  # a GPU is done only now
    return _ROUNDS * sum(tensor.numel() for _, tensor, _ in moves) / (time.perf_counter() - start) / 1e9


def neighbours(count: int) -> Iterator[tuple[int, int]]:
    """Pairs of the ring 0, 1, ..., count - 1, in an order in which most of them go on together."""
    pairs = sorted({tuple(sorted((one, (one + 1) % count))) for one in range(count) if count > 1})
    for parity in (0, 1):
        yield from ((first, second) for first, second in pairs if first % 2 == parity)


def judge(told: Sequence[NodeFacts], *, min_gb_s: float) -> dict[str, list[str]]:
    """Bad nodes, each with what is wrong with it. What most nodes have is right."""
    bad: dict[str, list[str]] = {facts.node: list(facts.problems) for facts in told}
    for name in sorted({name for facts in told for name in facts.versions}):
        usual = Counter(facts.versions.get(name, "none") for facts in told).most_common(1)[0][0]
        for facts in told:
            if (has := facts.versions.get(name, "none")) != usual:
                bad[facts.node].append(f"has {name} {has}, the others {usual}")
    now = median(facts.clock for facts in told)
    rates = [rate for facts in told for rate in facts.gb_s]
    least = max(min_gb_s, _SLOW * median(rates)) if rates else 0.0
    for facts in told:
        if abs(facts.clock - now) > _CLOCKS_S:
            bad[facts.node].append(f"has a clock that is {facts.clock - now:+.1f} s off")
        if facts.gb_s and max(facts.gb_s) <= least:
            bad[facts.node].append(f"passes {max(facts.gb_s):.2f} GB/s at most, and more than {least:.2f} are wanted")
    return {node: problems for node, problems in bad.items() if problems}


def run(given: argparse.Namespace) -> int:
    """0 where all is well; 1 where nodes are bad, having said which on the first node."""
    nodes, speaks = given.nodes.split(","), given.rank == 0
    # The first node judges, and is the first to lose patience: srun ends all when one ends badly.
    timeout = timedelta(seconds=given.timeout_s * (1.0 if speaks else 1.5))
    facts = look_around(given.node, given.folder)
    host, _, port = given.meet.rpartition(":")
    try:
        store = dist.TCPStore(host, int(port), is_master=speaks, timeout=timeout, wait_for_workers=False)
    except dist.DistError as error:
        raise ValueError(f"node {given.node} does not reach the first node at {given.meet}") from error
    if absent := meet(store, facts, nodes, timeout):
        bad = {node: [f"did not come to {given.meet} in {given.timeout_s:g} s"] for node in absent}
        return _verdict(bad, given) if speaks else 0
    if len(nodes) > 1:
        backend = "nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(backend, store=store, rank=given.rank, world_size=len(nodes), timeout=timeout)
        facts.gb_s = measure_pairs(nodes, given.rank, timeout)
    store.set(f"facts/{given.rank}", json.dumps(asdict(facts)))
    store.wait([f"facts/{rank}" for rank in range(len(nodes))], timeout)
    told = [NodeFacts(**json.loads(store.get(f"facts/{rank}"))) for rank in range(len(nodes))]
    store.add("done", 1)
    while speaks and store.add("done", 0) < len(nodes):  # the store is on this node
        time.sleep(0.005)
    bad = judge(told, min_gb_s=given.min_bandwidth_gb_s)
    if speaks and not bad:
        spread = max(one.clock for one in told) - min(one.clock for one in told)
        rates = [rate for one in told for rate in one.gb_s]
        slowest = f", {min(rates):.2f} GB/s between the slowest pair" if rates else ""
        logging.info("preflight: %d nodes alike, clocks within %.2f s%s", len(told), spread, slowest)
    # One that ends badly would have the first one killed before it has written its verdict.
    return _verdict(bad, given) if speaks else 0


def _verdict(bad: dict[str, list[str]], given: argparse.Namespace) -> int:
    for node, problems in bad.items():
        logging.error("preflight: node %s %s", node, "; ".join(problems))
    if bad and given.bad_nodes is not None:
        given.bad_nodes.write_text(",".join(bad), encoding="utf-8")
    return int(bool(bad))


def main(words: Sequence[str] | None = None) -> int:
    """Parse arguments and look."""
    assert __doc__ is not None
    parser = argparse.ArgumentParser(prog="python -m slurm.preflight", description=__doc__.split("\n")[0])
    parser.add_argument("--node", required=True, help="name of this node")
    parser.add_argument("--rank", required=True, type=int, help="its number; the first is 0")
    parser.add_argument("--nodes", required=True, help="names of all, with commas")
    parser.add_argument("--meet", required=True, help="HOST:PORT of the first")
    parser.add_argument("--folder", type=Path, default=Path("runs"), help="where runs write")
    parser.add_argument("--bad-nodes", type=Path, help="file that gets the names of bad nodes")
    parser.add_argument("--min-bandwidth-gb-s", type=float, default=0.0, help="between two nodes")
    parser.add_argument("--timeout-s", type=float, default=180.0, help="for each wait")
    given = parser.parse_args(words)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        return run(given)
    except (ValueError, OSError, dist.DistError) as error:
        logging.error("error: %s", error)
        return 2


if __name__ == "__main__":
    sys.exit(main())
