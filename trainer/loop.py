"""The training loop."""

import logging
import time
from typing import Any

from data.loader import Loader, StepData
from trainer.build import Run
from trainer.checkpoint import prune_checkpoints, step_folder, write_checkpoint
from trainer.compose import to_yaml
from trainer.deadline import Deadline
from trainer.evaluation import EvaluationSet, HeldOutLoss, heldout_loss, standard_error
from trainer.goodput import counted
from trainer.metrics import NotFinite
from trainer.pace import Pace, Progress, due
from trainer.samples import write_samples
from trainer.schedule import learning_rate
from trainer.signals import EXIT_STOPPED, StopRequest

log = logging.getLogger(__name__)

_KEYS_NAMED = 8
"""Samples that a sentence names."""


def train(run: Run, progress: Progress, stop: StopRequest, deadline: Deadline) -> int:
    """Train to the last step, until asked to stop or until time is up; returns the process's exit code."""
    steps, pace = run.config.run.steps, Pace(run, progress)
    refuse_together(run)
    if words := deadline.told():
        run.metrics.say(words)
    if progress.step == 0:  # a checkpoint is saved after its step was observed
        observe(run, progress, deadline)
    with run.loader(progress.position) as loader:
        while progress.step < steps:
            rate = learning_rate(run.config.schedule, progress.step, steps)
            with deadline.measured("step"):
                with pace.measured("data"):
                    batch = fetch(run, loader)
                    microbatches = run.microbatches(batch)
                with pace.measured("step"):
                    result = run.engine.step(microbatches, lr=rate)
            run.grid.started()
            if result.skipped:
                raise NotFinite(not_finite(run, progress.step + 1, batch))
            after = batch.position_after
            progress.step, progress.tokens = after.step, after.tokens
            progress.epoch, progress.pack, progress.stage = after.epoch, after.pack, after.stage
            run.engine.update_ema(ema_decay(run.config.run.ema_half_life_fraction, progress.step))
            progress.flops += run.training_flops(microbatches)
            pace.report(progress, batch, result, rate)
            observe(run, progress, deadline)
            asked = stop.signal_name or deadline.forbids(["step", *parts_due(run, progress.step + 1), "save"])
            if run.grid.any(asked is not None) and progress.step < steps:
                return leave(run, progress, asked or "another rank's signal")
    pace.end(progress)
    refuse_together(run)
    return 0


def fetch(run: Run, loader: Loader) -> StepData:
    """The next step's packs. They are handed on between ranks only where all could read what they read."""
    failure = None
    try:
        loader.wait()
    except ValueError as error:
        failure = str(error)
    except Exception as error:  # the other ranks must hear of it, or they would wait
        log.exception("the loader failed")
        failure = f"{type(error).__name__}: {error}"
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


def observe(run: Run, progress: Progress, deadline: Deadline) -> None:
    """Check, evaluate, sample and save where this step is due; the last step always is."""
    for part in parts_due(run, progress.step):
        with deadline.measured(part):
            match part:
                case "check":
                    run.engine.check_replicas()
                case "evaluate":
                    evaluate(run, progress)
                case "sample":
                    sample(run, progress.step)
                case "save":
                    save(run, progress)


def parts_due(run: Run, step: int) -> list[str]:
    """What comes after a step."""
    cadence, last = run.config.run, step == run.config.run.steps
    saves = step > 0 and due(cadence.checkpoint_every, step, last)
    parts = {
        "check": not saves and step > 0 and due(cadence.check_replicas_every, step, last),
        "evaluate": due(cadence.evaluate_every, step, last),
        "sample": due(cadence.sample_every, step, last),
        "save": saves,
    }
    return [part for part, is_due in parts.items() if is_due]


@counted("evaluation")
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


@counted("samples")
def sample(run: Run, step: int) -> None:
    """A sheet of the run's prompts."""
    if run.samples is None:
        return
    path = run.config.path / "samples" / f"step_{step:08d}.png"
    written = write_samples(run.samples, engine=run.engine, grid=run.grid, metrics=run.metrics, step=step, path=path)
    if written:
        run.metrics.write(step, {"samples": written})
    run.metrics.say(f"step {step}: samples in {path}")


@counted("checkpoints")
def save(run: Run, progress: Progress) -> None:
    """Commit a checkpoint of logical tensors, then drop the oldest; ValueError where a later start owns the run."""
    refuse_together(run, run.starts.taken_over() if run.grid.rank == 0 else None)
    started = time.perf_counter()
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
        where = step_folder(root, progress.step)
        relative = str(where.relative_to(run.config.path))
        run.metrics.write(progress.step, {"checkpoint": {"path": relative, **vars(progress)}})
        run.metrics.say(f"step {progress.step}: saved in {where}, {time.perf_counter() - started:.1f} s")
    run.grid.barrier()


def leave(run: Run, progress: Progress, reason: str) -> int:
    """Save at the step boundary, unless that was due anyway, and say how to go on."""
    if not due(run.config.run.checkpoint_every, progress.step, last=False):
        save(run, progress)
    refuse_together(run, run.starts.stopped(reason) if run.grid.rank == 0 else None)
    run.metrics.write(progress.step, run.metrics.goodput.row())
    run.metrics.alert(progress.step, "preemption", f"stopped by {reason} after step {progress.step}, all saved")
    run.metrics.say(
        f"stopped by {reason} after step {progress.step} of {run.config.run.steps}; everything is saved, "
        "and the same command goes on from here"
    )
    return EXIT_STOPPED
