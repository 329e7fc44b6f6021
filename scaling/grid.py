"""The cells of a sweep: which runs there are, how long each is, and the words that start it."""

import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from itertools import product
from math import ceil
from typing import Any

from omegaconf import DictConfig

from model.flops import TRAINING_FACTOR, parameter_count
from parallel.dims import ParallelDims
from parallel.legality import require_legal
from scaling.ladder import LadderConfig, Rung, learning_rate, packs_per_step, parse_size, rung, tensor_ranks
from scaling.lengths import StepLengths
from trainer.compose import to_dataclass
from trainer.config import TrainConfig, workload

Compose = Callable[[Sequence[str]], DictConfig]
"""From words of a command line for `trainer.train` to what Hydra makes of them."""
_LEAST_STEPS = 8
_LOGS = 100
"""Rows of a run's log."""


@dataclass(frozen=True, kw_only=True)
class GridConfig:
    """The axes; a cell for each combination. A run is as long as a budget, or as tokens for each parameter, say."""

    sizes: tuple[str | int | float, ...] = ()
    """Parameters of the blocks, `1m` or `5e5`; none leaves the model as the run has it."""
    budgets: tuple[float, ...] = ()
    """Training FLOPs."""
    tokens_per_parameter: float | None = None
    lr_factors: tuple[float, ...] = (1.0,)
    """Times the rate that the ladder gives, or the run has."""
    seeds: tuple[int, ...] = (0,)
    middle_seeds: tuple[int, ...] = ()
    """Further seeds of the middle size on the largest budget: what a seed changes, where a prediction leans most."""
    axes: dict[str, tuple[Any, ...]] | None = None
    """Any other settings of a run and their values, `optim.beta2: [0.95, 0.99]`; also groups, `model: [tiny, demo]`."""
    warmup_fraction: float = 0.05
    evaluations: int = 4
    """Of each run; only the last one, where its schedule has ended, is the cell's loss."""
    train_samples: int = 32
    """Evaluated besides, for the gap between training and held-out clips."""
    samples: int = 0
    """How often each run writes `samples.prompts` after its start; 0: never."""

    def __post_init__(self) -> None:
        if self.budgets and self.tokens_per_parameter is not None:
            raise ValueError("grid.budgets and grid.tokens_per_parameter both say how long a run is: give one of them")
        for name in ("lr_factors", "seeds"):
            if not getattr(self, name):
                raise ValueError(f"grid.{name} is empty, so that there is no cell: give one value at least")
        if min(self.budgets, default=1) <= 0 or min(self.lr_factors) <= 0 or (self.tokens_per_parameter or 1) <= 0:
            raise ValueError("grid.budgets, tokens_per_parameter and lr_factors must be above 0")
        if self.evaluations < 1 or not 0 <= self.warmup_fraction < 1 or min(self.train_samples, self.samples) < 0:
            raise ValueError(
                f"grid: evaluations={self.evaluations} must be at least 1, warmup_fraction={self.warmup_fraction} "
                f"in [0, 1), train_samples={self.train_samples} and samples={self.samples} at least 0"
            )


@dataclass(frozen=True, kw_only=True)
class Point:
    """Where a cell lies."""

    size: str | None
    budget: float | None
    lr_factor: float
    seed: int
    words: tuple[str, ...]

    @property
    def variant(self) -> str:
        """What it has beside a size, a budget and a seed."""
        return ", ".join([*([f"lr x{self.lr_factor:g}"] if self.lr_factor != 1 else []), *self.words])


@dataclass(frozen=True, kw_only=True)
class PlannedCell:
    """A run to be made."""

    name: str
    words: tuple[str, ...]
    """For `trainer.train`."""
    config: TrainConfig = field(repr=False)
    dims: ParallelDims = field(repr=False)
    ranks: int
    parameters: int
    """N: those of the blocks."""
    steps: int
    tokens: float
    """D: video tokens that will be processed."""
    flops: float
    """C: of training."""
    unique_tokens: int
    evaluated_tokens: float
    """Predicted along the run, about."""
    variant: str = ""
    """What tells it apart from other cells of its size, budget and seed."""

    @property
    def all_flops(self) -> float:
        """With what evaluations take, about."""
        return self.flops * (1 + self.evaluated_tokens / self.tokens / TRAINING_FACTOR)

    @property
    def epochs(self) -> float:
        return self.tokens / self.unique_tokens


def word(key: str, value: Any) -> str:
    """A setting as the command line takes it."""
    return f"{key}={_in_grammar(value)}"


def _in_grammar(value: Any) -> str:
    """Of Hydra's overrides."""
    match value:
        case None | bool():
            return {None: "null", True: "true", False: "false"}[value]
        case dict():
            return "{" + ",".join(f"{key}:{_in_grammar(item)}" for key, item in value.items()) + "}"
        case list() | tuple():
            return "[" + ",".join(map(_in_grammar, value)) + "]"
        case str() if not _is_plain(value):
            # Hydra takes a backslash for itself, but for those before a quote or at the end.
            escaped = re.sub(r'(\\*)("|$)', lambda found: found[1] * 2 + ('\\"' if found[2] else ""), value)
            return f'"{escaped}"'
    return str(value)


def _is_plain(text: str) -> bool:
    """Whether a text needs no quotes to stay one."""
    try:
        float(text)
    except ValueError:
        return bool(re.fullmatch(r"[\w./:+-]+", text)) and text.lower() not in ("true", "false", "null")
    return False


def points(grid: GridConfig) -> list[Point]:
    """All of the grid, the cheapest budget first."""
    sizes: Sequence[str | None] = [size if isinstance(size, str) else _short(size) for size in grid.sizes] or [None]
    sizes = sorted(sizes, key=lambda size: parse_size(size) if size else 0.0)
    budgets: Sequence[float | None] = sorted(grid.budgets) or (None,)
    words = list(product(*([word(key, value) for value in values] for key, values in (grid.axes or {}).items())))
    axes = [*product(budgets, sizes, grid.lr_factors, words, grid.seeds)]
    middle = sizes[len(sizes) // 2]
    axes += product(budgets[-1:], [middle], grid.lr_factors[:1], words[:1], grid.middle_seeds)
    return [
        Point(size=size, budget=budget, lr_factor=factor, seed=seed, words=tuple(chosen))
        for budget, size, factor, chosen, seed in axes
    ]


def names(found: Sequence[Point]) -> list[str]:
    """Of each point, the same whatever else is in the grid: a sweep can be extended. ValueError where two are alike."""
    out = [_name(point) for point in found]
    if twice := sorted({name for name in out if out.count(name) > 1}):
        raise ValueError(f"the grid has two cells that would be called {twice[0]}: leave out what is given twice")
    return out


def _name(point: Point) -> str:
    parts = [point.size] if point.size else []
    parts += [f"c{_short(point.budget)}"] if point.budget else []
    parts += [f"lr{_short(point.lr_factor)}"] if point.lr_factor != 1 else []
    parts += [f"s{point.seed}"] if point.seed else []
    for one in point.words:
        key, _, value = one.partition("=")
        parts.append(f"{key.rpartition('.')[2]}-{value}")
    return re.sub(r"[^A-Za-z0-9.]+", "-", "-".join(parts)).strip("-") or "run"


def _short(number: float) -> str:
    return f"{number:.4g}".replace("e+", "e")


def require_distinct(sizes: Sequence[str | int | float], ladder: LadderConfig) -> None:
    """ValueError where two sizes have the same rung nearest to them."""
    found: dict[Rung, str | int | float] = {}
    for size in sizes:
        shape = rung(parse_size(size), ladder.head_dim, ladder.num_blocks)
        if shape in found:
            raise ValueError(
                f"grid.sizes {found[shape]} and {size} are the same model, {shape.num_blocks} blocks of width "
                f"{shape.dim} ({shape.size:,} parameters): take sizes farther apart, or a smaller ladder.head_dim"
            )
        found[shape] = size


class Planner:
    """Makes cells of points."""

    def __init__(
        self, base: Sequence[str], grid: GridConfig, ladder: LadderConfig, *, ranks: int, compose: Compose
    ) -> None:
        self.base, self.grid, self.ladder, self.ranks, self._hydra = tuple(base), grid, ladder, ranks, compose
        self._lengths: dict[str, StepLengths] = {}
        require_distinct(grid.sizes, ladder)

    def cell(self, name: str, point: Point, place: Sequence[str]) -> PlannedCell:
        """`place` are the words that say where it writes. ValueError where it cannot be run, or is very short."""
        words, after = [*self.base, *self._shape(point)], [*point.words, f"seed={point.seed}", *place]
        config = self._compose([*words, *after])
        if config.schedule.kind == "constant":
            raise ValueError(
                "a cell has to finish a learning-rate schedule of its own, but train has schedule.kind=constant: "
                "set schedule.kind=cosine"
            )
        lengths = self._lengths_of(config)
        blocks = parameter_count(config.model).blocks
        steps = self._steps(point, config, lengths, blocks)
        if steps < _LEAST_STEPS:
            raise ValueError(
                f"cell {name} would take {steps} steps of {config.data.packs_per_step} packs: raise its budget, or "
                "lower its size, data.packs_per_step or data.tokens_per_pack"
            )
        words += [*self._cadence(steps), *after]
        config = self._compose(words)
        if config.run.steps != steps:
            raise ValueError(
                f"cell {name} is to take {steps} steps by its budget, but grid.axes says run.steps={config.run.steps}: "
                "leave one of them out"
            )
        return PlannedCell(
            name=name,
            words=tuple(words),
            config=config,
            dims=require_legal(config.parallel, workload(config), self.ranks),
            ranks=self.ranks,
            parameters=blocks,
            steps=steps,
            tokens=lengths.tokens(steps),
            flops=lengths.flops(config.model, steps),
            unique_tokens=lengths.unique_tokens,
            evaluated_tokens=(self.grid.evaluations + 1) * lengths.evaluation_tokens(config),
            variant=point.variant,
        )

    def _compose(self, words: Sequence[str]) -> TrainConfig:
        return to_dataclass(TrainConfig, self._hydra(words))

    def _shape(self, point: Point) -> list[str]:
        """Model, rate, batch and layout by the ladder."""
        rate = self._compose(self.base).schedule.lr
        words: list[str] = []
        if point.size is not None:
            size, ladder = parse_size(point.size), self.ladder
            shape = rung(size, ladder.head_dim, ladder.num_blocks)
            rate = learning_rate(ladder, shape.size)
            words += [f"model.num_blocks={shape.num_blocks}", f"model.num_heads={shape.num_heads}"]
            words += [f"model.head_dim={shape.head_dim}", f"model.ffn_dim={shape.ffn_dim}"]
            if ladder.mup:
                base = rung(ladder.base_size, ladder.head_dim, ladder.num_blocks)
                words.append(f"++model.mup_base_dim={base.dim}")
            if self.ranks > 1 and not any(one.startswith("parallel") for one in self.base):
                total = parameter_count(self._compose([*self.base, *words]).model).total
                tensor = tensor_ranks(ladder, shape, parameters=total, ranks=self.ranks)
                words.append(f"parallel.tensor={tensor}")
            dims = self._compose([*self.base, *words]).parallel
            packs = packs_per_step(ladder, shape.size, max(self.ranks // dims.model_size, 1))
            words += [f"data.packs_per_step={packs}"] if packs is not None else []
        if point.size is not None or point.lr_factor != 1:
            words.append(f"schedule.lr={rate * point.lr_factor:.6g}")
        return words

    def _steps(self, point: Point, config: TrainConfig, lengths: StepLengths, blocks: int) -> int:
        if point.budget is not None:
            return lengths.steps_for(config.model, point.budget)
        if self.grid.tokens_per_parameter is not None:
            return lengths.steps_for_tokens(self.grid.tokens_per_parameter * blocks)
        return config.run.steps

    def _cadence(self, steps: int) -> list[str]:
        return [
            f"run.steps={steps}",
            f"schedule.warmup_steps={round(self.grid.warmup_fraction * steps)}",
            f"run.evaluate_every={ceil(steps / self.grid.evaluations)}",
            f"run.log_every={ceil(steps / _LOGS)}",
            f"evaluation.train_samples={self.grid.train_samples}",
            *([f"run.sample_every={ceil(steps / self.grid.samples)}"] if self.grid.samples else []),
        ]

    def _lengths_of(self, config: TrainConfig) -> StepLengths:
        """Walked once for all cells that read the same data in the same steps."""
        key = repr((asdict(config.data), asdict(config.flow), config.seed, config.text.pad_to))
        if key not in self._lengths:
            self._lengths[key] = StepLengths(config)
        return self._lengths[key]
