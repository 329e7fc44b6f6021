"""The training loop."""

import time
from dataclasses import dataclass
from typing import Any

from data.loader import Loader, StepData
from data.pack import Position
from trainer.build import Run
from trainer.checkpoint import prune_checkpoints, write_checkpoint
from trainer.compose import to_yaml
from trainer.evaluation import heldout_loss
from trainer.metrics import Throughput
from trainer.samples import write_samples
from trainer.schedule import learning_rate
from trainer.signals import EXIT_STOPPED, StopRequest

_KEYS_NAMED = 8


@dataclass
class Progress:
    """How far a run is: all that has to be known to go on, beside weights and moments."""

    step: int = 0
    tokens: int = 0
    flops: int = 0
    epoch: int = 0
    pack: int = 0

    @property
    def position(self) -> Position:
        return Position(epoch=self.epoch, pack=self.pack)


def train(run: Run, progress: Progress, stop: StopRequest) -> int:
    """Train to the last step or until asked to stop; returns the process's exit code."""
    steps, pace = run.config.run.steps, Pace(run)
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
            if result.skipped:
                raise ValueError(not_finite(progress.step + 1, batch))
            progress.step += 1
            run.engine.update_ema(ema_decay(run.config.run.ema_half_life_fraction, progress.step))
            progress.epoch, progress.pack = batch.position_after.epoch, batch.position_after.pack
            progress.tokens += batch.video_tokens
            progress.flops += run.training_flops(microbatches)
            pace.report(progress, batch, result, rate)
            observe(run, progress)
            if run.grid.any(stop.signal_name is not None) and progress.step < steps:
                return leave(run, progress, stop.signal_name or "another rank's signal")
    return 0


def fetch(run: Run, loader: Loader) -> StepData:
    """The next step's packs. What one rank cannot read, all ranks refuse: none is left waiting for it."""
    batch, failure = None, None
    try:
        batch = next(loader)
    except ValueError as error:
        failure = str(error)
    if run.grid.any(failure is not None):
        raise ValueError(next(text for text in run.grid.gather_objects(failure) if text))
    assert batch is not None
    return batch


def not_finite(step: int, batch: StepData) -> str:
    """What a user is told about a step that made no sense."""
    keys = [key for pack in batch.keys for key in pack]
    named = ", ".join(keys[:_KEYS_NAMED]) + (f" and {len(keys) - _KEYS_NAMED} more" if len(keys) > _KEYS_NAMED else "")
    return (
        f"step {step}: loss or gradient is not finite, so nothing was updated and earlier checkpoints stand; look for "
        f"bad values in its samples ({named}), or lower schedule.lr and resume with allow_changes=true"
    )


def ema_decay(half_life_fraction: float, step: int) -> float:
    """Decay whose half-life is a fraction of the steps taken, so that early weights are forgotten at any length."""
    return float(0.5 ** (1.0 / (half_life_fraction * step)))


def observe(run: Run, progress: Progress) -> None:
    """Evaluate, sample and save where this step is due; the last step always is."""
    cadence, step, last = run.config.run, progress.step, progress.step == run.config.run.steps
    if due(cadence.evaluate_every, step, last):
        evaluate(run, progress)
    if due(cadence.sample_every, step, last):
        write_samples(run, step)
    if step and due(cadence.checkpoint_every, step, last):
        save(run, progress)


def due(period: int, step: int, last: bool) -> bool:
    return period > 0 and (last or step % period == 0)


def evaluate(run: Run, progress: Progress) -> None:
    """Held-out loss of the averaged weights."""
    if run.heldout is None:
        return
    started = time.perf_counter()
    with run.engine.ema_weights():
        table = heldout_loss(
            run.engine.predict,
            run.heldout,
            rank=run.grid.data_rank,
            ranks=run.grid.data_size,
            total=run.grid.sum_over_data,
        )
    row: dict[str, Any] = {
        "heldout/loss": table.loss,
        "heldout/ratio_to_zero": table.ratio_to_zero,
        "heldout/seconds": round(time.perf_counter() - started, 2),
        "tokens": progress.tokens,
        "flops": progress.flops,
    }
    for level, loss in zip(run.heldout.levels, table.loss_SV.mean(0), strict=True):
        row[f"heldout/loss_t{level:.2f}"] = float(loss)
    run.metrics.write(progress.step, row)
    run.metrics.say(
        f"step {progress.step}: held-out loss {table.loss:.4f}, {table.ratio_to_zero:.3f} of the zero predictor's"
    )


def save(run: Run, progress: Progress) -> None:
    """Commit a checkpoint of logical tensors, then drop the oldest."""
    root = run.config.path / "checkpoints"
    state = {
        **vars(progress),
        "adam_steps": run.engine.adam_steps,
        "manifest": run.manifest.hash,
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
    """Where a step's time goes, and the line that says so."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.seconds: dict[str, float] = {}
        self.throughput = Throughput()
        self.started = time.perf_counter()
        self.first_step: int | None = None

    def measured(self, part: str) -> "Measured":
        return Measured(self.seconds, part)

    def report(self, progress: Progress, batch: Any, result: Any, rate: float) -> None:
        """Write a row every `log_every` steps: rates are over the steps since the last row."""
        self.throughput.tokens += batch.video_tokens
        cadence = self.run.config.run
        self.first_step = self.first_step if self.first_step is not None else progress.step - 1
        if progress.step % cadence.log_every and progress.step != cadence.steps:
            return
        elapsed = sum(self.seconds.values())
        tokens_per_s = self.throughput.take()
        row = {
            "loss": result.loss,
            "grad_norm": result.grad_norm,
            "lr": rate,
            "tokens": progress.tokens,
            "flops": progress.flops,
            "epoch": progress.epoch,
            "tokens_per_s": round(tokens_per_s, 1),
            "data_wait": round(self.seconds.get("data", 0.0) / max(elapsed, 1e-9), 4),
            "fill": round(batch.video_tokens / batch.token_budget, 4),
        }
        self.seconds.clear()
        self.run.metrics.write(progress.step, row)
        per_step = (time.perf_counter() - self.started) / (progress.step - self.first_step)
        left = per_step * (cadence.steps - progress.step)
        self.run.metrics.say(
            f"step {progress.step}/{cadence.steps}  loss {result.loss:.4f}  norm {result.grad_norm:.3f}  "
            f"lr {rate:.2e}  {tokens_per_s:,.0f} tokens/s  {per_step:.2f} s/step  "
            f"fill {row['fill']:.2f}  left {left / 60:.1f} min"
        )


class Measured:
    """Adds the seconds of a `with` block to an entry of a dict."""

    def __init__(self, seconds: dict[str, float], part: str) -> None:
        self.seconds, self.part = seconds, part

    def __enter__(self) -> None:
        self.start = time.perf_counter()

    def __exit__(self, *exc: object) -> None:
        self.seconds[self.part] = self.seconds.get(self.part, 0.0) + time.perf_counter() - self.start
