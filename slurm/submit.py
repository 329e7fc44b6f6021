"""Check a run before the queue, write down what will be run, and submit it.

    python -m slurm.submit cluster=bare_metal nodes=4 experiment=demo parallel=tp2_pp2 data.packs_per_step=16
    python -m slurm.submit -m schedule.lr=1e-3,2e-3 seed=0,1 ...      one array, a run for each combination
    python -m slurm.submit module=trainer.encode clips=... codec=... folder=...

Settings of the job: cluster=NAME, cluster.*=..., nodes=, ranks_per_node=, chain=, at_once=, module=, and dry_run=true,
which prints and submits nothing. All others are those of the run. Its folder gets `submit.yaml`, the config that all
ranks load, and `submit.sbatch`.
"""

import importlib
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass
from itertools import product
from pathlib import Path
from typing import Any

from hydra import compose
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig

from slurm.check import check_training
from slurm.client import ask
from slurm.cluster import ClusterConfig
from slurm.compose import config_name, configs
from slurm.jobs import LOGS, job_ids, note_job, queued
from slurm.script import Job, render
from trainer.compose import to_dataclass, to_saved_config, user_errors
from trainer.config import TrainConfig

CONFIG, SCRIPT = "submit.yaml", "submit.sbatch"
TRAINING = "trainer.train"


@dataclass(frozen=True, kw_only=True)
class SubmitConfig:
    """The job of a run."""

    cluster: ClusterConfig
    nodes: int = 1
    ranks_per_node: int | None = None
    """None: one for each GPU, or 1."""
    module: str = TRAINING
    chain: int = 1
    """Jobs one after the other, each only where the one before it ended without being done."""
    at_once: int | None = None
    dry_run: bool = False

    def __post_init__(self) -> None:
        for name in ("nodes", "ranks_per_node", "chain", "at_once"):
            number = getattr(self, name)
            if number is not None and number < 1:
                raise ValueError(f"{name}={number} must be at least 1")
        config_name(self.module)
        if self.module != TRAINING and (self.nodes, self.ranks_per_node or 1) != (1, 1):
            raise ValueError(f"module={self.module} is one process: leave nodes= and ranks_per_node= away")

    @property
    def ranks(self) -> int:
        """Processes of a node."""
        if self.module != TRAINING:
            return 1
        return self.ranks_per_node or self.cluster.gpus_per_node or 1


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A run, checked."""

    name: str
    folder: Path
    yaml: str
    lines: list[str]


def split_words(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Overrides of the job, and those of the run."""
    ours = {field.name for field in fields(SubmitConfig)}
    mine = [word for word in words if word.lstrip("+~").partition("=")[0].partition(".")[0] in ours]
    return mine, [word for word in words if word not in mine]


def choices(words: Sequence[str]) -> Iterator[tuple[list[str], str]]:
    """Every combination of a sweep's overrides, and a name for it: `lr-0.001-seed-1`."""
    options, swept = [], []
    for override in OverridesParser.create().parse_overrides(list(words)):
        if override.is_sweep_override():
            key = override.get_key_element()
            options.append([f"{key}={value}" for value in override.sweep_string_iterator()])
        else:
            options.append([str(override.input_line)])
        swept.append(override.is_sweep_override())
    for chosen in product(*options):
        pairs = [word.split("=", 1) for word, is_swept in zip(chosen, swept, strict=True) if is_swept]
        name = "-".join(f"{key.rpartition('.')[2]}-{value}" for key, value in pairs)
        yield list(chosen), "".join(letter if letter.isalnum() or letter in ".-_+" else "_" for letter in name)


def prepare(config: DictConfig, submit: SubmitConfig, suffix: str) -> Prepared:
    """Fill the dataclass of the run's command and check what can be checked here."""
    if suffix:
        if "name" not in config:
            raise ValueError(f"module={submit.module} has no name= to tell its runs apart: submit them one by one")
        config.name = f"{config.name}-{suffix}"
    command = submit.module.rpartition(".")[2]
    kind = getattr(importlib.import_module(submit.module), command.title().replace("_", "") + "Config")
    filled: Any = to_dataclass(kind, config)
    assert is_dataclass(filled)
    if not isinstance(filled, TrainConfig):
        folder = LOGS / f"{command}-{time.strftime('%Y%m%d-%H%M%S')}"
        return Prepared(
            name=command, folder=folder, yaml=to_saved_config(config), lines=[f"{submit.module}, one process"]
        )
    lines = check_training(filled, submit.cluster, nodes=submit.nodes, ranks_per_node=submit.ranks)
    if others := queued(job_ids(filled.path)):
        raise ValueError(
            f"{filled.folder} is the folder of job {others[0]}, which has not ended: cancel that (python -m slurm.jobs "
            f"cancel {filled.folder}), or choose another name="
        )
    return Prepared(name=filled.name, folder=filled.path, yaml=to_saved_config(filled), lines=lines)


def job_of(config: SubmitConfig, runs: Sequence[Prepared]) -> Job:
    """One job; of several runs an array, a task each."""
    return Job(
        name=runs[0].name if len(runs) == 1 else f"{runs[0].name} and {len(runs) - 1} more",
        module=config.module,
        configs=tuple(run.folder / CONFIG for run in runs),
        nodes=config.nodes,
        ranks_per_node=config.ranks,
        checkout=Path.cwd(),
        cluster=config.cluster,
        at_once=config.at_once,
        is_chained=config.chain > 1,
    )


def submit(config: SubmitConfig, runs: Sequence[Prepared]) -> None:
    """Write configs and script, and hand the script to sbatch as often as the chain is long."""
    if len({run.folder for run in runs}) < len(runs):
        raise ValueError(f"several runs of the sweep would write into {runs[0].folder}: let name= or folder= differ")
    job = job_of(config, runs)
    script = render(job)
    if config.dry_run:
        for run in runs:
            print(f"\n# {run.folder / CONFIG}\n{run.yaml}", end="")
        print(f"\n# {runs[0].folder / SCRIPT}\n{script}\ndry_run=true: nothing was written or submitted")
        return
    LOGS.mkdir(parents=True, exist_ok=True)
    for run in runs:
        run.folder.mkdir(parents=True, exist_ok=True)
        (run.folder / CONFIG).write_text(run.yaml, encoding="utf-8")
        (run.folder / SCRIPT).write_text(script, encoding="utf-8")
    before = ""
    for _ in range(config.chain):
        # A job that was completed satisfies no `afternotok`: the rest of the chain then leaves the queue.
        after = [f"--dependency=afternotok:{before}", "--kill-on-invalid-dep=yes"] if before else []
        before = ask("sbatch", "--parsable", *after, str(runs[0].folder / SCRIPT)).partition(";")[0]
        for number, run in enumerate(runs):
            note_job(run.folder, before, task=number if len(runs) > 1 else None)
        print(f"job {before}" + (f" (if the one before it is not done): {job.name}" if after else f": {job.name}"))
    print(f"python -m slurm.jobs tail {runs[0].folder}")


def require_checkout() -> None:
    """ValueError where the working directory is not the root of a checkout."""
    if not Path("slurm/train.sbatch").is_file():
        raise ValueError(f"{Path.cwd()} is not the root of a Tessera checkout: cd there, then submit")


@user_errors
def main() -> None:
    """Compose the job's config and the run's, which share one line."""
    assert __doc__ is not None
    words = sys.argv[1:]
    is_sweep = bool({"-m", "--multirun"} & set(words))
    words = [word for word in words if word not in ("-m", "--multirun")]
    if {"-h", "--help"} & set(words):
        print(__doc__)
        return
    if options := [word for word in words if word.startswith("-")]:
        raise ValueError(f"{options[0]} is no option here (there are -m and --help); dry_run=true shows what would be")
    mine, theirs = split_words(words)
    require_checkout()
    with configs():
        config = to_dataclass(SubmitConfig, compose("submit", mine))
        chosen = list(choices(theirs)) if is_sweep else [(theirs, "")]
        composed = [(compose(config_name(config.module), choice), suffix) for choice, suffix in chosen]
    runs = [prepare(one, config, suffix) for one, suffix in composed]
    for run in runs:
        print(f"{run.folder}:", *run.lines, sep="\n  ")
    submit(config, runs)


if __name__ == "__main__":
    main()
