"""The root config of codec training: one dataclass a section, filled from `conf/train_vae.yaml` by Hydra."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from data.lattice import ClipConfig
from data.split import split_of
from model.codec import CodecConfig
from trainer.mirror import WandbConfig
from trainer.schedule import ScheduleConfig


@dataclass(frozen=True, kw_only=True)
class CodecLossConfig:
    """What the codec is trained towards; every term is a mean, so that clip sizes may differ."""

    reconstruction: Literal["mse", "l1"] = "mse"
    latent_noise: float = 0.0
    """Deviation of the noise added to latents before decoding (codecs without a variance of their own)."""
    latent_penalty: float = 0.0
    """Weight of the mean squared latent (codecs without a variance of their own)."""
    kl: float = 0.0
    """Weight of the divergence from a standard normal per latent value (codecs with a variance)."""
    perceptual: float = 0.0
    features: str | None = None
    """Safetensors file of VGG-16 for the perceptual term."""

    def __post_init__(self) -> None:
        for name in ("latent_noise", "latent_penalty", "kl", "perceptual"):
            if getattr(self, name) < 0:
                raise ValueError(f"loss.{name}={getattr(self, name)} must not be negative")
        if (self.perceptual > 0) != (self.features is not None):
            raise ValueError(
                f"loss.perceptual={self.perceptual} with loss.features={self.features}: the term needs both a weight "
                "and the file of a feature network"
            )


@dataclass(frozen=True, kw_only=True)
class CodecOptimConfig:
    """Fitted shortcuts move by AdamW at `shortcut_lr_ratio` of the rate and without decay."""

    muon: bool = True
    """Matrices and kernels move by Muon, vectors by AdamW; otherwise all by AdamW."""
    momentum: float = 0.95
    """Muon's."""
    beta1: float = 0.9
    beta2: float = 0.99
    eps: float = 1e-8
    weight_decay: float = 0.01
    clip_norm: float = 0.3
    shortcut_lr_ratio: float = 0.1

    def __post_init__(self) -> None:
        if self.clip_norm <= 0:
            raise ValueError(f"optim.clip_norm={self.clip_norm} must be above 0")


@dataclass(frozen=True, kw_only=True)
class CodecDataConfig:
    """Which clips make a batch. Clips of one size are batched together."""

    pixels_per_batch: int
    """Frames x height x width of the clips of one step, at most (a larger clip is a batch alone)."""
    heldout_fraction: float = 0.1
    """Share of the sources kept for measuring; give `trainer.encode` the same."""
    heldout_clips: int = 64
    """At most so many held-out clips are measured on."""
    pool_bytes: int = 2_000_000_000
    """Memory for training clips; a larger set is trained on pool by pool."""
    augment: bool = True
    """Mirror, turn upside down, and shift batches off the patch grid, each at random."""

    def __post_init__(self) -> None:
        split_of("", self.heldout_fraction)
        for name in ("pixels_per_batch", "heldout_clips", "pool_bytes"):
            if getattr(self, name) < 1:
                raise ValueError(f"data.{name}={getattr(self, name)} must be at least 1")


@dataclass(frozen=True, kw_only=True)
class CodecRunConfig:
    """How long, on what, and how often it reports. A period of 0 means never."""

    steps: int
    log_every_s: float = 5.0
    evaluate_every: int = 200
    checkpoint_every: int = 200
    device: str = "auto"
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of the arithmetic; weights and optimizer stay in float32."""
    threads: int | None = None
    sheet_clips: int = 6

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"run.steps={self.steps} must be at least 1")
        if self.log_every_s <= 0 or self.sheet_clips < 1:
            raise ValueError(f"run.log_every_s={self.log_every_s}, sheet_clips={self.sheet_clips} must be above 0")


@dataclass(frozen=True, kw_only=True)
class TrainVaeConfig:
    """Everything codec training is made of. `folder` becomes the codec folder."""

    clips: str
    folder: str
    seed: int
    codec: CodecConfig
    clip: ClipConfig
    data: CodecDataConfig
    loss: CodecLossConfig
    optim: CodecOptimConfig
    schedule: ScheduleConfig
    run: CodecRunConfig
    wandb: WandbConfig
    attribution: str | None = None
    """Words that must stand by the pictures."""
    dry_run: bool = False
    replace: bool = False
    """Start again although the folder holds training with other settings."""

    @property
    def path(self) -> Path:
        return Path(self.folder)

    def __post_init__(self) -> None:
        if self.codec.strides != self.clip.strides:
            raise ValueError(
                f"clip.strides={list(self.clip.strides)}, but the codec has strides {list(self.codec.strides)}: "
                "set clip.strides to the codec's"
            )
        is_point = self.codec.patch is not None
        if is_point and self.loss.kl:
            raise ValueError(f"loss.kl={self.loss.kl}, but the patch codec has no variance: set loss.latent_noise")
        if not is_point and (self.loss.latent_noise or self.loss.latent_penalty):
            raise ValueError(
                f"loss.latent_noise={self.loss.latent_noise}, latent_penalty={self.loss.latent_penalty}, but the wan "
                "codec has a variance of its own: set loss.kl"
            )

    def defining(self) -> dict[str, Any]:
        """The settings that decide the numbers, flat and as JSON holds them; a resume under others is refused."""
        plain = asdict(self)
        kept = {key: plain[key] for key in ("seed", "codec", "clip", "data", "loss", "optim", "schedule")}
        kept["run"] = {key: plain["run"][key] for key in ("steps", "precision")}
        return _leaves(kept)


def _leaves(tree: Any, name: str = "") -> dict[str, Any]:
    if isinstance(tree, dict):
        return {path: leaf for key, item in tree.items() for path, leaf in _leaves(item, f"{name}.{key}").items()}
    return {name.removeprefix("."): list(tree) if isinstance(tree, tuple) else tree}
