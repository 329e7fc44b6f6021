"""What a user is told of a data set: what became of clips, and what is wrong, found one by one and told together."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Skipped:
    """One clip, or the rest of it, that was left out; with an empty key, the rest of one shard."""

    shard: str
    key: str
    reason: str

    def __str__(self) -> str:
        return printable(f"{self.shard}: {self.key or '(rest of the shard)'}: {self.reason}")


@dataclass
class ClipReport:
    """Filled in while clips are read."""

    source_clips: int = 0
    """Clips that gave at least one window."""
    windows: int = 0
    images: int = 0
    """Windows of a single frame, counted in `windows` too."""
    frames: int = 0
    frames_cropped: int = 0
    """Frames lost at the end of clips: off the 1 + 4k lattice, or a tail shorter than `min_frames`."""
    skipped: list[Skipped] = field(default_factory=list)

    def skip(self, *, shard: str, key: str, reason: str) -> None:
        self.skipped.append(Skipped(shard=shard, key=key, reason=reason))

    def reasons(self) -> Counter[str]:
        """Skipped clips per kind of reason: the part before the first colon."""
        return Counter(item.reason.split(":")[0] for item in self.skipped)

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"skipped_clips": len(self.skipped), "reasons": dict(self.reasons())}

    def lines(self, limit: int = 20) -> list[str]:
        kept = (
            f"{self.source_clips} kept as {self.windows} windows ({self.images} of them images), {self.frames} frames"
        )
        lines = [
            f"clips    {kept}; {self.frames_cropped} frames cropped at clip ends",
            f"skipped  {len(self.skipped)}",
        ]
        lines += [f"  {item}" for item in self.skipped[:limit]]
        if len(self.skipped) > limit:
            lines.append(f"  ... and {len(self.skipped) - limit} more, all in the report file")
        return lines


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One thing that is wrong, in a shard or a file, and with which sample, where that is known."""

    shard: str
    key: str = ""
    what: str

    def __str__(self) -> str:
        line = f"{self.shard}: {self.key}: {self.what}" if self.key else f"{self.shard}: {self.what}"
        return printable(line)


@dataclass(kw_only=True)
class Problems:
    """The first `limit` problems, and how many there are."""

    limit: int = 1000
    found: list[Problem] = field(default_factory=list)
    count: int = 0

    def add(self, shard: str, key: str, what: str) -> None:
        self.count += 1
        if len(self.found) < self.limit:
            self.found.append(Problem(shard=shard, key=key, what=what))

    def extend(self, found: Iterable[Problem], count: int | None = None) -> None:
        """Those of a part; `count` where there are more than are told."""
        found = list(found)
        self.count += len(found) if count is None else count
        self.found += found[: self.limit - len(self.found)]

    def lines(self, limit: int) -> list[str]:
        """At most `limit` of them, a line each."""
        lines = [str(problem) for problem in self.found[:limit]]
        if self.count > len(lines):
            lines.append(f"... and {self.count - len(lines)} more")
        return lines


def printable(text: str) -> str:
    """With escapes for what would steer a terminal or cannot be written: names come from files of anyone."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)
