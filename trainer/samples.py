"""Videos along the run: the same prompts and seeds each time, so that pictures can be compared."""

from pathlib import Path

import torch

from diffusion.guidance import Guidance
from model.codec import load_codec
from model.text import TextEncoder
from trainer.batch import count_tokens
from trainer.build import Run
from trainer.media import SheetBlock, SheetRow, to_frames, write_sheet
from trainer.sampling import SamplerConfig, SampleRequest, latent_size, sample_videos


def write_samples(run: Run, step: int) -> None:
    """Sample every prompt of the config with the averaged weights and write one sheet; collective."""
    wanted = run.config.samples
    if not wanted.prompts:
        return
    codec = load_codec(Path(run.config.data.codec)).eval()
    encoder = TextEncoder(run.config.text)
    run.manifest.require_identity(text=encoder.identity())
    patch_size = run.config.model.patch_size
    size = (wanted.frames, wanted.height, wanted.width)
    grid = latent_size(size, strides=codec.strides, patch_size=patch_size)
    requests = [
        SampleRequest(text_nE=text_nE, latent_shape=(codec.latent_channels, *grid), seed=wanted.seed + number)
        for number, text_nE in enumerate(encoder.encode(wanted.prompts))
    ]
    tokens = count_tokens(requests[0].latent_shape, patch_size)
    # As many videos to a pack as in training, so that a forward pass is worth its communication.
    together = max(1, min(run.config.data.tokens_per_pack // tokens, 2 * len(requests)))
    tensor = run.grid.tensor_size
    with run.engine.ema_weights():
        latents = sample_videos(
            run.engine.predict,
            requests,
            sampler=SamplerConfig(steps=wanted.steps, guidance=Guidance(scale=wanted.guidance)),
            flow=run.config.flow,
            null_text=encoder.null_embedding(),
            tokens_per_pack=-(-together * tokens // tensor) * tensor,
            patch_size=patch_size,
        )
    if not run.metrics.speaks:
        return
    with torch.inference_mode():
        videos = [to_frames(codec.to_video(latent_CTHW[None])[0]) for latent_CTHW in latents]
    blocks = [
        SheetBlock(heading=prompt, rows=[SheetRow(label=f"seed {wanted.seed + number}", frames_T3HW=frames_T3HW)])
        for number, (prompt, frames_T3HW) in enumerate(zip(wanted.prompts, videos, strict=True))
    ]
    path = run.config.path / "samples" / f"step_{step:08d}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_sheet(path, blocks, title=f"step {step}", footer=wanted.attribution)
    run.metrics.write_sheet(step, path, caption=f"step {step}")
    run.metrics.say(f"step {step}: samples in {path}")
