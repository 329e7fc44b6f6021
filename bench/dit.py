"""One training step (forward and backward) over samples of mixed size: our pack beside diffusers' Wan transformer.

    make bench          or: python -m bench.dit [--model demo] [--repeats 5]

Both hold the same weights and see the same samples in float32. diffusers takes batches of one size, so it runs the
samples one at a time, or those of equal size together. Runs alternate, the median counts.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml
from diffusers import WanTransformer3DModel
from torch import Tensor

from model.dit import DiTConfig, VideoDiT
from model.packed import PackedInputs, patch_positions, patchify, unpatchify
from model.wan_weights import config_to_wan, from_wan

# Latent (frames, height, width): stills, short and long clips, two aspect ratios, as in the demo's data.
SIZES = ((1, 8, 14), (1, 8, 14), (1, 12, 10), (3, 8, 14), (3, 8, 14), (5, 8, 14), (5, 8, 14), (5, 12, 10))
TEXT_TOKENS = 24


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One latent, its text and its noise level."""

    latent_CTHW: Tensor
    text_NE: Tensor
    time: float


def samples(config: DiTConfig) -> list[Sample]:
    generator = torch.Generator().manual_seed(0)
    return [
        Sample(
            latent_CTHW=torch.randn((config.in_channels, *size), generator=generator),
            text_NE=torch.randn((TEXT_TOKENS, config.text_dim), generator=generator),
            time=float(torch.rand((), generator=generator)),
        )
        for size in SIZES
    ]


def patch_grid(latent_CTHW: Tensor, config: DiTConfig) -> tuple[int, int, int]:
    t, h, w = (n // p for n, p in zip(latent_CTHW.shape[1:], config.patch_size, strict=True))
    return t, h, w


def pack(batch: list[Sample], config: DiTConfig) -> PackedInputs:
    patches = [patchify(sample.latent_CTHW, config.patch_size) for sample in batch]
    lengths = tuple(len(patch_LP) for patch_LP in patches)
    return PackedInputs(
        patch_LP=torch.cat(patches),
        position_L3=torch.cat([patch_positions(patch_grid(sample.latent_CTHW, config)) for sample in batch]),
        row_L=torch.arange(len(batch)).repeat_interleave(torch.tensor(lengths)),
        segment_lengths=lengths,
        time_R=torch.tensor([sample.time for sample in batch]),
        is_condition_R=torch.zeros(len(batch), dtype=torch.bool),
        text_KE=torch.cat([sample.text_NE for sample in batch]),
        text_lengths=(TEXT_TOKENS,) * len(batch),
    )


def run_wan(wan: WanTransformer3DModel, batches: list[list[Sample]]) -> list[Tensor]:
    """Gradients of the mean square over all values; returns the predictions, one a sample."""
    count = sum(sample.latent_CTHW.numel() for batch in batches for sample in batch)
    predictions: list[Tensor] = []
    for batch in batches:
        output = wan(
            hidden_states=torch.stack([sample.latent_CTHW for sample in batch]),
            timestep=torch.tensor([1000 * sample.time for sample in batch]),
            encoder_hidden_states=torch.stack([sample.text_NE for sample in batch]),
        ).sample
        (output.square().sum() / count).backward()
        predictions += output.detach()
    return predictions


def run_pack(dit: VideoDiT, batch: list[Sample]) -> list[Tensor]:
    prediction_LP = dit(pack(batch, dit.config))
    prediction_LP.square().mean().backward()
    grids = [patch_grid(sample.latent_CTHW, dit.config) for sample in batch]
    parts = prediction_LP.detach().split([t * h * w for t, h, w in grids])
    return [unpatchify(part, grid, dit.config.patch_size) for part, grid in zip(parts, grids, strict=True)]


def by_size(batch: list[Sample]) -> list[list[Sample]]:
    groups: dict[torch.Size, list[Sample]] = {}
    for sample in batch:
        groups.setdefault(sample.latent_CTHW.shape, []).append(sample)
    return list(groups.values())


def median_seconds(runs: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for repeat in range(repeats + 1):
        for name, run in runs.items():
            started = time.perf_counter()
            run()
            if repeat:  # the first round warms up
                seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description="Our packed DiT beside diffusers' Wan transformer, on this machine.")
    parser.add_argument("--model", default="demo", help="a file of conf/model, without .yaml")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    conf = Path(__file__).parents[1] / "conf" / "model" / f"{arguments.model}.yaml"
    config = DiTConfig(**yaml.safe_load(conf.read_text()))
    torch.manual_seed(0)
    wan = WanTransformer3DModel(**config_to_wan(config))
    dit = VideoDiT(config)
    dit.load_state_dict(from_wan(wan.state_dict(), config))
    batch = samples(config)
    alike = by_size(batch)
    theirs, ours = run_wan(wan, [[sample] for sample in batch]), run_pack(dit, batch)
    difference = max(float((a - b).abs().max()) for a, b in zip(theirs, ours, strict=True))
    scale = max(float(a.abs().max()) for a in theirs)
    runs: dict[str, Callable[[], object]] = {
        "diffusers, one sample at a time": lambda: run_wan(wan, [[sample] for sample in batch]),
        f"diffusers, {len(alike)} batches of equal size": lambda: run_wan(wan, alike),
        "Tessera, one pack": lambda: run_pack(dit, batch),
    }
    tokens = pack(batch, config).num_tokens
    parameters = sum(parameter.numel() for parameter in dit.parameters())
    print(
        f"{arguments.model}: {parameters / 1e6:.1f} M parameters, {len(batch)} samples, {tokens} tokens, float32, ",
        end="",
    )
    print(f"{torch.get_num_threads()} threads; largest difference of outputs {difference / scale:.1e} of the largest")
    for name, seconds in median_seconds(runs, arguments.repeats).items():
        print(f"  {name:36s} {1000 * seconds:8.1f} ms a step {tokens / seconds:10,.0f} tokens/s")


if __name__ == "__main__":
    main()
