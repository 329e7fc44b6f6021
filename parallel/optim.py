"""The optimizer's settings. Light: it imports no engine."""

from dataclasses import dataclass


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
