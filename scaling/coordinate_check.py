"""Whether the size of activations stays the same over widths after some steps: with muP it does, without it does not.

    python -m scaling.coordinate_check png=coordinates.png

Each model is trained on the same pack; what is measured is by how much activations have moved since the start (Yang
et al. 2022, arXiv 2203.03466, appendix D.1), and how that grows with the width: a power of 0 is flat.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import hydra
import matplotlib
import numpy as np
import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from model.dit import DiTConfig, VideoDiT
from model.init import init_weights
from parallel.launch import Launch
from parallel.optim import AdamWConfig, parameter_groups
from parallel.synthetic import SyntheticPack, synthetic_pack
from trainer.compose import to_dataclass, user_errors

matplotlib.use("agg")
import matplotlib.pyplot as plt

log = logging.getLogger(__name__)
_PLACES = ("query", "mlp_in", "output", "mlp_out", "modulation", "head")
"""Modules whose outputs are measured, by the last part of their name; of each the last there is."""


@dataclass(frozen=True, kw_only=True)
class CoordinateCheckConfig:
    """Widths of models alike in all else."""

    model: DiTConfig
    """Of other widths: heads and MLP follow from these."""
    widths: tuple[int, ...] = (64, 128, 256, 512)
    """The first is the base of muP."""
    head_dim: int = 16
    steps: int = 5
    lr: float = 1e-3
    seeds: int = 2
    tokens: int = 64
    png: str | None = None

    def __post_init__(self) -> None:
        if len(self.widths) < 2 or any(width % self.head_dim for width in self.widths):
            raise ValueError(
                f"widths={list(self.widths)} must be two at least and multiples of head_dim={self.head_dim}"
            )
        if self.steps < 1 or self.seeds < 1 or self.tokens < 1 or self.lr <= 0:
            raise ValueError(f"steps={self.steps}, seeds={self.seeds}, tokens={self.tokens}, lr={self.lr}: all above 0")

    def at(self, width: int, *, mup: bool) -> DiTConfig:
        """The model of a width."""
        return replace(
            self.model,
            num_heads=width // self.head_dim,
            head_dim=self.head_dim,
            ffn_dim=4 * width,
            mup_base_dim=self.widths[0] if mup else None,
        )


@contextmanager
def recorded(dit: VideoDiT) -> Iterator[dict[str, Tensor]]:
    """Outputs of the modules of `_PLACES` in the forward passes inside."""
    found: dict[str, Tensor] = {}

    def note(place: str, output: Tensor) -> None:
        found[place] = output.detach()

    hooks = []
    for name, module in dit.named_modules():
        place = name.rpartition(".")[2]
        if place in _PLACES:
            hooks.append(module.register_forward_hook(lambda _m, _i, output, place=place: note(place, output)))
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def movement(config: CoordinateCheckConfig, width: int, *, mup: bool, seed: int) -> dict[str, float]:
    """Root mean square of what each place's output has moved by, after all steps; and of the output itself at last."""
    model = config.at(width, mup=mup)
    dit = VideoDiT(model)
    init_weights(dit, seed, model.mup_base_dim)
    pack = synthetic_pack(model, config.tokens, seed)
    with recorded(dit) as before, torch.no_grad():
        dit(pack.inputs.to("cpu", torch.float32))
    start = dict(before)
    train(dit, pack, config)
    with recorded(dit) as after, torch.no_grad():
        dit(pack.inputs.to("cpu", torch.float32))
    return {place: float((after[place] - start[place]).square().mean().sqrt()) for place in start}


def train(dit: nn.Module, pack: SyntheticPack, config: CoordinateCheckConfig) -> None:
    """Plain AdamW with the groups that training has; nothing decays or is clipped."""
    assert isinstance(dit, VideoDiT)
    named = dict(dit.named_parameters())
    shapes = {name: tuple(parameter.shape) for name, parameter in named.items()}
    groups = [
        {"params": [named[name] for name in group.names], "lr": config.lr * group.rate_factor}
        for group in parameter_groups(AdamWConfig(), shapes, dit.config.width_factor)
    ]
    adam = torch.optim.AdamW(groups, betas=(0.9, 0.95), weight_decay=0.0)
    inputs, target_LP = pack.inputs.to("cpu", torch.float32), pack.target_LP.float()
    for _ in range(config.steps):
        adam.zero_grad()
        (dit(inputs) - target_LP).square().mean().backward()
        adam.step()


def measure(config: CoordinateCheckConfig, *, mup: bool) -> dict[str, np.ndarray]:
    """Movement of each place by width, the geometric mean over seeds."""
    rows = [[movement(config, width, mup=mup, seed=seed) for width in config.widths] for seed in range(config.seeds)]
    return {
        place: np.exp(np.mean([[np.log(at[place]) for at in by_width] for by_width in rows], axis=0))
        for place in rows[0][0]
    }


def power(widths: Sequence[int], values: np.ndarray) -> float:
    """Slope of log values over log widths."""
    return float(np.polyfit(np.log(widths), np.log(values), 1)[0])


def draw(config: CoordinateCheckConfig, found: dict[str, dict[str, np.ndarray]], path: Path) -> None:
    """Both parametrisations side by side, on one scale."""
    figure, axes = plt.subplots(1, len(found), figsize=(11, 4.5), sharey=True, layout="constrained")
    for axis, (title, places) in zip(axes, found.items(), strict=True):
        for place, values in places.items():
            axis.plot(config.widths, values, marker="o", label=f"{place} {power(config.widths, values):+.2f}")
        axis.set(xscale="log", yscale="log", xlabel="width", title=title)
        axis.set_xticks(config.widths, [str(width) for width in config.widths])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
        axis.legend(title="power of the width")
    axes[0].set_ylabel(f"movement of activations after {config.steps} steps")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def run(config: CoordinateCheckConfig) -> None:
    """Measure, say and draw."""
    Launch.require_single("scaling.coordinate_check")
    found = {}
    for title, mup in (("standard", False), ("muP", True)):
        found[title] = measure(config, mup=mup)
        log.info("%s: movement by width %s", title, ", ".join(map(str, config.widths)))
        for place, values in found[title].items():
            numbers = "  ".join(f"{value:.3e}" for value in values)
            log.info("  %-12s %s  power %+.2f", place, numbers, power(config.widths, values))
    if config.png is not None:
        draw(config, found, Path(config.png))
        log.info("picture in %s", config.png)


@user_errors
@hydra.main(config_path="../conf", config_name="coordinate_check", version_base="1.3")
@user_errors
def main(config: DictConfig) -> None:
    """Hydra's entry."""
    run(to_dataclass(CoordinateCheckConfig, config))


if __name__ == "__main__":
    main()
