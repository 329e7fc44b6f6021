"""Which process of how many this is, and in which job, as the launcher says; light enough for every command to ask."""

import os
from dataclasses import dataclass
from pathlib import Path

_TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
_SRUN = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID")

_STOP_NOTE = "TESSERA_STOP_NOTE"


@dataclass(frozen=True, kw_only=True)
class Launch:
    """Which process of how many this is."""

    rank: int
    world_size: int
    local_rank: int

    @staticmethod
    def from_environment() -> "Launch":
        """As set by torchrun, else by srun, else one process alone.

        Raises:
            ValueError: srun started several tasks without saying where they meet.
        """
        launch = Launch.named()
        missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
        if launch.world_size > 1 and missing:
            raise ValueError(
                f"{launch.world_size} processes were started, but {' and '.join(missing)} is not set, so they cannot "
                "meet; start them with torchrun or through slurm/train.sbatch, or export it."
            )
        return launch

    @staticmethod
    def in_world(rank: int, world_size: int) -> "Launch":
        """A process that has met the others already; what is left to ask is its place on this machine."""
        return Launch(rank=rank, world_size=world_size, local_rank=int(os.environ.get("LOCAL_RANK", "0")))

    @staticmethod
    def require_single(command: str) -> None:
        """ValueError where a launcher started several processes: each would write the same files."""
        started = Launch.named().world_size
        if started > 1:
            raise ValueError(f"{command} is for one process, but {started} were started: start it without a launcher")

    @staticmethod
    def named() -> "Launch":
        """The same, whether or not the processes can meet."""
        for names in (_TORCHRUN, _SRUN):
            if all(name in os.environ for name in names):
                rank, world_size, local_rank = (int(os.environ[name]) for name in names)
                return Launch(rank=rank, world_size=world_size, local_rank=local_rank)
        return Launch(rank=0, world_size=1, local_rank=0)


def child_environment() -> dict[str, str]:
    """For a run that is a part of this process's work: it tells this process, not the job's script, that it stopped."""
    return {name: value for name, value in os.environ.items() if name != _STOP_NOTE}


@dataclass(frozen=True, kw_only=True)
class SlurmJob:
    """The SLURM job this process belongs to."""

    id: str
    end_time: float | None
    """When its time is up, in seconds since 1970; None where SLURM does not say."""
    stop_note: Path | None
    """A file that slurm/train.sbatch looks for: a run that stopped early with everything saved leaves it."""

    @staticmethod
    def from_environment() -> "SlurmJob | None":
        """As SLURM and slurm/train.sbatch set it; None outside of a job."""
        if "SLURM_JOB_ID" not in os.environ:
            return None
        end_time, note = os.environ.get("SLURM_JOB_END_TIME"), os.environ.get(_STOP_NOTE)
        return SlurmJob(
            id=os.environ["SLURM_JOB_ID"],
            end_time=float(end_time) if end_time else None,
            stop_note=Path(note) if note else None,
        )
