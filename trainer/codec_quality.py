"""How good a codec is on held-out clips, beside plain resampling and PCA with the same number of values."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data.clips import Clip
from model.codec import VideoCodec
from model.codec_patch import PatchCodec, PatchCodecConfig
from model.quality import psnr, resample_with, ssim
from trainer.codec_clips import videos_of
from trainer.media import SheetBlock, SheetRow, to_frames, write_sheet

Reconstruct = Callable[[Tensor], Tensor]
_TIME_FACTORS = (1, 2, 3, 4)


@dataclass(frozen=True, kw_only=True)
class Quality:
    """Means over clips; every clip weighs the same."""

    psnr_db: float
    ssim: float
    psnr_db_of_clip: dict[str, float]


@torch.inference_mode()
def measure(reconstruct: Reconstruct, clips: Sequence[Clip], device: torch.device) -> Quality:
    """PSNR and SSIM of what `reconstruct` makes of each clip `[1, 3, T, H, W]`."""
    noise, likeness = [], []
    for video_B3THW in videos_of(clips, device):
        made_B3THW = reconstruct(video_B3THW)
        noise.append(float(psnr(made_B3THW, video_B3THW)))
        likeness.append(float(ssim(made_B3THW, video_B3THW)))
    names = [clip.key for clip in clips]
    return Quality(
        psnr_db=sum(noise) / len(noise),
        ssim=sum(likeness) / len(likeness),
        psnr_db_of_clip={name: round(value, 4) for name, value in zip(names, noise, strict=True)},
    )


def reconstruct_with(codec: VideoCodec) -> Reconstruct:
    """Through the latents and back."""
    return lambda video_B3THW: codec.decode(codec.encode(video_B3THW)).float()


def measure_resampling(codec: VideoCodec, clips: Sequence[Clip], device: torch.device) -> Quality:
    """Trilinear resampling through as many values as `codec` has latents, at the time factor that suits best."""

    def values(video_B3THW: Tensor) -> int:
        t, h, w = codec.latent_grid((video_B3THW.shape[2], video_B3THW.shape[3], video_B3THW.shape[4]))
        return codec.latent_channels * t * h * w

    def through(factor: int) -> Reconstruct:
        return lambda video: resample_with(video, values=values(video), time_factor=factor)

    measured = (measure(through(factor), clips, device) for factor in _TIME_FACTORS)
    return max(measured, key=lambda quality: quality.psnr_db)


def pca_codec(codec: VideoCodec, training: Sequence[Clip], device: torch.device) -> PatchCodec:
    """The linear codec with as many values as `codec` has latents, fitted on `training`."""
    config = PatchCodecConfig(
        latent_channels=codec.latent_channels, strides=codec.strides, encoder_blocks=0, decoder_blocks=0
    )
    linear = PatchCodec(config).to(device)
    linear.fit_shortcuts(videos_of(training, device))
    return linear


@torch.inference_mode()
def latent_statistics(codec: VideoCodec, clips: Iterable[Clip], device: torch.device) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each latent channel over all values of all clips, float64 `[C]`."""
    count = 0
    total = torch.zeros(codec.latent_channels, dtype=torch.float64)
    squares = torch.zeros_like(total)
    for video_B3THW in videos_of(clips, device):
        z_CN = codec.encode(video_B3THW)[0].flatten(1).double().cpu()
        count += z_CN.shape[1]
        total += z_CN.sum(1)
        squares += z_CN.square().sum(1)
    mean_C = total / count
    return mean_C, (squares / count - mean_C.square()).clamp_min(1e-12).sqrt()


def table(qualities: dict[str, Quality]) -> list[str]:
    """The comparison as lines of text."""
    width = max(len(name) for name in qualities)
    lines = [f"{'held-out clips'.ljust(width)}  PSNR dB    SSIM"]
    return lines + [f"{name.ljust(width)}  {q.psnr_db:7.2f}  {q.ssim:6.3f}" for name, q in qualities.items()]


def to_json(qualities: dict[str, Quality]) -> dict[str, Any]:
    """Means under `heldout_psnr` and `heldout_ssim`, everything under `heldout`."""
    return {
        "heldout_psnr": {name: quality.psnr_db for name, quality in qualities.items()},
        "heldout_ssim": {name: quality.ssim for name, quality in qualities.items()},
        "heldout": {name: asdict(quality) for name, quality in qualities.items()},
    }


@torch.inference_mode()
def write_reconstructions(
    path: Path, codec: VideoCodec, clips: Sequence[Clip], *, device: torch.device, footer: str | None
) -> None:
    """A sheet of originals beside their reconstructions."""
    blocks = []
    for clip, video_B3THW in zip(clips, videos_of(clips, device), strict=True):
        made_B3THW = reconstruct_with(codec)(video_B3THW)
        made = SheetRow(
            label=f"reconstruction, {float(psnr(made_B3THW, video_B3THW)):.1f} dB", frames_T3HW=to_frames(made_B3THW[0])
        )
        blocks.append(
            SheetBlock(heading=clip.key, rows=[SheetRow(label="original", frames_T3HW=clip.frames_T3HW), made])
        )
    values = codec.latent_channels / (3 * codec.strides[0] * codec.strides[1] * codec.strides[2])
    title = f"Held-out clips through the codec: 1 latent value for {1 / values:.0f} of video"
    write_sheet(path, blocks, title=title, footer=footer)


def pick_spread(clips: Sequence[Clip], count: int) -> list[Clip]:
    """Up to `count` clips of different sources, the longest of each, spread over the list."""
    longest: dict[str, Clip] = {}
    for clip in clips:
        standing = longest.get(clip.source)
        if standing is None or len(clip.frames_T3HW) > len(standing.frames_T3HW):
            longest[clip.source] = clip
    chosen = list(longest.values())
    step = max(1, len(chosen) // count)
    return chosen[::step][:count]
