"""Runs the program with a fault in it: forked ranks import one changed module and measure (`mutant_checks.py`).

The process that forks has imported the engines, which takes seconds, but nothing of the program.
"""

import gc
import importlib
import json
import os
import signal
import sys
import time
import traceback
from dataclasses import dataclass
from datetime import timedelta
from importlib.machinery import SourceFileLoader
from importlib.util import spec_from_file_location
from pathlib import Path

ROOT = Path(__file__).parents[2]
PROGRAM = {"model", "diffusion", "data", "parallel", "trainer", "layout_reference", "run_layouts", "mutant_checks"}
JOBS = max(2, os.cpu_count() or 1)
"""Sets of ranks at work at the same time."""
NO_FAULT = "(no fault)"
DEADLINE_S, GRACE_S, GLOO_S = 90, 2, 30
"""Seconds: of a rank; of its peers after it failed; of a collective over all ranks."""


@dataclass(frozen=True, kw_only=True)
class Mutant:
    """A fault: `old`, which is in `file` exactly once, becomes `new`."""

    name: str
    file: str
    old: str
    new: str
    layout: str
    check: str = "parity"

    @property
    def module(self):
        return self.file.removesuffix(".py").replace("/", ".")

    def text(self):
        """The file with the fault in it."""
        source = (ROOT / self.file).read_text()
        assert source.count(self.old) == 1, f"{self.name}: {source.count(self.old)} times in {self.file}: {self.old}"
        return source.replace(self.old, self.new)


@dataclass(frozen=True)
class Job:
    """A check under a layout, of the program with a fault or as it is."""

    layout: str
    check: str
    mutant: Mutant | None = None

    @property
    def name(self):
        return self.mutant.name if self.mutant else NO_FAULT


class Running:
    """The ranks of a job."""

    def __init__(self, job, fault, size, folder):
        self.job, self.folder = job, folder
        folder.mkdir()
        self.pids = dict(enumerate(fork(run_rank, job, fault, rank, size, folder) for rank in range(size)))
        self.statuses, self.failed_at, self.killed = {}, None, set()

    def poll(self):
        """Whether all ranks have ended. Soon after one failed the others, which may wait for it, are killed."""
        for rank, pid in self.alive():
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                self.statuses[rank] = status
                if status and self.failed_at is None:
                    self.failed_at = time.monotonic()
        if self.failed_at and time.monotonic() > self.failed_at + GRACE_S:
            self.kill()
        return not self.alive()

    def alive(self):
        return [(rank, pid) for rank, pid in self.pids.items() if rank not in self.statuses]

    def kill(self):
        for rank, pid in self.alive():
            os.kill(pid, signal.SIGKILL)
            self.killed.add(rank)

    def result(self):
        told = [rank for rank in (read(self.folder / f"rank{rank}.json") for rank in self.pids) if rank]
        errors = sorted((rank["error"] for rank in told if rank["error"]), key=lambda error: error["time"])
        signals = [os.WTERMSIG(status) for rank, status in self.statuses.items() if rank not in self.killed]
        return {
            "name": self.job.name,
            "layout": self.job.layout,
            "check": self.job.check,
            "findings": [rank["findings"] for rank in told if not rank["error"]],
            "error": errors[0]["text"] if errors else None,
            "died_of": next((signal.Signals(number).name for number in signals if number), None),
        }


def read(path):
    return json.loads(path.read_text()) if path.exists() else None


def fork(function, *arguments):
    """A child that runs a function and ends; its number."""
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return pid
    try:
        function(*arguments)
        os._exit(0)
    finally:
        traceback.print_exc()
        os._exit(1)


def run_rank(job, fault, rank, size, folder):
    """Check as one rank, and leave what was found in a file."""
    signal.alarm(DEADLINE_S)
    log = os.open(folder / f"rank{rank}.log", os.O_WRONLY | os.O_CREAT)
    os.dup2(log, 1)
    os.dup2(log, 2)
    told = {"findings": [], "error": None}
    try:
        told["findings"] = check_as(job, fault, rank, size, folder)
    finally:
        error = sys.exception()
        if error:
            traceback.print_exc()
            place = traceback.extract_tb(error.__traceback__)[-1]
            text = f"{type(error).__name__}: {str(error) or f'{place.name}, line {place.lineno}'}".split("\n")[0]
            told["error"] = {"text": text[:200], "time": time.monotonic()}
        (folder / f"rank{rank}.json").write_text(json.dumps(told))
        os._exit(1 if error else 0)


def check_as(job, fault, rank, size, folder):
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    if fault:
        sys.meta_path.insert(0, fault)
    checks, layouts, dims = map(importlib.import_module, ("mutant_checks", "run_layouts", "parallel.dims"))
    assert fault is None or sys.modules[job.mutant.module].__loader__ is fault, "the fault is not in place"
    store = dist.FileStore(str(folder / "store"), size)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=timedelta(seconds=GLOO_S))
    findings = checks.CHECKS[job.check](dims.ParallelDims(**layouts.LAYOUTS[job.layout]), folder.parent / "reference")
    dist.barrier()
    return findings


class Fault(SourceFileLoader):
    """Imports one module from a mutant's text instead of the file's; on `sys.meta_path` it finds itself."""

    def __init__(self, mutant):
        super().__init__(mutant.module, str(ROOT / mutant.file))
        self.code = compile(mutant.text(), self.path, "exec", dont_inherit=True)

    def find_spec(self, name, path=None, target=None):
        return spec_from_file_location(name, self.path, loader=self) if name == self.name else None

    def get_code(self, fullname):
        return self.code


def run(jobs, folder):
    """The results of jobs, in order; a few at a time."""
    faults = [Fault(job.mutant) if job.mutant else None for job in jobs]
    import deepspeed  # noqa: F401
    import megatron.core  # noqa: F401
    import torch

    torch.set_num_threads(1)
    fork(write_reference, folder / "reference")
    assert os.wait()[1] == 0, "the reference failed"
    for name in read(folder / "reference" / "modules.json"):
        importlib.import_module(name)
    assert not PROGRAM & {name.split(".")[0] for name in sys.modules}, "a fault would come too late"
    gc.freeze()  # the ranks' collections pass over what they inherit
    sizes = read(folder / "reference" / "sizes.json")
    waiting, running, results = list(enumerate(jobs)), {}, {}
    try:
        while waiting or running:
            while waiting and len(running) < JOBS:
                number, job = waiting.pop(0)
                running[number] = Running(job, faults[number], sizes[job.layout], folder / str(number))
            for number in [number for number, ranks in running.items() if ranks.poll()]:
                results[number] = running.pop(number).result()
            time.sleep(0.01)
    finally:
        for ranks in running.values():
            ranks.kill()
    return [results[number] for number in range(len(jobs))]


def write_reference(folder):
    """In a process of its own: what is right, and which modules of the engines a run imports on its way."""
    folder.mkdir()
    before = set(sys.modules)
    checks = importlib.import_module("mutant_checks")
    checks.write_reference(folder)
    checks.run_alone()
    (folder / "sizes.json").write_text(json.dumps(checks.sizes()))
    engines = ("torch.", "deepspeed.", "megatron.", "safetensors", "einops")
    imported = sorted(name for name in set(sys.modules) - before if name.startswith(engines))
    (folder / "modules.json").write_text(json.dumps(imported))
