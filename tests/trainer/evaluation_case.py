"""A small run folder as training leaves it: latent shards, a codec, a checkpoint; no engine makes it.

What the captions say is what the clips are: a clip of an even source has mean +LIFT and says so, an odd one -LIFT.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from data.latents import EncodedSample, LatentConfig, LatentWriter
from data.manifest import Manifest
from data.sample_reader import SampleReader
from data.shards import new_folder
from diffusion.timesteps import FlowConfig
from model.codec import CodecConfig, build_codec, codec_identity, save_codec
from model.codec_patch import PatchCodecConfig
from model.dit import DiTConfig, VideoDiT
from model.init import init_weights
from model.text import TextConfig
from parallel.dims import ParallelDims
from parallel.fragments import Piece
from parallel.optim import AdamWConfig
from trainer.batch import PackLayout, PackRecipe, build_microbatch
from trainer.checkpoint import write_checkpoint
from trainer.compose import to_yaml
from trainer.config import DataConfig, EvaluationConfig, LoopConfig, SamplesConfig, TrainConfig
from trainer.mirror import WandbConfig
from trainer.schedule import ScheduleConfig

CHANNELS, TEXT_DIM, LIFT = 2, 4, 1.0
MODEL = DiTConfig(
    num_blocks=1,
    num_heads=2,
    head_dim=6,
    ffn_dim=16,
    text_dim=TEXT_DIM,
    in_channels=CHANNELS,
    out_channels=CHANNELS,
    time_freq_dim=16,
)


def sign(source: int) -> float:
    return 1.0 if source % 2 == 0 else -1.0


def encoded(number: int, source: int, split: str) -> EncodedSample:
    """Clip `number`, of source `source`; sizes differ."""
    generator = torch.Generator().manual_seed(number)
    grid = [(1, 4, 4), (2, 4, 4), (3, 2, 4)][number % 3]
    noise_CTHW = torch.randn(CHANNELS, *grid, generator=generator)
    text_nE = torch.full((2 + number % 2, TEXT_DIM), sign(source))
    return EncodedSample(
        key=f"film/clip{number:03d}",
        latent_CTHW=sign(source) * LIFT + 0.3 * noise_CTHW,
        text={"short": text_nE[:1].clone(), "descriptive": text_nE},
        captions={"short": f"clip {number}", "descriptive": f"a line about clip {number}"},
        source=f"film/shot-{source:03d}",
        split=split,  # type: ignore[arg-type]
        fps=8.0,
        meta={},
    )


@dataclass(frozen=True)
class RunCase:
    """Where the parts of a run lie."""

    root: Path

    @property
    def shards(self) -> Path:
        return self.root / "latents"

    @property
    def codec(self) -> Path:
        return self.root / "codec"

    @property
    def run(self) -> Path:
        return self.root / "dit"

    def config(self, **changes: object) -> TrainConfig:
        settings: dict[str, object] = {
            "name": "case",
            "folder": str(self.run),
            "seed": 0,
            "model": MODEL,
            "parallel": ParallelDims(),
            "data": DataConfig(
                folder=str(self.shards), codec=str(self.codec), tokens_per_pack=48, packs_per_step=1, window=64
            ),
            "flow": FlowConfig(caption_dropout=0.0, condition_mix=(1.0, 0.0, 0.0)),
            "text": TextConfig(),
            "optim": AdamWConfig(),
            "schedule": ScheduleConfig(lr=1e-2),
            "run": LoopConfig(steps=10),
            "evaluation": EvaluationConfig(),
            "samples": SamplesConfig(),
            "wandb": WandbConfig(mode="disabled"),
        }
        return TrainConfig(**{**settings, **changes})  # type: ignore[arg-type]


def write_codec(folder: Path, seed: int = 0) -> str:
    """A codec that only names itself; returns its identity."""
    torch.manual_seed(seed)
    patch = PatchCodecConfig(latent_channels=CHANNELS, width=4, encoder_blocks=0, decoder_blocks=0)
    codec = build_codec(CodecConfig(patch=patch))
    with torch.no_grad():
        for parameter in codec.parameters():
            parameter.copy_(torch.randn_like(parameter))
    save_codec(codec, folder)
    return codec_identity(folder)


def write_shards(folder: Path, *, codec: str, heldout: Sequence[int], training: int = 0) -> Manifest:
    """A clip for each entry of `heldout`, which says its source, and `training` clips of other sources."""
    sources = [*heldout, *range(1000, 1000 + training)]
    with new_folder(folder) as scratch:
        config = LatentConfig(samples_per_shard=16, dtype="float32")
        writer = LatentWriter(scratch, config, patch_size=MODEL.patch_size)
        for number, source in enumerate(sources):
            writer.write(encoded(number, source, "heldout" if number < len(heldout) else "train"))
        identity = {"codec": codec, "text": "t" * 64, "inputs": "i" * 64, "fps": 8.0, "strides": (4, 8, 8)}
        identity |= {"latent_channels": CHANNELS, "text_dim": TEXT_DIM, "caption_kinds": ("short", "descriptive")}
        writer.finish(null_text=torch.zeros(1, TEXT_DIM), identity=identity)
    return Manifest.read(folder)


def write_case(root: Path, *, heldout: Sequence[int], training: int = 0) -> RunCase:
    """Codec and shards; nothing is trained yet."""
    case = RunCase(root)
    write_shards(case.shards, codec=write_codec(case.codec), heldout=heldout, training=training)
    return case


def new_dit(seed: int = 0, *, scale: float = 0.0, model: DiTConfig = MODEL) -> VideoDiT:
    """Initial weights; `scale` moves all of them, so that gates are open and outputs are not zero."""
    dit = VideoDiT(model)
    init_weights(dit, seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in dit.parameters():
            parameter += scale * torch.randn(parameter.shape, generator=generator)
    return dit


def train_dit(case: RunCase, *, steps: int) -> VideoDiT:
    """Plain AdamW on the training clips."""
    config, dit = case.config(), new_dit()
    optimizer = torch.optim.AdamW(dit.parameters(), lr=config.schedule.lr, betas=(0.9, 0.95))
    manifest = Manifest.read(case.shards)
    training = manifest.select("train")
    reader = SampleReader(training)
    samples = [reader.read(int(row)) for row in training.row_numbers]
    reader.close()
    tokens = sum(sample.video_tokens for sample in samples)
    recipe = PackRecipe(
        flow=config.flow,
        seed=0,
        layout=PackLayout(tokens_per_pack=tokens, patch_size=MODEL.patch_size),
        null_text=manifest.null_text(),
    )
    for step in range(steps):
        pack = build_microbatch(samples, recipe, visits=[step] * len(samples))
        loss = (dit(pack.inputs) - pack.target_LP).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return dit


def pieces(kind: str, tensors: dict[str, Tensor]) -> Iterator[Piece]:
    """Every tensor in two rectangles, as two tensor ranks would write it."""
    for name, tensor in tensors.items():
        for part, offset in zip(tensor.detach().clone().tensor_split([1]), (0, 1), strict=True):
            if part.numel():
                corner = (offset, *(0,) * (tensor.dim() - 1))
                yield Piece(kind=kind, name=name, global_shape=tuple(tensor.shape), offset=corner, tensor=part)


def save_run(case: RunCase, step: int, *, ema: VideoDiT, master: VideoDiT | None = None, **changes: object) -> Path:
    """A checkpoint of the run; averaged and raw weights may differ."""
    kinds = {"ema": ema, "master": master or ema}
    return write_checkpoint(
        case.run / "checkpoints",
        [piece for kind, dit in kinds.items() for piece in pieces(kind, dict(dit.named_parameters()))],
        state={"step": step},
        config_yaml=to_yaml(case.config(**changes)),
        rank=0,
        gather=lambda report: [report],
    )
