"""The root config of a training run: one dataclass a section, filled from `conf/` by Hydra."""

import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from data.curriculum import StageConfig
from data.deadline import READ_TIMEOUT_S
from data.latents import LatentConfig
from data.lattice import ClipConfig
from data.mixture import MixConfig
from data.pack import ORDER_VERSION
from data.step import ReadAhead
from diffusion.timesteps import FlowConfig
from model.dit import DiTConfig
from model.text import TextConfig
from parallel.dims import ParallelDims
from parallel.legality import Workload
from parallel.optim import AdamWConfig
from trainer.mirror import WandbConfig
from trainer.schedule import ScheduleConfig


@dataclass(frozen=True, kw_only=True)
class OnlineConfig:
    """How clips are trained on that were not encoded before."""

    cache: str = "runs/cache"
    """Folder of latents and embeddings as they are made, named by what they are made from: runs and ranks share it."""
    cache_bytes: int = 100 << 30
    """When a run starts, what others left there is removed, the longest unused first, until its own will fit."""
    heldout_fraction: float = 0.1
    """Share of the sources that is kept from training."""
    shards: LatentConfig = field(default_factory=LatentConfig)
    """How `trainer.encode` would store them, which the order follows."""

    def __post_init__(self) -> None:
        if self.cache_bytes < 1:
            raise ValueError(f"data.online.cache_bytes={self.cache_bytes} must be at least 1")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which latent shards, or which clips, to train on, and how many tokens make a pack and a step."""

    folder: str | None = None
    """Latent shards and their manifest, as `trainer.encode` writes them; a path, or a URL that fsspec can open."""
    codec: str
    """The codec folder the shards were made with; shards of another one are refused."""
    clips: str | None = None
    """In place of `folder`: clip shards, which are encoded when a step first needs them."""
    online: OnlineConfig = field(default_factory=OnlineConfig)
    """What `clips` go through."""
    tokens_per_pack: int
    packs_per_step: int
    window: int = 4096
    """Samples shuffled together; order and packing never look further than this."""
    prefetch_steps: int = 4
    """Steps that lie ready or are being read; half of them are read together."""
    prefetch_bytes: int = 1 << 30
    """Memory for them, on each rank that reads."""
    workers: int = 1
    """Processes of each such rank that read; 0 reads in a thread, where nothing ends a read that hangs."""
    read_timeout_s: float = READ_TIMEOUT_S
    """For each read: a worker that takes longer is replaced once, then the run stops."""
    weight: float = 1.0
    """How often its samples come in an epoch."""
    others: dict[str, float] = field(default_factory=dict)
    """Further folders of latent shards, each with the weight of its samples."""
    mix: MixConfig = field(default_factory=MixConfig)
    curriculum: tuple[StageConfig, ...] = ()
    """Mixtures that come before `mix`, each until a step or a number of tokens."""
    cost: str | None = None
    """A file of `python -m trainer.pack_cost`; None balances packs by the model's FLOPs."""
    position_fps: float | None = None
    """Temporal positions count frames of this rate: latent frame k of a clip lies at k * position_fps / its own rate.
    None: at k, whatever the rate."""
    limit_samples: int | None = None
    """Train on the first N samples only (`debug=overfit`)."""

    def __post_init__(self) -> None:
        for name in ("tokens_per_pack", "packs_per_step", "window"):
            if getattr(self, name) < 1:
                raise ValueError(f"data.{name}={getattr(self, name)} must be at least 1")
        self.read_ahead()
        for folder, weight in {str(self.folder or self.clips): self.weight, **self.others}.items():
            if not 0 < weight < math.inf:
                raise ValueError(
                    f"data: the weight {weight} of {folder} must be above 0 and finite; leave out what should not come"
                )
        if self.folder is not None and self.folder.rstrip("/") in {name.rstrip("/") for name in self.others}:
            raise ValueError(f"data.others names {self.folder}, which is data.folder: set data.weight instead")
        if self.position_fps is not None and not 0 < self.position_fps < math.inf:
            raise ValueError(f"data.position_fps={self.position_fps} must be above 0, or null to count frames")

    def read_ahead(self) -> ReadAhead:
        """How a loader reads."""
        return ReadAhead(
            steps=self.prefetch_steps,
            num_bytes=self.prefetch_bytes,
            workers=self.workers,
            timeout_s=self.read_timeout_s,
        )


@dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """How long a run is and how often it does what. A period of 0 means never."""

    steps: int
    log_every: int = 10
    checkpoint_every: int = 500
    keep_checkpoints: int = 2
    evaluate_every: int = 500
    sample_every: int = 0
    check_replicas_every: int = 500
    """Compare the copies of each parameter over ranks, bit by bit; unless 0, each checkpoint is preceded by it too."""
    ema_half_life_fraction: float = 0.03
    """Half-life of the weight average, as a fraction of the steps taken so far (Karras et al. 2024, sec. 3)."""
    spike_factor: float = 3.0
    """A loss so many times the median of the 100 steps before it is told of; 0: never."""
    peak_tflops: float | None = None
    """What a device can do at most, for MFU; None looks it up by the GPU's name (dense bf16), and a CPU has none."""
    threads_per_rank: int | None = None
    """CPU threads; None leaves what the launcher or OMP_NUM_THREADS says, else one for each core."""
    max_restarts: int = 3
    """How often a SLURM job may start again from the same step, having saved nothing in between."""

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"run.steps={self.steps} must be at least 1")
        if self.max_restarts < 0:
            raise ValueError(f"run.max_restarts={self.max_restarts} must be a number of restarts, or 0 for none")
        for name in ("log_every", "checkpoint_every", "evaluate_every", "sample_every", "check_replicas_every"):
            if getattr(self, name) < 0:
                raise ValueError(f"run.{name}={getattr(self, name)} must be a number of steps, or 0 for never")
        if self.spike_factor < 0:
            raise ValueError(f"run.spike_factor={self.spike_factor} must be above 1, or 0 for never")
        if self.peak_tflops is not None and self.peak_tflops <= 0:
            raise ValueError(f"run.peak_tflops={self.peak_tflops} must be above 0, or null")
        if self.threads_per_rank is not None and self.threads_per_rank < 1:
            raise ValueError(f"run.threads_per_rank={self.threads_per_rank} must be at least 1, or null")
        if self.ema_half_life_fraction <= 0:
            raise ValueError(f"run.ema_half_life_fraction={self.ema_half_life_fraction} must be above 0")


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """Held-out loss on fixed clips, fixed noise and stratified noise levels."""

    max_samples: int = 64
    levels: int = 8
    caption_kind: str = "descriptive"
    train_samples: int = 0
    """Clips that are trained on, evaluated in the same way: the gap to the held-out ones tells of repetition."""

    def __post_init__(self) -> None:
        if self.train_samples < 0:
            raise ValueError(f"evaluation.train_samples={self.train_samples} must be a number of clips, or 0")


@dataclass(frozen=True, kw_only=True)
class SamplesConfig:
    """Videos made along the run, always from the same prompts and seeds."""

    prompts: tuple[str, ...] = ()
    height: int = 64
    width: int = 112
    frames: int = 17
    fps: float | None = None
    """Rate they are made for where the model knows rates; None takes `data.position_fps`."""
    steps: int = 24
    guidance: float = 3.0
    seed: int = 0
    attribution: str | None = None

    def __post_init__(self) -> None:
        if self.fps is not None and not self.fps > 0:
            raise ValueError(f"samples.fps={self.fps} must be above 0, or null")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Everything a run is made of. `folder` is the run folder; the name appears in W&B."""

    name: str
    folder: str
    seed: int
    model: DiTConfig
    parallel: ParallelDims
    data: DataConfig
    flow: FlowConfig
    text: TextConfig
    optim: AdamWConfig
    schedule: ScheduleConfig
    run: LoopConfig
    evaluation: EvaluationConfig
    samples: SamplesConfig
    wandb: WandbConfig
    clip: ClipConfig = field(default_factory=lambda: ClipConfig(fps=8.0, max_frames=17))
    """How `data.clips` are cut."""
    dry_run: bool = False
    allow_changes: bool = False
    """Resume although the saved run was made with other settings; the differences are logged."""

    @property
    def path(self) -> Path:
        return Path(self.folder)

    def __post_init__(self) -> None:
        if not self.name:
            raise ValueError(f"name={self.name!r} must not be empty")

    def defining(self) -> dict[str, Any]:
        """The settings that decide a run's numbers (its length bends the schedule); others at resume are refused."""
        plain = asdict(self)
        kept = {key: plain[key] for key in ("seed", "model", "flow", "optim", "schedule", "data")}
        movable = ["prefetch_steps", "prefetch_bytes", "workers", "read_timeout_s"]
        movable += ["folder", "clips", "online", "codec", "others", "cost"]  # the shards' hashes are compared
        for name in movable:
            del kept["data"][name]
        kept["data"]["order"] = ORDER_VERSION
        kept["text"] = {"pad_to": self.text.pad_to}
        kept["run"] = {name: plain["run"][name] for name in ("steps", "ema_half_life_fraction")}
        return _flat(kept)


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            leaves |= _flat(value, f"{prefix}{key}.")
        else:
            leaves[prefix + key] = list(value) if isinstance(value, tuple) else value
    return leaves


def differences(saved: dict[str, Any], current: dict[str, Any]) -> list[str]:
    """`key: saved -> current` for every setting that is not the same."""
    keys = sorted(saved.keys() | current.keys())
    return [f"{k}: {saved.get(k)} -> {current.get(k)}" for k in keys if saved.get(k) != current.get(k)]


def workload(config: TrainConfig) -> Workload:
    """What the run's layout has to fit."""
    model, data = config.model, config.data
    return Workload(
        num_heads=model.num_heads,
        ffn_dim=model.ffn_dim,
        num_blocks=model.num_blocks,
        tokens_per_pack=data.tokens_per_pack,
        packs_per_step=data.packs_per_step,
    )
