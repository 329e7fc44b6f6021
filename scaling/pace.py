"""How long cells will take: as those did that are finished, or as a pack does on this machine."""

from collections.abc import Sequence
from statistics import median

from model.dit import VideoDiT
from model.flops import training_flops
from scaling.grid import PlannedCell
from scaling.outcome import Outcome
from trainer.pack_cost import Composition, measure

START_S = 12.0
"""A run's start: imports and connections."""
_LARGEST = 50_000_000
"""Parameters of the blocks; a larger model is not tried for the sake of an estimate."""
_SAMPLES, _TEXT_TOKENS, _REPEATS = 4, 16, 2


class Pace:
    """FLOPs a second, by size."""

    def __init__(self, flops_per_s: float | None, outcomes: Sequence[Outcome], *, measures: bool) -> None:
        """`measures` where the runs will be on this machine."""
        self._given, self._measures = flops_per_s, measures
        finished: dict[int, list[float]] = {}
        for one in outcomes:
            if one.is_done and one.seconds:
                finished.setdefault(one.planned.parameters, []).append(one.cell.flops / one.seconds)
        self._known = {size: median(rates) for size, rates in finished.items()}

    def seconds(self, cell: PlannedCell) -> float | None:
        """Of a whole run, evaluations and start included; None where nothing is known."""
        rate = self._given or self._known.get(cell.parameters)
        if rate is None and self._measures and cell.parameters <= _LARGEST:
            rate = self._known[cell.parameters] = cell.ranks * measured_rate(cell)
        return START_S + cell.all_flops / rate if rate else None


def measured_rate(cell: PlannedCell) -> float:
    """Training FLOPs a second of one process on a pack of four clips."""
    model, data = cell.config.model, cell.config.data
    length = max(data.tokens_per_pack // _SAMPLES, 1)
    pack = Composition(samples=_SAMPLES, video_tokens=length, text_tokens=_TEXT_TOKENS)
    (seconds,) = measure(VideoDiT(model), [pack.inputs(model)], _REPEATS)
    texts = [_TEXT_TOKENS] * _SAMPLES
    return training_flops(model, video_tokens=[length] * _SAMPLES, text_tokens=texts, rows=_SAMPLES) / seconds
