"""From samples to one pack of model inputs and flow-matching targets.

Shapes: L tokens of a pack, P values of a patch, C x T x H x W a latent, n x E a text embedding. Everything that is
drawn is keyed by (run seed, visit, sample key), so a sample's part in the loss does not depend on the layout.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from data.loader import Sample
from diffusion.conditions import FrameLevels, draw_noise_levels, drop_caption
from diffusion.flow import interpolate, velocity_target
from diffusion.noise import draw_noise, keyed_generator
from diffusion.timesteps import FlowConfig
from model.packed import PackedInputs, patch_positions, patchify, unpatchify
from model.text import pad_text
from trainer.config import TrainConfig


@dataclass(frozen=True, kw_only=True)
class PackLayout:
    """How samples are laid out in a pack."""

    tokens_per_pack: int
    patch_size: tuple[int, int, int]
    pad_text_to: int | None = None
    """Texts are given zeros up to this many tokens."""
    position_fps: float | None = None
    """Temporal positions count frames of this rate; None counts those of each sample."""

    @staticmethod
    def of(config: TrainConfig, *, tokens_per_pack: int | None = None) -> "PackLayout":
        """That of a training run, maybe with packs of another size."""
        return PackLayout(
            tokens_per_pack=tokens_per_pack or config.data.tokens_per_pack,
            patch_size=config.model.patch_size,
            pad_text_to=config.text.pad_to,
            position_fps=config.data.position_fps,
        )

    def frame_step(self, fps: float | None) -> float | None:
        """Distance of neighbouring latent frames on the temporal axis, at `fps`; None is 1, in whole numbers."""
        if self.position_fps is None:
            return None
        assert fps is not None and fps > 0, f"positions at {self.position_fps} frames/s need the sample's rate: {fps=}"
        return self.position_fps / fps


@dataclass(frozen=True, kw_only=True)
class Segment:
    """One sample as the DiT sees it, but for what the layout says."""

    x_CTHW: Tensor
    levels: FrameLevels
    text_nE: Tensor
    fps: float | None = None
    """Rate of its frames; needed where temporal positions follow it."""


@dataclass(frozen=True, kw_only=True)
class Microbatch:
    """One pack with what it is trained on. Weights are 0 on condition frames and padding, 1 elsewhere."""

    inputs: PackedInputs
    target_LP: Tensor | None
    """None where the stage does not read it."""
    weight_L: Tensor
    keys: tuple[str, ...]
    """Samples in the order of the first segments of `inputs`,"""
    buckets: tuple[str, ...]
    """and the bucket of each."""


@dataclass(frozen=True, kw_only=True)
class PackRecipe:
    """How the packs of a run are made, and which of their parts that come from latents this rank reads."""

    flow: FlowConfig
    seed: int
    layout: PackLayout
    null_text: Tensor
    patches: bool = True
    """Read by the first stage of a pipeline."""
    targets: bool = True
    """Read by the last stage of a pipeline."""


@dataclass(frozen=True, kw_only=True)
class EvaluationItem:
    """A sample at a fixed noise level; the caption may be another sample's."""

    sample: Sample
    level: float
    text_from: Sample


def build_microbatch(samples: Sequence[Sample], recipe: PackRecipe, *, visits: Sequence[int]) -> Microbatch:
    """Draw noise levels, conditions, captions and noise for one pack of samples, anew for each visit of a sample.

    Without patches and targets no noise is drawn, and the samples need no latents; all else is the same.
    """
    levels, texts, noised, targets = [], [], [], []
    for sample, visit in zip(samples, visits, strict=True):
        key = (recipe.seed, visit, sample.key)
        frame_levels = draw_noise_levels(
            recipe.flow,
            num_frames=sample.latent_shape[1],
            num_tokens=count_tokens(sample.latent_shape, recipe.layout.patch_size),
            generator=keyed_generator(*key, "time"),
        )
        levels.append(frame_levels)
        texts.append(_draw_text(sample, recipe.flow, keyed_generator(*key, "caption"), recipe.null_text))
        if not (recipe.patches or recipe.targets):
            continue
        x0_CTHW, noise_CTHW = _latent_of(sample), draw_noise(sample.latent_shape, *key, "noise")
        if recipe.patches:
            noised.append(interpolate(x0_CTHW, noise_CTHW, frame_levels.time_T))
        if recipe.targets:
            targets.append(velocity_target(x0_CTHW, noise_CTHW))
    shapes, rates = [sample.latent_shape for sample in samples], [sample.fps for sample in samples]
    inputs = _lay_out(shapes, levels, texts, rates, recipe.layout)
    if recipe.patches:
        inputs = replace(inputs, patch_LP=_pack_latents(noised, recipe.layout))
    target_LP = _pack_latents(targets, recipe.layout) if recipe.targets else None
    return _microbatch(inputs, target_LP, samples)


def build_evaluation_microbatch(
    items: Sequence[EvaluationItem],
    layout: PackLayout,
    *,
    seed: int,
    null_text: Tensor,
    caption_kind: str | None,
) -> Microbatch:
    """A pack of fixed noise levels, all frames alike, and noise fixed per (seed, sample, level).

    `caption_kind` None evaluates without text. The same item with another's caption meets the same noise, so the two
    losses are paired.
    """
    segments, targets = [], []
    for item in items:
        x0_CTHW = _latent_of(item.sample)
        noise_CTHW = draw_noise(tuple(x0_CTHW.shape), seed, "eval", item.sample.key, f"{item.level:.6f}")
        levels = FrameLevels.same(item.level, x0_CTHW.shape[1])
        text_nE = null_text if caption_kind is None else text_of(item.text_from, caption_kind)
        x_CTHW = interpolate(x0_CTHW, noise_CTHW, levels.time_T)
        segments.append(Segment(x_CTHW=x_CTHW, levels=levels, text_nE=text_nE, fps=item.sample.fps))
        targets.append(velocity_target(x0_CTHW, noise_CTHW))
    inputs = pack_segments(segments, layout)
    target_LP = _pack_latents(targets, layout)
    return _microbatch(inputs, target_LP, [item.sample for item in items])


def text_of(sample: Sample, caption_kind: str) -> Tensor:
    """The embedding `[n, E]` of one of a sample's captions."""
    if caption_kind not in sample.text:
        raise ValueError(
            f"sample {sample.key} has no caption of kind {caption_kind!r}; it has {', '.join(sorted(sample.text))}"
        )
    return sample.text[caption_kind].float()


def _latent_of(sample: Sample) -> Tensor:
    assert sample.latent_CTHW is not None, f"sample {sample.key} was read without its latent"
    return sample.latent_CTHW.float()


def _draw_text(sample: Sample, flow: FlowConfig, generator: torch.Generator, null_text: Tensor) -> Tensor:
    """One of the sample's captions, all kinds equally likely, or the null text."""
    kinds = sorted(sample.text)
    choice = int(torch.randint(max(len(kinds), 1), (), generator=generator))
    if drop_caption(flow, generator) or not kinds:
        return null_text
    return sample.text[kinds[choice]].float()


def count_tokens(latent_shape: Sequence[int], patch_size: tuple[int, int, int]) -> int:
    """Video tokens of a latent `[C, T, H, W]`."""
    return math.prod(latent_shape[1:]) // math.prod(patch_size)


def fill_packs(tokens: Sequence[int], tokens_per_pack: int) -> list[list[int]]:
    """Indices of `tokens` in packs, in order: a new pack where the next does not fit."""
    packs: list[list[int]] = []
    left = 0
    for index, length in enumerate(tokens):
        if length > tokens_per_pack:
            raise ValueError(
                f"a sample of {length} tokens does not fit tokens_per_pack={tokens_per_pack}; "
                "make it smaller or shorter, or raise tokens_per_pack"
            )
        if not packs or length > left:
            packs.append([])
            left = tokens_per_pack
        packs[-1].append(index)
        left -= length
    return packs


def pack_segments(segments: Sequence[Segment], layout: PackLayout) -> PackedInputs:
    """Lay segments end to end; where they do not fill the pack, a segment of padding follows.

    Each (segment, noise level, condition or not) is one row of the conditioning table.
    """
    latents = [segment.x_CTHW for segment in segments]
    levels = [segment.levels for segment in segments]
    texts = [segment.text_nE.to(segment.x_CTHW) for segment in segments]
    rates = [segment.fps for segment in segments]
    inputs = _lay_out([x_CTHW.shape for x_CTHW in latents], levels, texts, rates, layout)
    return replace(inputs, patch_LP=_pack_latents(latents, layout))


def _lay_out(
    latent_shapes: Sequence[Sequence[int]],
    levels: Sequence[FrameLevels],
    texts: Sequence[Tensor],
    rates: Sequence[float | None],
    layout: PackLayout,
) -> PackedInputs:
    """All of a pack but its patches."""
    grids = [_patch_grid(shape, layout.patch_size) for shape in latent_shapes]
    lengths = [math.prod(grid) for grid in grids]
    positions = [patch_positions(grid, layout.frame_step(fps)) for grid, fps in zip(grids, rates, strict=True)]
    texts = [pad_text(text_nE, layout.pad_text_to) for text_nE in texts]
    rows, row_levels = _conditioning_rows(levels, grids)
    padding = layout.tokens_per_pack - sum(lengths)
    if padding < 0:
        raise ValueError(
            f"{len(grids)} samples hold {sum(lengths)} tokens, above tokens_per_pack={layout.tokens_per_pack}"
        )
    if padding:
        lengths.append(padding)
        positions.append(torch.zeros(padding, 3, dtype=positions[0].dtype))
        texts.append(texts[0].new_zeros(1, texts[0].shape[1]))
        rows.append(torch.full((padding,), len(row_levels)))
        row_levels.append((0.0, True))
    return PackedInputs(
        patch_LP=None,
        position_L3=torch.cat(positions),
        row_L=torch.cat(rows),
        segment_lengths=tuple(lengths),
        time_R=torch.tensor([time for time, _ in row_levels], dtype=torch.float32),
        is_condition_R=torch.tensor([is_condition for _, is_condition in row_levels]),
        text_KE=torch.cat(texts),
        text_lengths=tuple(len(text) for text in texts),
    )


def _pack_latents(latents: Sequence[Tensor], layout: PackLayout) -> Tensor:
    """Patches of latents `[C, T, H, W]` end to end, zero where they do not fill the pack: `[L, P]`."""
    patches_LP = torch.cat([patchify(x_CTHW, layout.patch_size) for x_CTHW in latents])
    return pad(patches_LP, (0, 0, 0, layout.tokens_per_pack - len(patches_LP)))


def unpack_predictions(
    prediction_LP: Tensor, segments: Sequence[Segment], patch_size: tuple[int, int, int]
) -> list[Tensor]:
    """The `[C, T, H, W]` of each segment of a pack, from values per token; padding is left out."""
    grids = [_patch_grid(segment.x_CTHW.shape, patch_size) for segment in segments]
    lengths = [math.prod(grid) for grid in grids]
    parts = prediction_LP[: sum(lengths)].split(lengths)
    return [unpatchify(part_LP, grid, patch_size) for part_LP, grid in zip(parts, grids, strict=True)]


def _patch_grid(latent_shape: Sequence[int], patch_size: tuple[int, int, int]) -> tuple[int, int, int]:
    _, frames, height, width = latent_shape
    assert patch_size[0] == 1, "noise levels are per latent frame, so a patch spans one"
    if height % patch_size[1] or width % patch_size[2]:
        raise ValueError(f"a latent of {height} x {width} does not divide into patches of {patch_size[1:]}")
    return frames, height // patch_size[1], width // patch_size[2]


def _conditioning_rows(
    levels: Sequence[FrameLevels], grids: Sequence[tuple[int, int, int]]
) -> tuple[list[Tensor], list[tuple[float, bool]]]:
    """Row of each token, one tensor a segment, and the (noise level, is condition) of each row."""
    rows: list[Tensor] = []
    row_levels: list[tuple[float, bool]] = []
    for frames, (_, height, width) in zip(levels, grids, strict=True):
        frame_levels = list(zip(frames.time_T.tolist(), frames.is_condition_T.tolist(), strict=True))
        distinct = list(dict.fromkeys(frame_levels))
        row_T = torch.tensor([len(row_levels) + distinct.index(level) for level in frame_levels])
        rows.append(row_T.repeat_interleave(height * width))
        row_levels += distinct
    return rows, row_levels


def _microbatch(inputs: PackedInputs, target_LP: Tensor | None, samples: Sequence[Sample]) -> Microbatch:
    # Padding has a condition row of its own, so this is 0 there too.
    weight_L = (~inputs.is_condition_R[inputs.row_L]).float()
    keys, buckets = tuple(sample.key for sample in samples), tuple(sample.bucket for sample in samples)
    return Microbatch(inputs=inputs, target_LP=target_LP, weight_L=weight_L, keys=keys, buckets=buckets)
