"""The runs of a sweep in SLURM's queue: what is missing becomes one array, a task a cell, and its ends are counted."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path

from scaling.attempts import Attempts, judged
from scaling.grid import PlannedCell
from scaling.outcome import Outcome
from slurm.check import check_training
from slurm.client import ask
from slurm.cluster import ClusterConfig
from slurm.jobs import LOGS, described, job_ids
from slurm.script import render
from slurm.submit import Prepared, SubmitConfig, job_of, require_checkout, submit
from trainer.compose import to_yaml
from trainer.signals import EXIT_STOPPED

_STOPPED = ("CANCELLED", "PREEMPTED")
_WAITING = ("PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "SUSPENDED")


def in_queue(folders: Sequence[Path]) -> dict[Path, str]:
    """`queued` or `running` for run folders with a job that has not ended. SLURM is asked only where there are jobs."""
    jobs = {folder: of_run for folder in folders if (of_run := job_ids(folder))}
    if not jobs:
        return {}
    lines = ask("squeue", "--me", "--noheader", "--array", "--format", "%i %T").splitlines()
    states = dict(line.split(maxsplit=1) for line in lines)
    found = {folder: [states[job] for job in of_run if job in states] for folder, of_run in jobs.items()}
    return {folder: "queued" if there[-1] in _WAITING else "running" for folder, there in found.items() if there}


def count_ends(outcomes: Sequence[Outcome], attempts: Attempts, say: Callable[[str], None]) -> None:
    """Write down, and say, how the last job of each of these runs ended, once."""
    for one in outcomes:
        jobs = job_ids(one.folder)
        if not jobs or attempts.knows(jobs[-1]):
            continue
        facts = described(jobs[-1])[0]
        state, exit_code = facts["JobState"].split()[0], facts.get("ExitCode", "")
        code = EXIT_STOPPED if state in _STOPPED else int(exit_code.partition(":")[0] or 1)
        log = LOGS / f"{jobs[-1]}.log"
        printed = log.read_text(encoding="utf-8", errors="replace") if log.is_file() else ""
        kind, why = judged(one, printed, began=_began(facts), code=code)
        said = f"{state}, exit code {exit_code}" if exit_code else state
        why = f"{why} (job {jobs[-1]}: {said})"
        attempts.add(one.planned, kind, why=why, code=said, job=jobs[-1])
        say(f"{one.planned.name}: {kind}, {why}")


def _began(facts: dict[str, str]) -> float:
    """When a job last started, in seconds since 1970; 0 where SLURM does not say."""
    try:
        return datetime.fromisoformat(facts.get("StartTime", "")).timestamp()
    except ValueError:  # `Unknown`, of one that never did
        return 0.0


class Array:
    """How the cells of a sweep are submitted."""

    def __init__(self, cluster: ClusterConfig, *, ranks: int, at_once: int | None) -> None:
        """ValueError where the ranks of a cell do not fill whole nodes."""
        require_checkout()
        nodes, per_node = 1, ranks
        if 0 < cluster.gpus_per_node < ranks:
            nodes, rest = divmod(ranks, cluster.gpus_per_node)
            per_node = cluster.gpus_per_node
            if rest:
                raise ValueError(
                    f"ranks={ranks} do not fill nodes of cluster.gpus_per_node={cluster.gpus_per_node}: take a multiple"
                )
        elif cluster.gpus_per_node and not cluster.exclusive:
            cluster = replace(cluster, gpus_per_node=ranks)  # the other GPUs of the node are for other cells
        self.job = SubmitConfig(cluster=cluster, nodes=nodes, ranks_per_node=per_node, at_once=at_once)

    def script(self, cells: Sequence[PlannedCell]) -> str:
        """What would be submitted, each cell checked. ValueError for the first that could not run."""
        return render(job_of(self.job, [self._prepared(cell) for cell in cells]))

    def submit(self, cells: Sequence[PlannedCell], refused: Callable[[PlannedCell, str], None]) -> None:
        """Hand in what passes the checks; what does not is refused, each with its reason."""
        runs = []
        for cell in cells:
            try:
                runs.append(self._prepared(cell))
            except ValueError as error:
                refused(cell, str(error))
        if runs:
            submit(self.job, runs)

    def _prepared(self, cell: PlannedCell) -> Prepared:
        config, job = cell.config, self.job
        lines = check_training(config, job.cluster, nodes=job.nodes, ranks_per_node=job.ranks)
        return Prepared(name=config.name, folder=config.path, yaml=to_yaml(config), lines=lines)
