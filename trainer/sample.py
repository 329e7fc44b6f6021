"""Videos for prompts on the command line: text to video, image to video, video to video.

    python -m trainer.sample run=runs/demo/dit prompts='["a rabbit in a meadow"]'

Writes an mp4 and a GIF for each prompt, and `sheet.png` and `sheet.gif` with all of them beside their prompts.
"""

import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import hydra
import torch
from einops import rearrange
from omegaconf import DictConfig
from torch import Tensor

from data.decode import DecodeError, decode_first_frames
from diffusion.guidance import Guidance
from diffusion.sampler import KnownFrames
from model.codec import codec_identity, load_codec
from model.codec_interface import VideoCodec
from model.text import TextEncoder
from parallel.launch import Launch
from trainer.batch import PackLayout, count_tokens
from trainer.compose import to_dataclass, user_errors
from trainer.config import TrainConfig
from trainer.device import choose_device
from trainer.inference import Predictor, load_for_inference
from trainer.media import SheetBlock, SheetRow, to_frames, write_gif, write_moving_sheet, write_mp4, write_sheet
from trainer.sampling import SamplerConfig, SampleRequest, latent_size, sample_videos

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class SampleConfig:
    """What to make. None means as in training."""

    run: str
    prompts: str | tuple[str, ...]
    """One prompt, or a list of them."""
    out: str | None = None
    """Folder of the videos; None is `videos` in the run folder."""
    step: int | None = None
    use_ema: bool = True
    codec: str | None = None
    height: int | None = None
    width: int | None = None
    frames: int | None = None
    fps: float = 8.0
    """Rate at which the videos play and a source is read. The model knows frames, not seconds, unless it was trained
    with `data.position_fps`: then also the rate it makes them for."""
    steps: int = 30
    guidance: float = 4.0
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    shift: float | None = None
    seed: int = 0
    """Of the first prompt; each further one takes the next."""
    image: str | None = None
    """An image that becomes the first frame of every video."""
    source: str | None = None
    """A clip that every video starts from."""
    strength: float = 0.6
    """How far the source is taken to noise first: near 0 keeps it, 1 forgets it."""
    attribution: str | None = None
    """Written under every sheet."""
    device: str = "auto"
    dtype: Literal["float32", "bfloat16"] = "float32"
    threads: int | None = None
    """CPU threads; None leaves what OMP_NUM_THREADS says, else one for each core."""

    def __post_init__(self) -> None:
        if not self.prompts:
            raise ValueError("prompts= asks for nothing; give one in quotes, or a list: prompts='[\"a rabbit\"]'")
        for name in ("image", "source"):
            path = getattr(self, name)
            if path is not None and not Path(path).is_file():
                raise ValueError(f"{name}={path} is not a file")

    @property
    def all_prompts(self) -> tuple[str, ...]:
        return (self.prompts,) if isinstance(self.prompts, str) else self.prompts


@dataclass(frozen=True, kw_only=True)
class Given:
    """Frames uint8 `[T, 3, H, W]` on the requested size that the videos start from, each with its latent."""

    image_T3HW: Tensor | None = None
    source_T3HW: Tensor | None = None
    known: KnownFrames | None = None
    source_CTHW: Tensor | None = None

    @property
    def title(self) -> str:
        start = "Text" if self.image_T3HW is None else "Image"
        return f"{start if self.source_T3HW is None else 'Video'} to video"


def run(config: SampleConfig) -> None:
    """Load a run, sample, write everything."""
    Launch.require_single("trainer.sample")
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    device = choose_device(config.device)
    model = load_for_inference(Path(config.run), step=config.step, use_ema=config.use_ema)
    trained, codec_folder = model.config, Path(config.codec or model.config.data.codec)
    codec = load_codec(codec_folder).to(device).eval()
    model.require("codec", codec_identity(codec_folder), given=f"codec={codec_folder}")
    size = video_size(config, trained)
    patch_size = trained.model.patch_size
    grid = latent_size(size, strides=codec.strides, patch_size=patch_size)
    given = read_given(config, codec, size)
    encoder = TextEncoder(trained.text, device=device)
    model.require("text", encoder.identity(), given=f"the text encoder of {config.run}")
    requests = [
        SampleRequest(
            text_nE=text_nE,
            latent_shape=(codec.latent_channels, *grid),
            seed=config.seed + number,
            known=given.known,
            source_CTHW=given.source_CTHW,
            strength=config.strength,
            fps=config.fps,
        )
        for number, text_nE in enumerate(encoder.encode(config.all_prompts))
    ]
    log.info("%s: %d of %d x %d x %d, %d steps", given.title, len(requests), *size, config.steps)
    latents = sample_videos(
        Predictor(model.dit.to(device, getattr(torch, config.dtype))),
        requests,
        sampler=SamplerConfig(
            steps=config.steps,
            guidance=Guidance(scale=config.guidance, interval=config.guidance_interval),
            shift=config.shift,
        ),
        flow=trained.flow,
        null_text=encoder.null_embedding(),
        layout=PackLayout.of(trained, tokens_per_pack=count_tokens(requests[0].latent_shape, patch_size)),
    )
    with torch.inference_mode():
        videos = [to_frames(codec.to_video(latent_CTHW[None].to(device))[0]) for latent_CTHW in latents]
    title = f"{given.title}, step {model.step}"
    write_videos(config, videos, given, title=title, footer=config.attribution or trained.samples.attribution)


def video_size(config: SampleConfig, trained: TrainConfig) -> tuple[int, int, int]:
    """(frames, height, width) asked for; what is left open is as in the samples along the run."""
    return (
        config.frames or trained.samples.frames,
        config.height or trained.samples.height,
        config.width or trained.samples.width,
    )


def read_given(config: SampleConfig, codec: VideoCodec, size: tuple[int, int, int]) -> Given:
    """Image and source of the command line, on the requested size, and their latents."""
    frames, height, width = size
    image = source = known = source_CTHW = None
    if config.image is not None:
        image = read_frames(Path(config.image), (1, height, width), fps=config.fps)
        known = KnownFrames.prefix(_encode(codec, image), codec.latent_grid(size)[0])
    if config.source is not None:
        source = read_frames(Path(config.source), (frames, height, width), fps=config.fps)
        source_CTHW = _encode(codec, source)
    return Given(image_T3HW=image, source_T3HW=source, known=known, source_CTHW=source_CTHW)


def read_frames(path: Path, size: tuple[int, int, int], *, fps: float) -> Tensor:
    """The first frames of a clip (or an image) scaled to cover (frames, height, width), cropped around the middle."""
    extension = path.suffix.removeprefix(".").lower()
    try:
        frames_T3HW = decode_first_frames(path.read_bytes(), size, fps=fps, extension=extension)
    except DecodeError as error:
        raise ValueError(f"{path}: {error}") from error
    if len(frames_T3HW) < size[0]:
        raise ValueError(
            f"{path} has {len(frames_T3HW)} frames at {fps:g} frames/s, but {size[0]} are asked for: "
            "give a longer clip, a lower frames= or a higher fps="
        )
    return frames_T3HW


@torch.inference_mode()
def _encode(codec: VideoCodec, frames_T3HW: Tensor) -> Tensor:
    video_B3THW = rearrange(frames_T3HW.float() / 127.5 - 1, "t c h w -> 1 c t h w")
    return codec.to_latent(video_B3THW.to(codec.latent_mean_C.device))[0].float().cpu()


def write_videos(config: SampleConfig, videos: list[Tensor], given: Given, *, title: str, footer: str | None) -> None:
    """An mp4 and a GIF for each video; a still and a moving sheet of all."""
    out, blocks = Path(config.out or Path(config.run) / "videos"), []
    for number, (prompt, frames_T3HW) in enumerate(zip(config.all_prompts, videos, strict=True)):
        name = f"{number:02d}_{_slug(prompt)}"
        write_mp4(out / f"{name}.mp4", frames_T3HW, fps=config.fps)
        write_gif(out / f"{name}.gif", frames_T3HW, fps=config.fps)
        log.info("%s", out / f"{name}.mp4")
        rows = [SheetRow(label=f"seed {config.seed + number}", frames_T3HW=frames_T3HW)]
        if given.source_T3HW is not None:
            rows = [SheetRow(label="source", frames_T3HW=given.source_T3HW), *rows]
        if given.image_T3HW is not None:
            rows = [SheetRow(label="first frame", frames_T3HW=given.image_T3HW), *rows]
        blocks.append(SheetBlock(heading=prompt, rows=rows))
    write_sheet(out / "sheet.png", blocks, title=title, footer=footer)
    write_moving_sheet(out / "sheet.gif", blocks, title=title, footer=footer, fps=config.fps)
    log.info("%s", out / "sheet.png")


def _slug(prompt: str) -> str:
    """The first words of a prompt as a file name."""
    return re.sub(r"[^a-z0-9]+", "_", prompt.lower()).strip("_")[:40].strip("_") or "prompt"


@user_errors
@hydra.main(config_path="../conf", config_name="sample", version_base="1.3")
@user_errors
def main(config: DictConfig) -> None:
    """Hydra's entry."""
    run(to_dataclass(SampleConfig, config))


if __name__ == "__main__":
    main()
