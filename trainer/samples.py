"""Videos along the run: the same prompts and seeds each time, so that pictures can be compared."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data.manifest import Manifest
from diffusion.guidance import Guidance
from diffusion.timesteps import FlowConfig
from model.codec import load_codec
from model.text import TextEncoder
from parallel.engine import TrainEngine
from parallel.runtime import Grid
from trainer.batch import PackLayout, count_tokens
from trainer.config import SamplesConfig, TrainConfig
from trainer.media import SheetBlock, SheetRow, to_frames, write_mp4, write_sheet
from trainer.metrics import Metrics
from trainer.sampling import SamplerConfig, SampleRequest, latent_size, sample_videos

_FPS = 8.0
"""Where neither the settings nor the shards know of one rate."""


@dataclass(frozen=True, kw_only=True)
class SampleSet:
    """What is sampled, with the prompts embedded once for the whole run."""

    wanted: SamplesConfig
    requests: tuple[SampleRequest, ...]
    flow: FlowConfig
    null_text: Tensor
    layout: PackLayout
    codec: Path
    fps: float
    """Rate that the videos are shown at."""


def sample_set(config: TrainConfig, manifest: Manifest, *, multiple: int) -> SampleSet | None:
    """The prompts of the config; None where nothing is to be sampled.

    Raises:
        ValueError: the shards hold captions of another text encoder.
    """
    wanted = config.samples
    if not config.run.sample_every or not wanted.prompts:
        return None
    encoder = TextEncoder(config.text)
    manifest.require_identity(text=encoder.identity())
    patch_size = config.model.patch_size
    size = (wanted.frames, wanted.height, wanted.width)
    grid = latent_size(size, strides=manifest.identity.strides, patch_size=patch_size)
    requests = tuple(
        SampleRequest(
            text_nE=text_nE,
            latent_shape=(config.model.out_channels, *grid),
            seed=wanted.seed + number,
            fps=wanted.fps or config.data.position_fps,
        )
        for number, text_nE in enumerate(encoder.encode(wanted.prompts))
    )
    tokens = count_tokens(requests[0].latent_shape, patch_size)
    # As many videos to a pack as in training, so that a forward pass is worth its communication.
    together = max(1, min(config.data.tokens_per_pack // tokens, 2 * len(requests)))
    return SampleSet(
        wanted=wanted,
        requests=requests,
        flow=config.flow,
        null_text=encoder.null_embedding(),
        layout=PackLayout.of(config, tokens_per_pack=-(-together * tokens // multiple) * multiple),
        codec=Path(config.data.codec),
        fps=wanted.fps or config.data.position_fps or manifest.identity.fps or _FPS,
    )


def write_samples(
    samples: SampleSet, *, engine: TrainEngine, grid: Grid, metrics: Metrics, step: int, path: Path
) -> dict[str, Any]:
    """Sample with the averaged weights; write one sheet and a video of each prompt beside it. Collective.

    Returns what was written, with paths from the run folder; {} on ranks that write nothing.
    """
    wanted = samples.wanted
    with engine.ema_weights():
        latents = sample_videos(
            engine.predict,
            samples.requests,
            sampler=SamplerConfig(steps=wanted.steps, guidance=Guidance(scale=wanted.guidance)),
            flow=samples.flow,
            null_text=samples.null_text,
            layout=samples.layout,
        )
    if not metrics.speaks:
        return {}
    codec = load_codec(samples.codec).to(grid.device).eval()
    with torch.inference_mode():
        videos = [to_frames(codec.to_video(latent_CTHW[None].to(grid.device))[0]) for latent_CTHW in latents]
    blocks = [
        SheetBlock(heading=prompt, rows=[SheetRow(label=f"seed {wanted.seed + number}", frames_T3HW=frames_T3HW)])
        for number, (prompt, frames_T3HW) in enumerate(zip(wanted.prompts, videos, strict=True))
    ]
    shown: list[dict[str, Any]] = [
        {"path": f"{path.parent.name}/{path.stem}_{number}.mp4", "prompt": prompt, "seed": wanted.seed + number}
        for number, prompt in enumerate(wanted.prompts)
    ]
    with metrics.guarded(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_sheet(path, blocks, title=f"step {step}", footer=wanted.attribution)
        for video, frames_T3HW in zip(shown, videos, strict=True):
            write_mp4(path.parent / Path(video["path"]).name, frames_T3HW, fps=samples.fps)
    return {"sheet": f"{path.parent.name}/{path.name}", "videos": shown}
