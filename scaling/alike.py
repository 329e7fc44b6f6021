"""Whether cells can be compared: held-out losses that were measured alike, and what tells runs of one size apart."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from data.plan import PlanConfig
from scaling.cell import Cell
from trainer.metrics import HELDOUT_NAME

_KEYS = (
    "evaluation.max_samples",
    "evaluation.levels",
    "evaluation.caption_kind",
    "run.ema_half_life_fraction",
    "text.pad_to",
)
"""Which clips, noise levels and captions, and of which average of the weights."""
_DEFINING = ("model", "optim", "schedule", "flow", "text", "data")
_BY_LENGTH = ("schedule.warmup_steps",)
_OF_DATA = ("tokens_per_pack", "packs_per_step", "window", "position_fps", "limit_samples", "mix", "curriculum")


def measured(config: Mapping[str, Any]) -> dict[str, Any]:
    """Of a run's settings, as far as they say: in `config.yaml`, or in W&B, which knows the shards too."""
    found = {}
    for key in _KEYS:
        group, _, name = key.partition(".")
        part = config.get(group)
        if isinstance(part, Mapping) and name in part:
            found[key] = part[name]
    if isinstance(config.get("manifest"), str):
        found["shards"] = config["manifest"][:12]
    return found


def measured_in(folder: Path) -> dict[str, Any]:
    """Of what a run left beside its settings: the shards it read and how many held-out clips each source has.

    ValueError where a file of it is damaged.
    """
    found: dict[str, Any] = {}
    if (folder / "data_plan.json").is_file():
        _, shards, _ = PlanConfig.read(folder)
        found["shards"] = shards[:12]
    if (folder / HELDOUT_NAME).is_file():
        try:
            losses = json.loads((folder / HELDOUT_NAME).read_text(encoding="utf-8"))
            clips = {source: len(values) for source, values in losses.items()}
        except (ValueError, TypeError, AttributeError) as error:
            raise ValueError(f"its {HELDOUT_NAME} cannot be read ({error})") from error
        found["held-out clips"] = f"{sum(clips.values())} of {len(clips)} sources"
        found["held-out sources"] = sorted(clips.items())
    return found


def require_alike(cells: Sequence[Cell], how: Sequence[Mapping[str, Any]]) -> list[Cell]:
    """The cells; broken are those that were measured otherwise than most. What is not known differs from nothing."""
    keys = [json.dumps(one, sort_keys=True) for one in how]
    counts = Counter(key for key, cell in zip(keys, cells, strict=True) if not cell.broken)
    if len(counts) < 2:
        return list(cells)
    usual, count = counts.most_common(1)[0]
    first = next(cell.name for key, cell in zip(keys, cells, strict=True) if key == usual and not cell.broken)
    most = f"{first} and {count - 1} more" if count > 1 else first
    return [_against(cell, one, json.loads(usual), most) for cell, one in zip(cells, how, strict=True)]


def _against(cell: Cell, own: Mapping[str, Any], usual: Mapping[str, Any], most: str) -> Cell:
    own = json.loads(json.dumps(own))
    changed = [key for key in usual if key in own and own[key] != usual[key]]
    if cell.broken or not changed:
        return cell
    said = [f"{key} {own[key]}, there {usual[key]}" for key in changed if key != "held-out sources"]
    if "shards" in changed:
        said.append("that is other data")
    told = "; ".join(said or ["other held-out sources"])
    return replace(cell, broken=f"its loss was not measured as that of {most} was: {told}")


def told_apart(cells: Sequence[Cell], configs: Sequence[Mapping[str, Any]]) -> list[Cell]:
    """Cells with the settings as `variant` in which runs of their size differ, beside length and seed."""
    flat = [dict(_leaves(config)) for config in configs]
    sizes: dict[float, list[dict[str, str]]] = {}
    for cell, settings in zip(cells, flat, strict=True):
        sizes.setdefault(cell.parameters, []).append(settings)
    out = []
    for cell, settings in zip(cells, flat, strict=True):
        others = sizes[cell.parameters]
        varies = [key for key in settings if len({one.get(key) for one in others}) > 1]
        out.append(cell if cell.broken else replace(cell, variant=", ".join(f"{k} {settings[k]}" for k in varies)))
    return out


def _leaves(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for group in _DEFINING:
        part = config.get(group)
        for name, value in sorted(part.items()) if isinstance(part, Mapping) else ():
            key = f"{group}.{name}"
            if key not in _BY_LENGTH and (group != "data" or name in _OF_DATA):
                yield key, json.dumps(value, sort_keys=True)
