"""Measure what packs cost on this machine and fit the coefficients that even out the work of ranks.

python -m trainer.pack_cost model=demo tokens_per_pack=1120 file=cost.json
python -m trainer.train experiment=demo data.cost=cost.json

Packs of one length cost more the longer their samples are: t = linear * sum(L) + quadratic * sum(L^2) + text * K over
samples of L video and K text tokens. Without a file of these coefficients a run takes them from the model's FLOPs.
"""

import json
import logging
import os
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import hydra
import numpy as np
import torch
from omegaconf import DictConfig

from model.dit import DiTConfig, VideoDiT
from model.packed import PackedInputs
from parallel.launch import Launch
from trainer.compose import to_dataclass, user_errors
from trainer.device import choose_device

log = logging.getLogger(__name__)
NAMES = ("linear", "quadratic", "text")
TEXT_TOKENS = (8, 64)


@dataclass(frozen=True, kw_only=True)
class PackCostConfig:
    """Packs of which model and size are timed."""

    model: DiTConfig
    tokens_per_pack: int
    file: str
    """Where the coefficients go, in JSON."""
    repeats: int
    """Times each composition is run; the median counts."""
    device: str
    bf16: bool

    def __post_init__(self) -> None:
        for name in ("tokens_per_pack", "repeats"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        if not Path(self.file).absolute().parent.is_dir():
            raise ValueError(f"file={self.file}: there is no such folder to write it into")


@dataclass(frozen=True, kw_only=True)
class Composition:
    """A pack of equal samples."""

    samples: int
    video_tokens: int
    text_tokens: int
    """Each of one sample."""

    @property
    def terms(self) -> tuple[float, float, float]:
        """What the coefficients multiply, in the order of `NAMES`."""
        n, length = self.samples, self.video_tokens
        return float(n * length), float(n * length**2), float(n * self.text_tokens)

    def inputs(self, model: DiTConfig) -> PackedInputs:
        """The pack, with made-up content."""
        total, texts = self.samples * self.video_tokens, self.samples * self.text_tokens
        rows = torch.arange(self.samples)
        return PackedInputs(
            patch_LP=torch.randn(total, model.patch_values_in),
            position_L3=torch.arange(self.video_tokens).repeat(self.samples)[:, None].expand(-1, 3).contiguous(),
            row_L=rows.repeat_interleave(self.video_tokens),
            segment_lengths=(self.video_tokens,) * self.samples,
            time_R=torch.rand(self.samples),
            is_condition_R=torch.zeros(self.samples, dtype=torch.bool),
            text_KE=torch.randn(texts, model.text_dim),
            text_lengths=(self.text_tokens,) * self.samples,
        )


def compositions(tokens_per_pack: int) -> list[Composition]:
    """Full and half-full packs of one sample, of two, of four, and so on down to 16 tokens each."""
    found = []
    for tokens in (tokens_per_pack, tokens_per_pack // 2):
        length = tokens
        while length >= min(16, tokens_per_pack // 8):
            sizes = {"samples": tokens // length, "video_tokens": length}
            found += [Composition(**sizes, text_tokens=text) for text in TEXT_TOKENS]
            length //= 2
    return found


def measure(dit: VideoDiT, packs: Sequence[PackedInputs], repeats: int) -> list[float]:
    """Seconds of forward and backward over each pack: the median of runs that take turns."""
    seconds: list[list[float]] = [[] for _ in packs]
    for repeat in range(repeats + 1):
        for pack, times in zip(packs, seconds, strict=True):
            _wait(pack)
            start = time.perf_counter()
            dit(pack).float().square().mean().backward()
            _wait(pack)
            if repeat:  # the first warms up
                times.append(time.perf_counter() - start)
    return [statistics.median(times) for times in seconds]


def fit(terms: np.ndarray, seconds: np.ndarray) -> tuple[np.ndarray, float]:
    """Coefficients of 0 or more that come closest in relative error, and R^2. `terms` is [packs, 3]."""
    weighted, ones = terms / seconds[:, None], np.ones(len(seconds))
    best: tuple[float, np.ndarray] | None = None
    for count in range(1, terms.shape[1] + 1):
        for chosen in combinations(range(terms.shape[1]), count):
            solved = np.linalg.lstsq(weighted[:, chosen], ones, rcond=None)[0]
            found = np.zeros(terms.shape[1])
            found[list(chosen)] = solved
            error = float(((weighted @ found - ones) ** 2).sum())
            if bool((solved >= 0).all()) and (best is None or error < best[0]):
                best = (error, found)
    assert best is not None, "times are above 0, so the linear term alone fits with a coefficient above 0"
    residual = terms @ best[1] - seconds
    spread = float(((seconds - seconds.mean()) ** 2).sum())
    return best[1], 1 - float((residual**2).sum()) / spread


def run(config: PackCostConfig) -> None:
    """Measure, fit, say and store."""
    Launch.require_single("trainer.pack_cost")
    device, dtype = choose_device(config.device), torch.bfloat16 if config.bf16 else torch.float32
    dit = VideoDiT(config.model).to(device, dtype)
    tried = compositions(config.tokens_per_pack)
    log.info("timing %d packs of up to %d tokens, %d times each", len(tried), config.tokens_per_pack, config.repeats)
    packs = [one.inputs(config.model).to(device, dtype) for one in tried]
    seconds = measure(dit, packs, config.repeats)
    found, r2 = fit(np.array([one.terms for one in tried]), np.array(seconds))
    for one, took in zip(tried, seconds, strict=True):
        shape = f"{one.samples} x {one.video_tokens} tokens, {one.text_tokens} of text each"
        log.info("%-44s %9.2f ms, fitted %9.2f ms", shape, 1e3 * took, 1e3 * float(np.dot(one.terms, found)))
    described = dict(zip(NAMES, map(float, found), strict=True)) | {"r2": r2, "device": str(device)}
    scratch = Path(f"{config.file}.tmp")
    scratch.write_text(json.dumps(described, indent=1), encoding="utf-8")
    os.replace(scratch, config.file)
    log.info("%s: R^2 %.4f; train with data.cost=%s", config.file, r2, config.file)


def _wait(pack: PackedInputs) -> None:
    if pack.position_L3.is_cuda:
        torch.cuda.synchronize(pack.position_L3.device)


@user_errors
@hydra.main(config_path="../conf", config_name="pack_cost", version_base="1.3")
@user_errors
def main(config: DictConfig) -> None:
    """Hydra's entry."""
    run(to_dataclass(PackCostConfig, config))


if __name__ == "__main__":
    main()
