"""One rule from a size to all that follows from it: width, depth, heads, learning rate, batch and layout."""

import math
from dataclasses import dataclass

MLP_RATIO = 4
_WIDTH_OF_A_BLOCK = 42
"""A model has a block for so much of its width."""
_EVEN_FROM = 8
"""From so many on, blocks and heads come in even numbers: two stages, or two tensor ranks, then have equally many."""
_SHALLOWEST = 2
_BYTES = {"weights": 2, "gradients": 4, "state": 16}
"""Of a parameter in bf16; state is what replicas share: float32 master, moments and average."""
_ROOM = 0.5
"""Share of a device's memory that these may take; activations need the rest."""
_UNITS = {"k": 1e3, "m": 1e6, "b": 1e9}


@dataclass(frozen=True, kw_only=True)
class LadderConfig:
    """The rule. Learning rate and batch are those of a model of `base_size`; others follow by powers of N.

    The exponents are those of Yin et al. 2024 (arXiv 2411.17470) for video DiTs.
    """

    head_dim: int = 64
    num_blocks: int | None = None
    """Of every model, so that sizes differ in width alone, which is what muP covers. None: more with the width."""
    base_size: float = 1e6
    """Parameters of the blocks."""
    lr: float = 2e-3
    lr_exponent: float = -0.1619
    mup: bool = False
    """Keep one learning rate and transfer it by width (`model.mup_base_dim`), which is that of `base_size`."""
    packs_per_step: int | None = None
    """None leaves the batch as the run has it."""
    packs_exponent: float = 0.1906
    memory_gib: float = 80.0
    """Of a device; a model that does not fit is spread over tensor ranks."""

    def __post_init__(self) -> None:
        if self.head_dim < 6 or self.head_dim % 2:
            raise ValueError(f"ladder.head_dim={self.head_dim} must be an even number of at least 6")
        if self.num_blocks is not None and self.num_blocks < 1:
            raise ValueError(f"ladder.num_blocks={self.num_blocks} must be at least 1, or null")
        for name in ("base_size", "lr", "memory_gib"):
            if not getattr(self, name) > 0:
                raise ValueError(f"ladder.{name}={getattr(self, name)} must be above 0")
        if self.packs_per_step is not None and self.packs_per_step < 1:
            raise ValueError(f"ladder.packs_per_step={self.packs_per_step} must be at least 1, or null")


@dataclass(frozen=True, kw_only=True)
class Rung:
    """The shape of a model."""

    num_blocks: int
    num_heads: int
    head_dim: int

    @property
    def dim(self) -> int:
        return self.num_heads * self.head_dim

    @property
    def ffn_dim(self) -> int:
        return MLP_RATIO * self.dim

    @property
    def size(self) -> int:
        """Matrix parameters of the blocks: two attentions of 4 h^2 and an MLP of 8 h^2 each."""
        return (8 + 2 * MLP_RATIO) * self.num_blocks * self.dim**2


def parse_size(text: str | float) -> float:
    """`290m` is 290 million; ValueError for what is no size."""
    word = str(text).strip().lower()
    factor = _UNITS.get(word[-1:], 1.0)
    try:
        size = float(word.removesuffix(word[-1]) if factor > 1 else word) * factor
    except ValueError as error:
        raise ValueError(f"size {text!r} is none: write parameters of the blocks, as 1m, 290m, 1b or 5e5") from error
    if not 0 < size < math.inf:
        raise ValueError(f"size {text!r} must be above 0")
    return size


def rung_of_heads(num_heads: int, head_dim: int, num_blocks: int | None = None) -> Rung:
    """The one rung of a width: about a block for 42 of it, evenly many from 8 on; or `num_blocks` of them."""
    blocks = num_heads * head_dim / _WIDTH_OF_A_BLOCK
    even = 2 * round(blocks / 2)
    by_width = even if even >= _EVEN_FROM else max(round(blocks), _SHALLOWEST)
    return Rung(num_blocks=num_blocks or by_width, num_heads=num_heads, head_dim=head_dim)


def rung(size: float, head_dim: int = 64, num_blocks: int | None = None) -> Rung:
    """The rung whose blocks have the number of parameters nearest to `size`, as a ratio."""
    best, heads = rung_of_heads(1, head_dim, num_blocks), 1
    while best.size < size or heads == 1:
        heads += 1 if heads < _EVEN_FROM else 2
        here = rung_of_heads(heads, head_dim, num_blocks)
        if abs(math.log(here.size / size)) > abs(math.log(best.size / size)):
            break
        best = here
    return best


def learning_rate(config: LadderConfig, size: float) -> float:
    """Peak rate of a model whose blocks have `size` parameters; the same for all where muP transfers it."""
    return config.lr if config.mup else config.lr * (size / config.base_size) ** config.lr_exponent


def packs_per_step(config: LadderConfig, size: float, multiple: int) -> int | None:
    """Packs of a step, a multiple of the data ranks; None where the run says."""
    if config.packs_per_step is None:
        return None
    wanted = config.packs_per_step * (size / config.base_size) ** config.packs_exponent
    return max(round(wanted / multiple), 1) * multiple


def tensor_ranks(config: LadderConfig, shape: Rung, *, parameters: int, ranks: int) -> int:
    """How many tensor ranks hold a model so that the rest of `ranks`, as replicas, share its optimizer state (ZeRO-1).

    ValueError where no number of them is enough.
    """
    room = _ROOM * config.memory_gib * 2**30
    for tensor in (n for n in range(1, ranks + 1) if ranks % n == 0 and shape.num_heads % n == 0):
        held = parameters * (_BYTES["weights"] + _BYTES["gradients"] + _BYTES["state"] * tensor / ranks) / tensor
        if held <= room:
            return tensor
    raise ValueError(
        f"{parameters:,} parameters in {shape.num_heads} heads do not fit {ranks} devices of {config.memory_gib:g} GiB "
        "with tensor ranks alone: raise ranks, or give the layout with train='[parallel.pipeline=...]'"
    )
