"""What is wrong with a data set, found one by one and told together."""

from collections.abc import Iterable
from dataclasses import dataclass, field


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
