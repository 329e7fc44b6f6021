"""What one rank reads of each step, how, and what it gets."""

from dataclasses import dataclass, field
from itertools import islice

from data.deadline import READ_TIMEOUT_S
from data.mixture import DataSet
from data.pack import Position
from data.sample import Sample


@dataclass(frozen=True, kw_only=True)
class RankShare:
    """What of each step one rank reads: the r-th of n equal parts of its packs, with or without their latents."""

    data_rank: int = 0
    data_size: int = 1
    latents: bool = True
    reads: bool = True
    """Without, its packs come from another rank, which reads the same share and hands it on."""

    def __post_init__(self) -> None:
        assert 0 <= self.data_rank < self.data_size, self


@dataclass(frozen=True, kw_only=True)
class ReadAhead:
    """How a loader reads."""

    steps: int = 4
    """Steps that lie ready or are being read."""
    num_bytes: int = 1 << 30
    """Memory for them and for steps in use. A step that is waited for is read though it is full."""
    workers: int = 1
    """Processes; 0 reads in a thread of this one, where nothing ends a read that hangs."""
    timeout_s: float = READ_TIMEOUT_S
    """For each read, after which its worker is replaced."""

    def __post_init__(self) -> None:
        for name, setting, least in (("steps", "prefetch_steps", 1), ("num_bytes", "prefetch_bytes", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"data.{setting}={getattr(self, name)} must be at least {least}")
        if self.workers < 0:
            raise ValueError(f"data.workers={self.workers} must be 0 or more")
        if not self.timeout_s > 0:
            raise ValueError(f"data.read_timeout_s={self.timeout_s} must be above 0")


@dataclass(frozen=True, kw_only=True)
class StepData:
    """What one rank trains on in one step, and what all data ranks do."""

    position_after: Position
    packs: tuple[tuple[Sample, ...], ...]
    """This rank's packs."""
    visits: tuple[tuple[int, ...], ...]
    """Of each sample of this rank's packs: how often it came before."""
    rows: tuple[tuple[int, ...], ...]
    """Rows of every pack of the step, over all ranks."""
    video_tokens: int
    """Tokens of every pack of the step, padding not counted."""
    token_budget: int
    """Tokens that all packs of the step could hold."""
    imbalance: float
    """Work of the busiest data rank over the mean, at least 1."""
    waited_s: float = 0.0
    """Time for which this step was waited for."""
    data: DataSet = field(repr=False)

    @property
    def keys(self) -> tuple[tuple[str, ...], ...]:
        """Sample keys of every pack of the step, over all ranks; looked up in the manifest."""
        keys = iter(self.data.keys([row for pack in self.rows for row in pack]))
        return tuple(tuple(islice(keys, len(pack))) for pack in self.rows)
