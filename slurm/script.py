"""The sbatch script of a job, for people to read; `slurm/train.sbatch` does the work."""

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from slurm.cluster import ClusterConfig
from slurm.jobs import LOGS


@dataclass(frozen=True, kw_only=True)
class Job:
    """What is asked of SLURM."""

    name: str
    module: str
    configs: tuple[Path, ...]
    """One resolved config; several are tasks of an array."""
    nodes: int
    ranks_per_node: int
    checkout: Path
    cluster: ClusterConfig
    at_once: int | None = None
    """Tasks of an array that run at the same time."""
    is_chained: bool = False
    """The next job of a chain goes on where this one ends, so that it does not requeue itself."""


def render(job: Job) -> str:
    """The script; ValueError for a name or a folder that would not stay one word of it."""
    for key, text, bad in (("name", job.name, "\"'\\"), *(("folder", str(path.parent), "") for path in job.configs)):
        if odd := [letter for letter in text if letter in bad or not letter.isprintable()]:
            raise ValueError(
                f"{key}={text!r} has {odd[0]!r} in it, which a script for sbatch cannot hold: leave it away"
            )
    return "\n".join(["#!/usr/bin/env bash", *_directives(job), "set -eo pipefail", "", *_body(job)]) + "\n"


def _directives(job: Job) -> Iterator[str]:
    cluster, is_array = job.cluster, len(job.configs) > 1
    options: dict[str, object] = {
        "job-name": job.name,
        "nodes": job.nodes,
        "ntasks-per-node": 1,
        "partition": cluster.partition,
        "account": cluster.account,
        "qos": cluster.qos,
        "time": cluster.time,
        "gpus-per-node": cluster.gpus_per_node or None,
        "cpus-per-task": cluster.cpus_per_node,
        "mem": cluster.memory,
        "output": LOGS / ("%A_%a.log" if is_array else "%j.log"),
        "open-mode": "append",
        "signal": f"B:USR1@{cluster.signal_s}",
    }
    if is_array:
        options["array"] = f"0-{len(job.configs) - 1}" + (f"%{job.at_once}" if job.at_once else "")
    for name, value in options.items():
        if value is not None:
            yield f"#SBATCH --{name}={_quoted(str(value))}"
    yield "#SBATCH --requeue" if _requeues(job) else "#SBATCH --no-requeue"
    if cluster.exclusive:
        yield "#SBATCH --exclusive"
    for option in cluster.options:
        yield f"#SBATCH {option}"


def _quoted(value: str) -> str:
    """sbatch reads double quotes as a shell does, and outside of them a comment too."""
    return f'"{value}"' if any(letter.isspace() or letter == "#" for letter in value) else value


def _requeues(job: Job) -> bool:
    return job.cluster.requeue and not job.is_chained


def _body(job: Job) -> Iterator[str]:
    cluster, checkout = job.cluster, str(job.checkout)
    yield f"cd {shlex.quote(checkout)}"
    for name in cluster.modules:
        yield f"module load {shlex.quote(name)}"
    yield from cluster.prelude
    settings = dict(cluster.environment)
    if cluster.interface is not None:
        settings |= {"NCCL_SOCKET_IFNAME": cluster.interface, "GLOO_SOCKET_IFNAME": cluster.interface}
    if cluster.head_address is not None:  # a prelude may know better
        yield f"export HEAD_ADDRESS=${{HEAD_ADDRESS:-{shlex.quote(cluster.head_address)}}}"
    settings["RANKS_PER_NODE"] = str(job.ranks_per_node)
    settings["REQUEUE"] = "1" if _requeues(job) else "0"
    if cluster.preflight is not None:
        settings["PREFLIGHT"] = "1" if cluster.preflight else "0"
    if cluster.min_bandwidth_gb_s:
        settings["MIN_BANDWIDTH_GB_S"] = f"{cluster.min_bandwidth_gb_s:g}"
    # Both are taken apart at blanks again.
    settings |= _words("SRUN_OPTIONS", cluster.container.srun_options(checkout))
    settings |= _words("WRAPPER", cluster.container.wrapper(checkout))
    for name, value in settings.items():
        yield f"export {name}={shlex.quote(value)}"
    yield ""
    config = shlex.quote(str(job.configs[0]))
    if len(job.configs) > 1:
        yield "configs=("
        yield from (f"    {shlex.quote(str(path))}" for path in job.configs)
        yield ")"
        config = '"${configs[$SLURM_ARRAY_TASK_ID]}"'
    yield f"exec bash slurm/train.sbatch -m {job.module} --config {config}"


def _words(name: str, words: Sequence[str]) -> dict[str, str]:
    if odd := [word for word in words if any(letter.isspace() for letter in word)]:
        raise ValueError(f"{odd[0]!r} has a blank in it, which {name} cannot hold: use a path without one")
    return {name: " ".join(words)} if words else {}
