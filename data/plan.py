"""Everything a run's data order depends on, kept in the run folder so that any step can be looked up."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from data.balance import PackCost
from data.curriculum import Curriculum, StageConfig
from data.manifest import Manifest
from data.mixture import DataSet, MixConfig
from data.pack import ORDER_VERSION, PackPlan, PlannedPack, Position
from data.progress import Progress
from data.shards import write_whole

FILE_NAME = "data_plan.json"
METRICS_NAME = "metrics.jsonl"


@dataclass(frozen=True, kw_only=True)
class PlanConfig:
    """Which shards, in which order, in which packs."""

    folders: dict[str, float]
    """Latent shards and the weight of their samples."""
    seed: int
    tokens_per_pack: int
    packs_per_step: int
    window: int
    limit_samples: int | None
    mix: MixConfig
    curriculum: tuple[StageConfig, ...]
    cost: PackCost
    order: int = ORDER_VERSION
    """Which order they make; 1 where a run did not keep it."""

    def open(self, shards: DataSet | None = None) -> Curriculum:
        """The plan of the training split, of these shards where they are open already."""
        shards = shards or self.open_shards()
        training = shards.select("train")
        if self.limit_samples is not None:
            training = training.head(self.limit_samples)

        def plan_of(mix: MixConfig) -> PackPlan:
            return PackPlan(
                training,
                seed=self.seed,
                tokens_per_pack=self.tokens_per_pack,
                window=self.window,
                mix=mix,
                cost=self.cost,
            )

        return Curriculum.of(plan_of, self.curriculum, self.mix)

    def open_shards(self) -> DataSet:
        """All shards, whatever their split."""
        manifests = tuple(Manifest.read(folder) for folder in self.folders)
        return DataSet(manifests=manifests, weights=tuple(self.folders.values()))

    def write(self, run_folder: Path, *, shards: str, start: Position | None = None) -> None:
        """Into a run folder, with the hash of the shards: holds from `start` on; plans of earlier steps stay."""
        start = start or Position()
        plans = [plan for plan in _recorded(run_folder) if plan[2].step < start.step]
        if not plans or plans[-1][:2] != (self, shards):
            plans.append((self, shards, start))
        described = [asdict(plan) | {"shards": of, "start": asdict(begins)} for plan, of, begins in plans]
        write_whole(run_folder / FILE_NAME, json.dumps(described, indent=1).encode())

    @classmethod
    def read(cls, run_folder: Path, *, step: int | None = None) -> tuple["PlanConfig", str, Position]:
        """The plan of a step (the newest without), the hash of its shards, and where it begins; ValueError if none."""
        plans = _recorded(run_folder)
        if not plans:
            raise ValueError(f"{run_folder} has no {FILE_NAME}: is it the folder of a training run?")
        for plan in reversed(plans):
            if step is None or plan[2].step < step:
                return plan
        raise ValueError(f"{run_folder / FILE_NAME} was made anew at step {plans[0][2].step + 1}: it tells none before")


def _recorded(run_folder: Path) -> list[tuple[PlanConfig, str, Position]]:
    """The plans of a run, the hash of their shards, and where each begins."""
    path = run_folder / FILE_NAME
    if not path.is_file():
        return []
    try:
        described = json.loads(path.read_text(encoding="utf-8"))
        # One plan for all steps, as runs used to keep it.
        plans = described if isinstance(described, list) else [described | {"start": {}}]
        return [(_config({"order": 1} | plan), plan["shards"], Position(**plan["start"])) for plan in plans]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} cannot be read ({error!r}): restore it, or delete it and resume the run") from error


def _config(described: dict[str, Any]) -> PlanConfig:
    stages = [StageConfig(**{**stage, "mix": MixConfig(**stage["mix"])}) for stage in described["curriculum"]]
    nested = {"mix": MixConfig(**described["mix"]), "cost": PackCost(**described["cost"]), "curriculum": tuple(stages)}
    return PlanConfig(**{name: described[name] for name in PlanConfig.__dataclass_fields__} | nested)


def step_of_run(run_folder: Path, step: int) -> tuple[DataSet, PlanConfig, list[PlannedPack], Position]:
    """The packs that step `step` of a run (counted from 1) trains on, and where it begins; future steps too.

    Goes on from the last position before it that the run has logged. ValueError where the shards have changed.
    """
    if step < 1:
        raise ValueError(f"--step {step} must be at least 1, the first step of a run")
    config, shards_hash, start = PlanConfig.read(run_folder, step=step)
    if config.order != ORDER_VERSION:
        raise ValueError(
            f"step {step} of {run_folder} was planned by order {config.order} of samples, and this version knows order "
            f"{ORDER_VERSION} only: look with the version that trained it"
        )
    shards = config.open_shards()
    if shards.hash != shards_hash:
        raise ValueError(
            f"{', '.join(config.folders)} holds other shards ({shards.hash[:12]}) than the run was trained on "
            f"({shards_hash[:12]}): restore them"
        )
    logged = logged_position(run_folder, before=step)
    packs, start = _walk(config, shards, max(start, logged, key=lambda position: position.step), step)
    return shards, config, packs, start


def _walk(config: PlanConfig, shards: DataSet, position: Position, step: int) -> tuple[list[PlannedPack], Position]:
    """The packs of a step that comes after a position, and where it begins."""
    plan = config.open(shards)
    # A step far from what the run has logged takes a while.
    with Progress("planning", step - position.step, "step") as progress:
        while True:
            packs, after = plan.step(position, config.packs_per_step)
            progress.advance()
            if after.step == step:
                return packs, position
            position = after


def logged_position(run_folder: Path, *, before: int) -> Position:
    """Where the run stood after the last step before this one whose row says so; else its start."""
    path, found = run_folder / METRICS_NAME, Position()
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            row = json.loads(line)
        except ValueError:
            break  # the torn last line of a killed run
        if "position" in row and found.step < row["step"] < before:
            found = Position(**row["position"])
    return found


def position_row(position: Position) -> Mapping[str, int]:
    """A position as a row of metrics keeps it."""
    return asdict(position)
