"""How far a run is and how fast it goes: rows for the record, and the line that says so."""

import time
from collections import deque
from contextlib import AbstractContextManager
from dataclasses import dataclass
from statistics import mean, median
from typing import Any

from data.loader import StepData
from data.pack import Position
from data.plan import position_row
from parallel.engine import StepResult
from trainer.build import Run
from trainer.console import Columns
from trainer.goodput import clock, duration, process_age_s
from trainer.tally import LossTally
from trainer.usage import memory_row, node_row, peak_tflops, usage

_STRAGGLES = 5.0
"""A rank straggles that waits for data so many times as long as the median rank,"""
_STRAGGLES_FROM = 0.02
"""and at least this share of the time."""
_NODES_EVERY_S = 30.0
_LOSSES_KEPT, _LOSSES_NEEDED = 100, 20
"""A spike is measured against the median of so many steps before it, and of no fewer."""


@dataclass
class Progress:
    """How far a run is: all that has to be known to go on, beside weights and moments."""

    step: int = 0
    tokens: int = 0
    flops: int = 0
    epoch: int = 0
    pack: int = 0
    stage: int = 0

    @property
    def position(self) -> Position:
        return Position(epoch=self.epoch, pack=self.pack, stage=self.stage, step=self.step, tokens=self.tokens)


def due(period: int, step: int, last: bool) -> bool:
    return period > 0 and (last or step % period == 0)


class Pace:
    """Where a step's time goes, and the line that says so. Evaluation, samples and saves are not part of it."""

    def __init__(self, run: Run, progress: Progress) -> None:
        self.run, self.goodput = run, run.metrics.goodput
        self.tokens, self.steps, self.waited_s = 0, 0, 0.0
        self._room, self._imbalances = 0, list[float]()
        self.total_s, self.total_steps = 0.0, 0
        self._first_s, self._first_flops = 0.0, progress.flops
        self._nodes_told_s = -_NODES_EVERY_S
        self._peak_tflops = run.config.run.peak_tflops or peak_tflops(run.grid.device)
        self._losses: deque[float] = deque(maxlen=_LOSSES_KEPT)
        self._spikes = False
        buckets = sorted({name for manifest in run.shards.manifests for name in manifest.bucket_names})
        self.tally = LossTally(run.grid, buckets, run.config.evaluation.levels)
        run.engine.watch(self.tally.add)
        self.goodput.seconds["start"] = process_age_s()

    def measured(self, part: str) -> AbstractContextManager[None]:
        return self.goodput.measured(part)

    def report(self, progress: Progress, batch: StepData, result: StepResult, rate: float) -> None:
        """Write a row every `log_every` steps: rates and losses by level are over the steps since the last row."""
        self.tokens += batch.video_tokens
        self.steps += 1
        self.waited_s += batch.waited_s
        self._room += batch.token_budget
        self._imbalances.append(batch.imbalance)
        self._look_for_spike(progress.step, result.loss)
        steps = self.run.config.run.steps
        if not due(self.run.config.run.log_every, progress.step, last=progress.step == steps):
            self.run.metrics.passing(
                f"          step {progress.step:>{len(str(steps))}}/{steps}  loss {result.loss:.4f}"
            )
            return
        spent_s = self.goodput.seconds["data"] + self.goodput.seconds["step"]
        elapsed = spent_s - self._first_s
        self.total_s, self.total_steps = self.total_s + elapsed, self.total_steps + self.steps
        told = self.run.grid.gather_objects(
            {"data_rank": self.run.grid.data_rank, "waited_s": self.waited_s, **usage(self.run.grid.device)}
        )
        row = {
            "loss": result.loss,
            "grad_norm": result.grad_norm,
            "lr": rate,
            "tokens": progress.tokens,
            "flops": progress.flops,
            "epoch": progress.epoch,
            "tokens_per_s": round(self.tokens / elapsed, 1),
            "s_per_step": round(elapsed / self.steps, 4),
            **self._arithmetic(progress.flops - self._first_flops, elapsed),
            **self._waits(told, progress.step, elapsed),
            "fill": round(self.tokens / self._room, 4),
            "imbalance": round(mean(self._imbalances), 4),
            "imbalance_max": round(max(self._imbalances), 4),
            **self.tally.row(),
            **memory_row(told),
            **self._nodes(told),
            **self.goodput.row(),
            "position": position_row(batch.position_after),
        }
        self.run.metrics.write(progress.step, row)
        self.run.metrics.say(status_line(row, progress.step, steps, self.total_s / self.total_steps))
        self._first_s, self._first_flops = spent_s, progress.flops
        self.tokens, self.steps, self.waited_s = 0, 0, 0.0
        self._room, self._imbalances = 0, []

    def end(self, progress: Progress) -> None:
        """Where time went, up to the end."""
        self.run.metrics.write(progress.step, self.goodput.row())
        self.run.metrics.say(f"done after step {progress.step}: {self.goodput.told()}")

    def _arithmetic(self, flops: int, elapsed: float) -> dict[str, float]:
        """TFLOP/s of each device, by the model's arithmetic, and their share of what it could do at most."""
        rate = flops / elapsed / self.run.grid.world_size / 1e12
        row = {"tflops_per_device": float(f"{rate:.4g}")}
        return row | ({"mfu": round(rate / self._peak_tflops, 4)} if self._peak_tflops else {})

    def _nodes(self, told: list[dict[str, Any]]) -> dict[str, float]:
        """Load and memory of every node, now and then: there may be many."""
        now = time.monotonic()
        if now - self._nodes_told_s < _NODES_EVERY_S:
            return {}
        self._nodes_told_s = now
        return node_row(told)

    def _look_for_spike(self, step: int, loss: float) -> None:
        """Tell, once, of a loss far above those before it."""
        factor = self.run.config.run.spike_factor
        usual = median(self._losses) if len(self._losses) >= _LOSSES_NEEDED else float("inf")
        spikes = bool(factor) and loss > factor * usual
        if spikes and not self._spikes:
            text = f"step {step}: loss {loss:.4f} is {loss / usual:.1f} times the median of the steps before"
            self.run.metrics.alert(step, "spike", text)
            self.run.metrics.warn(text)
        self._spikes = spikes
        self._losses.append(loss)

    def _waits(self, told: list[dict[str, Any]], step: int, elapsed: float) -> dict[str, float]:
        """Share of the time for which ranks that read waited for data: mean, largest and whose that was.

        Of the stages of a data rank the one that waited longest counts.
        """
        waits: list[tuple[float, int]] = [(0.0, 0)] * self.run.grid.data_size
        for rank, one in enumerate(told):
            waits[one["data_rank"]] = max(waits[one["data_rank"]], (one["waited_s"], -rank))
        longest, rank = max(waits)
        usual = median(seconds for seconds, _ in waits)
        if longest > _STRAGGLES * usual and longest > _STRAGGLES_FROM * elapsed and len(waits) > 1:
            self.run.metrics.warn(
                f"step {step}: rank {-rank} waited {longest:.2f} s of {elapsed:.2f} s for its data, ranks usually "
                f"{usual:.2f} s: look at that node's storage, or raise data.workers and data.prefetch_steps"
            )
        return {
            "data_wait": round(sum(seconds for seconds, _ in waits) / len(waits) / elapsed, 4),
            "data_wait_max": round(longest / elapsed, 4),
            "data_wait_rank": -rank,
        }


def status_line(row: dict[str, Any], step: int, steps: int, s_per_step: float) -> Columns:
    """How it goes, how fast, how full, and until when, the more important the earlier; until when stays last."""
    left_s = s_per_step * (steps - step)
    return Columns(
        [
            f"step {step:>{len(str(steps))}}/{steps}",
            f"loss {row['loss']:.4f}",
            f"{row['tokens_per_s']:>7,.0f} tokens/s",
            *([f"MFU {row['mfu']:.1%}"] if "mfu" in row else []),
            f"data wait {row['data_wait']:.0%}",
            f"norm {row['grad_norm']:.3f}",
            f"{row['s_per_step']:.2f} s/step",
            *([f"{row['memory/device_gb']:.1f} GB"] if "memory/device_gb" in row else []),
            f"lr {row['lr']:.2e}",
            f"fill {row['fill']:.2f}",
            f"left {duration(left_s)}" + (f", until {clock(time.time() + left_s)}" if left_s > 60 else ""),
        ]
    )
