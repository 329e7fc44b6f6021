"""Everything a run's data order depends on, kept in the run folder so that any step can be looked up."""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from data.balance import PackCost
from data.curriculum import Curriculum, StageConfig
from data.manifest import Manifest
from data.mixture import DataSet, MixConfig
from data.pack import PackPlan, PlannedPack, Position

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

    def write(self, run_folder: Path, *, shards: str) -> None:
        """Into a run folder, with the hash of the shards."""
        scratch = run_folder / f"{FILE_NAME}.tmp"
        scratch.write_text(json.dumps(asdict(self) | {"shards": shards}, indent=1), encoding="utf-8")
        os.replace(scratch, run_folder / FILE_NAME)

    @classmethod
    def read(cls, run_folder: Path) -> tuple["PlanConfig", str]:
        """Of a run, and the hash of its shards; ValueError where there is none."""
        path = run_folder / FILE_NAME
        if not path.is_file():
            raise ValueError(f"{run_folder} has no {FILE_NAME}: is it the folder of a training run?")
        try:
            described = json.loads(path.read_text(encoding="utf-8"))
            return cls._of(described), described["shards"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} cannot be read ({error!r}): start the run again to write it anew") from error

    @classmethod
    def _of(cls, described: dict[str, Any]) -> "PlanConfig":
        stages = tuple(StageConfig(**{**stage, "mix": MixConfig(**stage["mix"])}) for stage in described["curriculum"])
        nested = {
            "mix": MixConfig(**described["mix"]),
            "curriculum": stages,
            "cost": PackCost(**described["cost"]),
        }
        return cls(**{name: described[name] for name in cls.__dataclass_fields__} | nested)


def step_of_run(run_folder: Path, step: int) -> tuple[DataSet, PlanConfig, list[PlannedPack], Position]:
    """The packs that step `step` of a run (counted from 1) trains on, and where it begins; future steps too.

    Goes on from the last position before it that the run has logged. ValueError where the shards have changed.
    """
    if step < 1:
        raise ValueError(f"--step {step} must be at least 1, the first step of a run")
    config, shards_hash = PlanConfig.read(run_folder)
    shards = config.open_shards()
    if shards.hash != shards_hash:
        raise ValueError(
            f"{', '.join(config.folders)} holds other shards ({shards.hash[:12]}) than the run was trained on "
            f"({shards_hash[:12]}): restore them"
        )
    packs, start = _walk(config, shards, logged_position(run_folder, before=step), step)
    return shards, config, packs, start


def _walk(config: PlanConfig, shards: DataSet, position: Position, step: int) -> tuple[list[PlannedPack], Position]:
    """The packs of a step that comes after a position, and where it begins."""
    plan = config.open(shards)
    while True:
        packs, after = plan.step(position, config.packs_per_step)
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
