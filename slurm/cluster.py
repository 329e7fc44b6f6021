"""What a job has to know of its cluster, as `conf/cluster/*.yaml` says."""

from dataclasses import dataclass, field
from typing import Literal

_SECRETS = ("KEY", "TOKEN", "PASSWORD", "SECRET")


@dataclass(frozen=True, kw_only=True)
class ContainerConfig:
    """What Python runs in."""

    kind: Literal["none", "pyxis", "apptainer"] = "none"
    image: str | None = None
    """A file, or for pyxis what enroot can import, such as `nvcr.io#nvidia/pytorch:25.09-py3`."""
    mounts: tuple[str, ...] = ()
    """`HOST:CONTAINER`; the checkout is there already, under its own path."""

    def __post_init__(self) -> None:
        if (self.kind == "none") != (self.image is None):
            raise ValueError(f"cluster.container: kind={self.kind} with image={self.image}: give both, or none of them")

    def srun_options(self, checkout: str) -> list[str]:
        """What pyxis adds to srun."""
        if self.kind != "pyxis":
            return []
        mounts = ",".join([f"{checkout}:{checkout}", *self.mounts])
        return [f"--container-image={self.image}", f"--container-mounts={mounts}", f"--container-workdir={checkout}"]

    def wrapper(self, checkout: str) -> list[str]:
        """The command that apptainer puts before Python."""
        if self.kind != "apptainer":
            return []
        binds = [word for mount in (checkout, *self.mounts) for word in ("--bind", mount)]
        return ["apptainer", "exec", "--nv", *binds, "--pwd", checkout, str(self.image)]


@dataclass(frozen=True, kw_only=True)
class ClusterConfig:
    """The facts of one cluster. None leaves a thing to SLURM's own defaults."""

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    time: str | int | None = None
    """Of a job, as SLURM writes it: `24:00:00`, `2-00:00:00`, or minutes."""
    gpus_per_node: int = 0
    gpu_memory_gib: float | None = None
    """Of one GPU; a layout that needs more is refused before the queue. None does not look."""
    cpus_per_node: int | None = None
    memory: str | int | None = None
    """Of a node, `500G`; `0` is all of it."""
    exclusive: bool = False
    options: tuple[str, ...] = ()
    """Further options of sbatch, `--constraint=ib`."""
    modules: tuple[str, ...] = ()
    prelude: tuple[str, ...] = ()
    """Lines of shell before anything starts, such as `source /opt/site/env.sh`."""
    environment: dict[str, str] = field(default_factory=dict)
    """Written into scripts and printed, so no secrets: jobs get those from the shell they are submitted from."""
    interface: str | None = None
    """Network interface that Gloo and NCCL meet over, `ib0` or `eth0`."""
    head_address: str | None = None
    """Where the first node is reached, if not by its name."""
    container: ContainerConfig = field(default_factory=ContainerConfig)
    signal_s: int = 120
    """Seconds before the time limit at which SLURM asks to save: one step and one checkpoint have to fit."""
    requeue: bool = True
    """Whether jobs may go back to the queue by themselves. Where not, submit a chain."""
    preflight: bool | None = None
    """Look at the nodes before the run starts; None where there are several."""
    min_bandwidth_gb_s: float = 0.0
    """Nodes between which less gets through are told and left out, in GB/s; 0 only compares them."""

    def __post_init__(self) -> None:
        for name, least in (("gpus_per_node", 0), ("signal_s", 1), ("min_bandwidth_gb_s", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"cluster.{name}={getattr(self, name)} must be at least {least}")
        if secrets := [name for name in self.environment if name.upper().endswith(_SECRETS)]:
            raise ValueError(
                f"cluster.environment.{secrets[0]} looks like a secret, which would stand in submit.sbatch: leave it "
                f"away and export {secrets[0]} in the shell that submits (sbatch hands that on, see its --export)"
            )
