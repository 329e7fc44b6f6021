"""Tables of the reading part of the data benchmark: each loader in a process of its own, taking turns."""

import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.shelf import DEMO, WAN, LatentSet, count_values, stored_bytes, write

PEERS = Path(".venv-peers/bin/python")
OURS, STORED, RAW = "Tessera", "Tessera as stored", "read()"
CONTENDERS: dict[str, list[str]] = {
    RAW: [sys.executable, "-m", "bench.reader", "read"],
    f"{OURS}, 1 worker": [sys.executable, "-m", "bench.reader", "tessera", "1"],
    f"{OURS}, 2 workers": [sys.executable, "-m", "bench.reader", "tessera", "2"],
    f"{STORED}, 1 worker": [sys.executable, "-m", "bench.reader", "stored", "1"],
    f"{STORED}, 2 workers": [sys.executable, "-m", "bench.reader", "stored", "2"],
    "webdataset, 0 workers": [str(PEERS), "-m", "bench.peers", "webdataset", "0"],
    "webdataset, 2 workers": [str(PEERS), "-m", "bench.peers", "webdataset", "2"],
    "mosaicml-streaming, 0 workers": [str(PEERS), "-m", "bench.peers", "streaming", "0"],
    "mosaicml-streaming, 2 workers": [str(PEERS), "-m", "bench.peers", "streaming", "2"],
    "megatron-energon, 0 workers": [str(PEERS), "-m", "bench.peers", "energon", "0"],
    "megatron-energon, 2 workers": [str(PEERS), "-m", "bench.peers", "energon", "2"],
}
LIBRARIES = ("webdataset", "mosaicml-streaming", "megatron-energon")
READY_SAMPLES = 64
"""Taken before the clock starts: what had been read ahead while others had their turn."""
LOOKED_AT = 40


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How long is measured."""

    rounds: int = 5
    seconds: float = 0.8
    """One turn of one loader."""
    starts: int = 6
    """Of each kind: an even number, since either comes first in every other pair."""
    steps: int = 10_000
    """Before the resume, and over which memory is printed."""


class Contender:
    """A process that serves samples."""

    def __init__(self, name: str, command: list[str], log: Path) -> None:
        self.name, self.log = name, log
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore", "HF_HUB_OFFLINE": "1"}
        with open(log, "wb") as errors:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment
            )

    def ask(self, do: str, **values: Any) -> Any:
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            print(json.dumps({"do": do, **values}), file=self._process.stdin, flush=True)
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise SystemExit(f"error: {self.name} stopped at {do!r}:\n{self.log.read_text()[-3000:]}")
        return json.loads(line)

    def end(self) -> None:
        """Let the process go, by force where its own threads hold it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


@contextmanager
def contenders(folder: Path, names: list[str]) -> Iterator[list[Contender]]:
    with ExitStack() as stack:
        running = []
        for number, name in enumerate(names):
            running.append(Contender(name, CONTENDERS[name], folder / f"{number}.log"))
            stack.callback(running[-1].end)
        yield running


def require_same(looks: dict[str, dict[str, list[float]]]) -> None:
    """Every loader must have handed out the same values under the same keys."""
    seen: dict[str, list[float]] = {}
    for name, samples in looks.items():
        for key, values in samples.items():
            if seen.setdefault(key, values) != values:
                raise SystemExit(f"error: {name} hands out another {key}: {values}, not {seen[key]}")


def turns(running: list[Contender], folder: Path, effort: Effort) -> dict[str, list[float]]:
    """Values per second of each contender in each round after the first; their order changes."""
    looks = {}
    for one in running:
        one.ask("open", folder=str(folder))
        if not one.name.startswith((RAW, STORED)):
            looks[one.name] = one.ask("look", samples=LOOKED_AT)
    require_same(looks)
    rates: dict[str, list[float]] = {one.name: [] for one in running}
    for number in range(1 + effort.rounds):
        for one in random.Random(number).sample(running, len(running)):
            pulled = one.ask("pull", skip=0 if one.name == RAW else READY_SAMPLES, seconds=effort.seconds)
            if number:  # in the first, loaders touch their memory for the first time: a part of their start
                rates[one.name].append(pulled["values"] / pulled["seconds"])
    for one in running:
        one.ask("close")
    return rates


def quartiles(values: list[float]) -> str:
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return f"{middle:.2f} ({low:.2f} to {high:.2f})"


def ratios(ours: list[float], other: list[float]) -> str:
    return quartiles([a / b for a, b in zip(ours, other, strict=True)])


def better(rates: dict[str, list[float]], library: str) -> tuple[str, list[float]] | None:
    """The number of workers that suits a library best, and its rates; None where it takes no part."""
    variants = [name for name in rates if name.startswith(f"{library},")]
    best = max(variants, key=lambda name: statistics.median(rates[name]), default=None)
    return None if best is None else (best, rates[best])


def print_rates(rates: dict[str, list[float]], values_a_sample: float, values_a_byte: float) -> None:
    """`values_a_byte` is of a shard, headers and all: what a plain read has to move for one value."""
    ours = better(rates, OURS)
    assert ours is not None
    for name, rate in rates.items():
        middle = statistics.median(rate)
        samples = f"{middle / values_a_sample:8.0f} samples/s" if name != RAW else " " * 18
        line = f"    {name:30s} {samples} {middle / values_a_byte / 1e9:7.2f} GB/s of shards"
        print(line + ("" if name.startswith(OURS) else f"   {ours[0]} / this {ratios(ours[1], rate)}"))
    if RAW in rates and (stored := better(rates, STORED)):
        print(f"    {stored[0]} / read() {ratios(stored[1], rates[RAW])}")
    for library in LIBRARIES:
        if theirs := better(rates, library):
            print(f"    {ours[0]} / the better {library:20s} {ratios(ours[1], theirs[1])}")


def print_starts(running: list[Contender], folder: Path, effort: Effort) -> None:
    """Without worker processes, whose own start would hide the rest."""
    print(f"  First batch after a resume at step {effort.steps:,} / after a cold start, median of {effort.starts} each")
    for one in running:
        if one.name.startswith((RAW, STORED)) or one.name.endswith("2 workers"):
            continue
        if not one.ask("prepare", folder=str(folder), steps=effort.steps):
            print(f"    {one.name:30s} cannot be resumed")
            continue
        one.ask("resume", folder=str(folder))  # warms up
        cold, resumed = [], []
        for number in range(effort.starts):
            for do in ("open", "resume") if number % 2 else ("resume", "open"):
                (cold if do == "open" else resumed).append(one.ask(do, folder=str(folder)))
        one.ask("close")
        line = (
            f"    {one.name:30s} {1000 * statistics.median(resumed):8.1f} ms / {1000 * statistics.median(cold):8.1f} ms"
        )
        print(f"{line}   {ratios(resumed, cold)}", flush=True)


def write_set(which: LatentSet, folder: Path, *, for_peers: bool) -> tuple[float, float]:
    """Write the set in all forms; values per sample, and per byte of the shards."""
    manifest = write(which, folder / "shards")
    if for_peers:
        done = subprocess.run(
            [PEERS, "-m", "bench.peers", "prepare", folder], capture_output=True, text=True, stdin=subprocess.DEVNULL
        )
        if done.returncode:
            raise SystemExit(f"error: the latents could not be brought into the others' forms:\n{done.stderr[-3000:]}")
    stored, numbers = stored_bytes(manifest), count_values(manifest)
    print(
        f"  {which.title} latents: {len(manifest)} samples of {stored / len(manifest) / 1e3:,.0f} kB on average, ",
        end="",
    )
    print(f"{stored / 1e6:,.0f} MB in {len(manifest.shards)} shards, float16, handed out as float32", flush=True)
    return numbers / len(manifest), numbers / stored


def print_reading(names: list[str], effort: Effort) -> None:
    if any(str(PEERS) in CONTENDERS[name] for name in names) and not PEERS.exists():
        raise SystemExit(f"error: {PEERS} is missing: make the other loaders' environment with `bash bench/peers.sh`")
    for_peers = any(str(PEERS) in CONTENDERS[name] for name in names)
    print(
        f"Reading: {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, files in the page cache; median of "
        f"{effort.rounds} rounds after one that warms up, ratios within rounds (quartiles)"
    )
    with tempfile.TemporaryDirectory(prefix="tessera-bench-") as temporary:
        scratch = Path(temporary)
        with contenders(scratch, names) as running:
            for which in (WAN, DEMO):
                folder = scratch / which.title
                values_a_sample, values_a_byte = write_set(which, folder, for_peers=for_peers)
                print_rates(turns(running, folder, effort), values_a_sample, values_a_byte)
            print_starts(running, scratch / DEMO.title, effort)
        print(
            f"  Memory over {effort.steps:,} steps of our loader on the demo latents, then of the order alone",
            flush=True,
        )
        command = [sys.executable, "-m", "bench.reader", "memory", str(scratch / DEMO.title), str(effort.steps)]
        subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
