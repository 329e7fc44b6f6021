"""The optimizer's settings and its groups of parameters. Light: it imports no engine."""

from collections.abc import Mapping
from dataclasses import dataclass

from model.mup import rate_factor


@dataclass(frozen=True, kw_only=True)
class AdamWConfig:
    """AdamW and the clipping of the global gradient norm. Raises ValueError for values it cannot run with."""

    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.01
    """For matrices; biases, norms and tables are not decayed."""
    clip_norm: float = 1.0

    def __post_init__(self) -> None:
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"optim.{name} is {getattr(self, name)}; it must be at least 0 and below 1.")
        if self.eps <= 0 or self.weight_decay < 0 or self.clip_norm <= 0:
            raise ValueError(
                f"optim.eps={self.eps}, weight_decay={self.weight_decay}, clip_norm={self.clip_norm}: eps and "
                "clip_norm must be above 0, weight_decay at least 0 (to clip nothing, set a large clip_norm)."
            )


def is_decayed(name: str, global_shape: tuple[int, ...]) -> bool:
    """Whether weight decay applies: to the matrices of linear layers, not to biases, norm weights or tables."""
    return name.endswith(".weight") and len(global_shape) >= 2


@dataclass(frozen=True, kw_only=True)
class Group:
    """Parameters that are updated alike."""

    names: tuple[str, ...]
    weight_decay: float
    rate_factor: float
    """Times the learning rate of the step."""


def parameter_groups(config: AdamWConfig, shapes: Mapping[str, tuple[int, ...]], width_factor: float) -> list[Group]:
    """Groups of named parameters of these (global) shapes; none is empty. Decayed ones first.

    What a step takes away of a weight is rate times decay: where muP lowers the rate, the decay rises with it.
    """
    found: dict[tuple[bool, float], list[str]] = {}
    for name, shape in shapes.items():
        found.setdefault((is_decayed(name, shape), rate_factor(name, width_factor)), []).append(name)
    return [
        Group(
            names=tuple(names),
            weight_decay=config.weight_decay / factor if decayed else 0.0,
            rate_factor=factor,
        )
        for (decayed, factor), names in sorted(found.items(), reverse=True)
    ]
