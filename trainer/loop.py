"""The training loop."""

import time
from dataclasses import dataclass
from statistics import median
from typing import Any

from data.loader import Loader, StepData
from data.pack import Position
from data.plan import position_row
from parallel.engine import StepResult
from trainer.build import Run
from trainer.checkpoint import prune_checkpoints, write_checkpoint
from trainer.compose import to_yaml
from trainer.evaluation import EvaluationSet, HeldOutLoss, heldout_loss, standard_error
from trainer.samples import write_samples
from trainer.schedule import learning_rate
from trainer.signals import EXIT_STOPPED, StopRequest

_KEYS_NAMED = 8
_STRAGGLES = 5.0
"""A rank straggles that waits for data so many times as long as the median rank,"""
_STRAGGLES_FROM = 0.02
"""and at least this share of the time."""


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


def train(run: Run, progress: Progress, stop: StopRequest) -> int:
    """Train to the last step or until asked to stop; returns the process's exit code."""
    steps, pace = run.config.run.steps, Pace(run)
    refuse_together(run)
    if progress.step == 0:  # a checkpoint is saved after its step was observed
        observe(run, progress)
    with run.loader(progress.position) as loader:
        while progress.step < steps:
            with pace.measured("data"):
                batch = fetch(run, loader)
                microbatches = run.microbatches(batch)
            rate = learning_rate(run.config.schedule, progress.step, steps)
            with pace.measured("step"):
                result = run.engine.step(microbatches, lr=rate)
            run.grid.started()
            if result.skipped:
                raise ValueError(not_finite(run, progress.step + 1, batch))
            after = batch.position_after
            progress.step, progress.tokens = after.step, after.tokens
            progress.epoch, progress.pack, progress.stage = after.epoch, after.pack, after.stage
            run.engine.update_ema(ema_decay(run.config.run.ema_half_life_fraction, progress.step))
            progress.flops += run.training_flops(microbatches)
            pace.report(progress, batch, result, rate)
            observe(run, progress)
            if run.grid.any(stop.signal_name is not None) and progress.step < steps:
                return leave(run, progress, stop.signal_name or "another rank's signal")
    refuse_together(run)
    return 0


def fetch(run: Run, loader: Loader) -> StepData:
    """The next step's packs. They are handed on between ranks only where all could read what they read."""
    failure = None
    try:
        loader.wait()
    except ValueError as error:
        failure = str(error)
    refuse_together(run, failure)
    return next(loader)


def refuse_together(run: Run, failure: str | None = None) -> None:
    """ValueError on all ranks where one cannot read its data or write its record: none is left waiting for it."""
    failure = failure or run.metrics.failure
    if run.grid.any(failure is not None):
        raise ValueError(next(text for text in run.grid.gather_objects(failure) if text))


def not_finite(run: Run, step: int, batch: StepData) -> str:
    """What a user is told about a step that made no sense; collective, since each rank looks at its own samples."""
    begins = f"step {step}: loss or gradient is not finite, so nothing was updated and earlier checkpoints stand"
    bad = {one.key for pack in batch.packs for one in pack if not one.is_finite}
    if found := sorted({key for keys in run.grid.gather_objects(sorted(bad)) for key in keys}):
        return f"{begins}; NaN or Inf is stored in sample {_named(found)}: encode the clips again"
    return (
        f"{begins}; look at its samples ({_named([key for pack in batch.keys for key in pack])}), or lower schedule.lr "
        "and resume with allow_changes=true"
    )


def _named(keys: list[str]) -> str:
    return ", ".join(keys[:_KEYS_NAMED]) + (f" and {len(keys) - _KEYS_NAMED} more" if len(keys) > _KEYS_NAMED else "")


def ema_decay(half_life_fraction: float, step: int) -> float:
    """Decay whose half-life is a fraction of the steps taken, so that early weights are forgotten at any length."""
    return float(0.5 ** (1.0 / (half_life_fraction * step)))


def observe(run: Run, progress: Progress) -> None:
    """Check, evaluate, sample and save where this step is due; the last step always is."""
    cadence, step, last = run.config.run, progress.step, progress.step == run.config.run.steps
    saves = step > 0 and due(cadence.checkpoint_every, step, last)
    if not saves and step and due(cadence.check_replicas_every, step, last):
        run.engine.check_replicas()
    if due(cadence.evaluate_every, step, last):
        evaluate(run, progress)
    if due(cadence.sample_every, step, last):
        sample(run, step)
    if saves:
        save(run, progress)


def due(period: int, step: int, last: bool) -> bool:
    return period > 0 and (last or step % period == 0)


def evaluate(run: Run, progress: Progress) -> None:
    """Held-out loss of the averaged weights, and that of training clips where wanted."""
    if run.heldout is None:
        return
    started = time.perf_counter()
    with run.engine.ema_weights():
        table = loss_table(run, run.heldout)
        trained = loss_table(run, run.trained).loss if run.trained is not None else None
    sources = [sample.source for sample in run.heldout.samples]
    row: dict[str, Any] = {
        "heldout/loss": table.loss,
        "heldout/standard_error": standard_error(table.loss_SV.mean(1), sources),
        "heldout/ratio_to_zero": table.ratio_to_zero,
        "heldout/seconds": round(time.perf_counter() - started, 2),
        "tokens": progress.tokens,
        "flops": progress.flops,
    }
    if trained is not None:
        row |= {"heldout/trained_loss": trained, "heldout/gap": table.loss - trained}
    for level, loss in zip(run.heldout.levels, table.loss_SV.mean(0), strict=True):
        row[f"heldout/loss_t{level:g}"] = float(loss)
    if progress.step == run.config.run.steps:
        run.metrics.write_heldout(run.heldout.by_source(table.loss_SV.mean(1)))
    run.metrics.write(progress.step, row)
    run.metrics.say(
        f"step {progress.step}: held-out loss {table.loss:.4f}, {table.ratio_to_zero:.3f} of the zero predictor's"
        + (f", {table.loss - trained:+.4f} from that of training clips" if trained is not None else "")
    )


def loss_table(run: Run, clips: EvaluationSet) -> HeldOutLoss:
    """Losses of these clips; collective."""
    grid = run.grid
    return heldout_loss(run.engine.predict, clips, rank=grid.data_rank, ranks=grid.data_size, total=grid.sum_over_data)


def sample(run: Run, step: int) -> None:
    """A sheet of the run's prompts."""
    if run.samples is None:
        return
    path = run.config.path / "samples" / f"step_{step:08d}.png"
    write_samples(run.samples, engine=run.engine, grid=run.grid, metrics=run.metrics, step=step, path=path)
    run.metrics.write_sheet(step, path, caption=f"step {step}")
    run.metrics.say(f"step {step}: samples in {path}")


def save(run: Run, progress: Progress) -> None:
    """Commit a checkpoint of logical tensors, then drop the oldest."""
    if run.config.run.check_replicas_every:
        run.engine.check_replicas()
    root = run.config.path / "checkpoints"
    state = {
        **vars(progress),
        "adam_steps": run.engine.adam_steps,
        "manifest": run.shards.hash,
        "codec": run.manifest.identity.codec,
        "text": run.manifest.identity.text,
        "settings": run.config.defining(),
    }
    write_checkpoint(
        root,
        run.engine.pieces(),
        state=state,
        config_yaml=to_yaml(run.config),
        rank=run.grid.rank,
        gather=run.grid.gather_objects,
    )
    if run.grid.rank == 0:
        with run.metrics.guarded(root):
            prune_checkpoints(root, run.config.run.keep_checkpoints)
    run.grid.barrier()


def leave(run: Run, progress: Progress, reason: str) -> int:
    """Save at the step boundary, unless that was due anyway, and say how to go on."""
    if not due(run.config.run.checkpoint_every, progress.step, last=False):
        save(run, progress)
    run.metrics.say(
        f"stopped by {reason} after step {progress.step} of {run.config.run.steps}; everything is saved, "
        "and the same command goes on from here"
    )
    return EXIT_STOPPED


class Pace:
    """Where a step's time goes, and the line that says so. Evaluation, samples and saves are not part of it."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.seconds = {"data": 0.0, "step": 0.0}
        self.tokens, self.steps, self.waited_s = 0, 0, 0.0
        self.total_s, self.total_steps = 0.0, 0

    def measured(self, part: str) -> "Measured":
        return Measured(self.seconds, part)

    def report(self, progress: Progress, batch: StepData, result: StepResult, rate: float) -> None:
        """Write a row every `log_every` steps: rates are over the steps since the last row."""
        self.tokens += batch.video_tokens
        self.steps += 1
        self.waited_s += batch.waited_s
        steps = self.run.config.run.steps
        if not due(self.run.config.run.log_every, progress.step, last=progress.step == steps):
            return
        elapsed = sum(self.seconds.values())
        self.total_s, self.total_steps = self.total_s + elapsed, self.total_steps + self.steps
        row = {
            "loss": result.loss,
            "grad_norm": result.grad_norm,
            "lr": rate,
            "tokens": progress.tokens,
            "flops": progress.flops,
            "epoch": progress.epoch,
            "tokens_per_s": round(self.tokens / elapsed, 1),
            "s_per_step": round(elapsed / self.steps, 4),
            **self._waits(progress.step, elapsed),
            "fill": round(batch.video_tokens / batch.token_budget, 4),
            "imbalance": round(batch.imbalance, 4),
            "position": position_row(batch.position_after),
        }
        self.run.metrics.write(progress.step, row)
        left_s = self.total_s / self.total_steps * (steps - progress.step)
        self.run.metrics.say(
            f"step {progress.step}/{steps}  loss {result.loss:.4f}  norm {result.grad_norm:.3f}  "
            f"lr {rate:.2e}  {row['tokens_per_s']:,.0f} tokens/s  {row['s_per_step']:.2f} s/step  "
            f"fill {row['fill']:.2f}  left {left_s / 60:.1f} min"
        )
        self.seconds.update(data=0.0, step=0.0)
        self.tokens, self.steps, self.waited_s = 0, 0, 0.0

    def _waits(self, step: int, elapsed: float) -> dict[str, float]:
        """Share of the time for which ranks that read waited for data: mean, largest and whose that was.

        Of the stages of a data rank the one that waited longest counts.
        """
        grid = self.run.grid
        told = grid.gather_objects([grid.data_rank, self.waited_s])
        waits: list[tuple[float, int]] = [(0.0, 0)] * grid.data_size
        for rank, (data_rank, seconds) in enumerate(told):
            waits[data_rank] = max(waits[data_rank], (seconds, -rank))
        longest, rank = max(waits)
        usual = median(seconds for seconds, _ in waits)
        if longest > _STRAGGLES * usual and longest > _STRAGGLES_FROM * elapsed and grid.data_size > 1:
            self.run.metrics.say(
                f"step {step}: rank {-rank} waited {longest:.2f} s of {elapsed:.2f} s for its data, ranks usually "
                f"{usual:.2f} s: look at that node's storage, or raise data.workers and data.prefetch_steps"
            )
        return {
            "data_wait": round(sum(seconds for seconds, _ in waits) / len(waits) / elapsed, 4),
            "data_wait_max": round(longest / elapsed, 4),
            "data_wait_rank": -rank,
        }


class Measured:
    """Adds the seconds of a `with` block to an entry of a dict."""

    def __init__(self, seconds: dict[str, float], part: str) -> None:
        self.seconds, self.part = seconds, part

    def __enter__(self) -> None:
        self.start = time.perf_counter()

    def __exit__(self, *exc: object) -> None:
        self.seconds[self.part] += time.perf_counter() - self.start
