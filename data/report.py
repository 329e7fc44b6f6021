"""What became of the clips: kept, skipped with a reason, and the frames that the lattice cost."""

from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

from data.problems import printable


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
