"""Videos out of a trained DiT, under any layout: many requests at once, both guidance passes in shared packs.

Shapes: C latent channels, T latent frames, H x W latent size, n x E a text embedding.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from diffusion.conditions import FrameLevels
from diffusion.flow import interpolate
from diffusion.guidance import Guidance
from diffusion.noise import draw_noise
from diffusion.sampler import KnownFrames, euler_sample, sampling_times
from diffusion.timesteps import FlowConfig, shift_for_tokens
from model.packed import PackedInputs
from trainer.batch import PackLayout, Segment, count_tokens, fill_packs, pack_segments, unpack_predictions

Predict = Callable[[list[PackedInputs]], list[Tensor]]


@dataclass(frozen=True, kw_only=True)
class SampleRequest:
    """One video to make. The seed fixes its noise, whatever it is made together with."""

    text_nE: Tensor
    latent_shape: tuple[int, int, int, int]
    """(C, T, H, W)."""
    seed: int
    known: KnownFrames | None = None
    """Frames that are given, such as the image to animate."""
    source_CTHW: Tensor | None = None
    """A latent to start from instead of noise (video to video)."""
    fps: float | None = None
    """Rate the video is made for; needed where temporal positions follow it."""
    strength: float = 1.0
    """Noise level to which the source is taken first: near 0 keeps it, 1 forgets it."""

    def __post_init__(self) -> None:
        if not 0 < self.strength <= 1:
            raise ValueError(f"strength={self.strength} must be above 0 (keeps the source) and at most 1 (forgets it)")
        for name, given in (("source", self.source_CTHW), ("known", self.known.latent_CTHW if self.known else None)):
            if given is not None and tuple(given.shape) != self.latent_shape:
                raise ValueError(f"{name} latent is {list(given.shape)}, but {list(self.latent_shape)} is asked for")

    @property
    def start_level(self) -> float:
        """Noise level the integration starts from."""
        return 1.0 if self.source_CTHW is None else self.strength

    def start(self) -> Tensor:
        """The sample at its first noise level."""
        noise_CTHW = draw_noise(self.latent_shape, "sample", self.seed)
        if self.source_CTHW is None:
            return noise_CTHW
        time_T = torch.full((self.latent_shape[1],), self.strength)
        return interpolate(self.source_CTHW.to(noise_CTHW), noise_CTHW, time_T)


@dataclass(frozen=True, kw_only=True)
class SamplerConfig:
    """How the velocity field is followed."""

    steps: int = 30
    guidance: Guidance = field(default_factory=Guidance)
    shift: float | None = None
    """Shift of the noise levels; None takes the one the sample size was trained with."""


def latent_size(
    video_size: tuple[int, int, int], *, strides: tuple[int, int, int], patch_size: tuple[int, int, int]
) -> tuple[int, int, int]:
    """Latent (T, H, W) of a video of (frames, height, width); ValueError naming the nearest sizes off the lattice."""
    problems = []
    cells = (strides[0], strides[1] * patch_size[1], strides[2] * patch_size[2])
    for name, size, cell, rest in zip(("frames", "height", "width"), video_size, cells, (1, 0, 0), strict=True):
        if size < max(rest, 1) or (size - rest) % cell:
            below = (size - rest) // cell * cell + rest
            legal = [str(near) for near in (below, below + cell) if near >= max(rest, 1)]
            rule = f"1 + {cell}k" if rest else f"a multiple of {cell}"
            problems.append(f"{name}={size} is not {rule}: take {' or '.join(legal)}")
    if problems:
        raise ValueError("; ".join(problems))
    frames, height, width = video_size
    return 1 + (frames - 1) // strides[0], height // strides[1], width // strides[2]


def sample_videos(
    predict: Predict,
    requests: Sequence[SampleRequest],
    *,
    sampler: SamplerConfig,
    flow: FlowConfig,
    null_text: Tensor,
    layout: PackLayout,
) -> list[Tensor]:
    """Normalised latents `[C, T, H, W]` of the requests, float32.

    `predict` maps packs to values per token, on whatever ranks. All its calls hold every request's pass with text and,
    where guidance acts, the one without.
    """
    if not requests:
        return []

    def velocity(x: list[Tensor], levels: list[FrameLevels]) -> list[Tensor]:
        guided = [n for n, level in enumerate(levels) if sampler.guidance.needs_null(float(level.time_T.max()))]
        passes = [
            Segment(x_CTHW=x[n], levels=levels[n], text_nE=text_nE, fps=requests[n].fps)
            for n, text_nE in [(n, request.text_nE) for n, request in enumerate(requests)]
            + [(n, null_text) for n in guided]
        ]
        speeds = _predict_segments(predict, passes, layout)
        combined = speeds[: len(requests)]
        for n, null_speed in zip(guided, speeds[len(requests) :], strict=True):
            combined[n] = sampler.guidance.combine(combined[n], null_speed)
        return combined

    times = []
    for request in requests:
        tokens = count_tokens(request.latent_shape, layout.patch_size)
        shift = shift_for_tokens(flow, tokens) if sampler.shift is None else sampler.shift
        times.append(sampling_times(sampler.steps, shift=shift, start=request.start_level))
    start = [request.start() for request in requests]
    return euler_sample(velocity, start, times=times, known=[request.known for request in requests])


def _predict_segments(predict: Predict, segments: list[Segment], layout: PackLayout) -> list[Tensor]:
    """Velocity `[C, T, H, W]` of each segment, in order, float32 on the CPU."""
    tokens = [count_tokens(segment.x_CTHW.shape, layout.patch_size) for segment in segments]
    packs = [[segments[n] for n in group] for group in fill_packs(tokens, layout.tokens_per_pack)]
    predictions = predict([pack_segments(pack, layout) for pack in packs])
    return [
        speed
        for pack, prediction_LP in zip(packs, predictions, strict=True)
        for speed in unpack_predictions(prediction_LP.float().cpu(), pack, layout.patch_size)
    ]
