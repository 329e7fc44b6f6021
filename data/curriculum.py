"""Stages of a run that draw on the data set in different mixtures, each until a step or a number of tokens."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from data.mixture import MixConfig
from data.pack import PackPlan, PlannedPack, Position

_VISITS_PER_STAGE = 1 << 32


@dataclass(frozen=True, kw_only=True)
class StageConfig:
    """A mixture and how long it lasts."""

    until_step: int | None = None
    until_tokens: int | None = None
    """Video tokens of the run; the first of the two that is reached ends the stage."""
    mix: MixConfig = field(default_factory=MixConfig)

    def __post_init__(self) -> None:
        if self.until_step is None and self.until_tokens is None:
            raise ValueError("a stage of data.curriculum needs until_step or until_tokens: when does it end?")

    def is_over(self, step: int, tokens: int) -> bool:
        """Whether a run of so many steps and tokens has left it."""
        return (self.until_step is not None and step >= self.until_step) or (
            self.until_tokens is not None and tokens >= self.until_tokens
        )


class Curriculum:
    """Plans one after another; the last one goes on for ever."""

    def __init__(self, plans: Sequence[PackPlan], stages: Sequence[StageConfig] = ()) -> None:
        """`plans` has one more than `stages`: what follows the last."""
        assert len(plans) == len(stages) + 1
        self.plans, self.stages = tuple(plans), tuple(stages)

    @classmethod
    def of(
        cls, plan_of: Callable[[MixConfig], PackPlan], stages: Sequence[StageConfig], last: MixConfig
    ) -> "Curriculum":
        stage: StageConfig
        plans = []
        for stage in stages:
            plans.append(plan_of(stage.mix))
        return cls([*plans, plan_of(last)], stages)

    def plan(self, position: Position) -> PackPlan:
        if position.stage >= len(self.plans):
            raise ValueError(f"{position} is not a position of this data plan: was it saved with another curriculum?")
        return self.plans[position.stage]

    def step(self, position: Position, packs_per_step: int) -> tuple[list[PlannedPack], Position]:
        """The next `packs_per_step` packs and the position after them."""
        packs, after = self.plan(position).step(position, packs_per_step)
        if position.stage:  # each stage counts visits from 0
            first = position.stage * _VISITS_PER_STAGE
            packs = [replace(pack, visits=tuple(first + visit for visit in pack.visits)) for pack in packs]
        while after.stage < len(self.stages) and self.stages[after.stage].is_over(after.step, after.tokens):
            after = replace(after, stage=after.stage + 1, epoch=0, pack=0)
        return packs, after
