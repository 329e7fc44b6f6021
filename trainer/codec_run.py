"""Codec training: the loop, its checkpoints, and what is written at the end."""

import logging
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diffusion.noise import keyed_generator
from model.codec import VideoCodec
from model.codec_patch import PatchCodec
from model.perceptual import PerceptualDistance
from parallel.fragments import Piece
from trainer.checkpoint import CheckpointReader, prune_checkpoints, write_checkpoint
from trainer.codec_clips import ClipSets, augment, to_video
from trainer.codec_config import CodecOptimConfig, TrainVaeConfig
from trainer.codec_loss import codec_loss
from trainer.codec_quality import measure, reconstruct_with
from trainer.compose import to_yaml
from trainer.deadline import Deadline
from trainer.metrics import Metrics
from trainer.muon import Muon
from trainer.schedule import learning_rate
from trainer.signals import StopRequest

log = logging.getLogger(__name__)
CHECKPOINTS = "checkpoints"
_MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass
class CodecRun:
    """Everything the loop touches."""

    config: TrainVaeConfig
    codec: VideoCodec
    optimizers: list[torch.optim.Optimizer]
    sets: ClipSets
    metrics: Metrics
    device: torch.device
    features: PerceptualDistance | None
    step: int = 0
    seconds: float = 0.0
    """Spent in steps, over all resumptions."""
    facts: dict[str, Any] = field(default_factory=dict)
    """What was measured before the first step; kept in checkpoints."""


def build_optimizers(codec: VideoCodec, config: CodecOptimConfig) -> list[torch.optim.Optimizer]:
    """AdamW, and Muon where it is asked for. `lr` of a group is set at every step from its `ratio`."""
    fitted = codec.shortcut_parameters() if isinstance(codec, PatchCodec) else []
    is_fitted = {id(parameter) for parameter in fitted}
    rest = [parameter for parameter in codec.parameters() if id(parameter) not in is_fitted]
    matrices = [parameter for parameter in rest if config.muon and parameter.dim() > 1]
    others = [parameter for parameter in rest if not config.muon or parameter.dim() <= 1]
    groups = [
        {"params": others, "ratio": 1.0},
        {"params": fitted, "ratio": config.shortcut_lr_ratio, "weight_decay": 0.0},
    ]
    adamw = torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=0.0,
        betas=(config.beta1, config.beta2),
        eps=config.eps,
        weight_decay=config.weight_decay,
    )
    if not matrices:
        return [adamw]
    muon = Muon(
        [{"params": matrices, "ratio": 1.0}], lr=0.0, momentum=config.momentum, weight_decay=config.weight_decay
    )
    return [adamw, muon]


def train(run: CodecRun, stop: StopRequest) -> str | None:
    """Train to the last step, or until a signal or the time limit stops it; returns which it was, with all saved."""
    config, pace, deadline = run.config.run, Pace(run), Deadline.of_job(closing_s=run.config.wandb.finish_s)
    batches = run.sets.batches(seed=run.config.seed, skip=run.step)
    while run.step < config.steps:
        with deadline.measured("step"):
            pace.report(train_step(run, batches))
        if run.metrics.failure:
            raise ValueError(run.metrics.failure)
        last = run.step == config.steps
        if not last and _is_due(config.evaluate_every, run.step):
            with deadline.measured("evaluate"):
                evaluate(run)
        due = ["evaluate"] * _is_due(config.evaluate_every, run.step + 1)
        asked = stop.signal_name or deadline.forbids(["step", *due, "save"])
        if last or asked or _is_due(config.checkpoint_every, run.step):
            with deadline.measured("save"):
                save_checkpoint(run)
        if asked and not last:
            return asked
    return None


def _is_due(period: int, step: int) -> bool:
    return period > 0 and step % period == 0


def train_step(run: CodecRun, batches: Iterator[Tensor]) -> dict[str, float]:
    """One step of AdamW; returns what there is to log."""
    started, config = time.perf_counter(), run.config
    generator = keyed_generator(config.seed, "codec step", run.step)
    frames = next(batches)
    video_B3THW = to_video(frames.to(run.device))
    if config.data.augment:
        video_B3THW = augment(video_B3THW, config.codec.strides, generator=generator)
    with torch.autocast(run.device.type, torch.bfloat16, enabled=config.run.precision == "bfloat16"):
        loss = codec_loss(run.codec, video_B3THW, config.loss, generator=generator, features=run.features)
    # Every pixel weighs the same, however few clips there were of one size.
    share = frames[:, :, 0].numel() / config.data.pixels_per_batch
    run.codec.zero_grad(set_to_none=True)
    (loss.total * share).backward()
    norm = torch.nn.utils.clip_grad_norm_(run.codec.parameters(), config.optim.clip_norm)
    if not bool(torch.isfinite(norm)):
        raise ValueError(
            f"step {run.step}: the gradient is not finite; lower schedule.lr={config.schedule.lr} and start again"
        )
    rate = learning_rate(config.schedule, run.step, config.run.steps)
    for optimizer in run.optimizers:
        for group in optimizer.param_groups:
            group["lr"] = rate * group["ratio"]
        optimizer.step()
    run.step += 1
    run.seconds += time.perf_counter() - started
    terms = {name: float(term) for name, term in loss.terms.items()}
    psnr_db = -10 * math.log10(max(terms["mse"] / 4, 1e-12))
    return {"loss": float(loss.total.detach()), "psnr": psnr_db, **terms, "grad_norm": float(norm), "lr": rate}


class Pace:
    """Rows for `metrics.jsonl` at every step, and a line on the console every few seconds."""

    def __init__(self, run: CodecRun) -> None:
        self.run = run
        self.said_at, self.said_step = time.monotonic(), run.step
        self.recent: list[dict[str, float]] = []

    def report(self, row: dict[str, float]) -> None:
        """Take in one step."""
        run, now = self.run, time.monotonic()
        self.recent.append(row)
        run.metrics.write(run.step, row)
        if now - self.said_at < run.config.run.log_every_s and run.step < run.config.run.steps:
            return
        step_s = (now - self.said_at) / (run.step - self.said_step)
        mean = {name: sum(r[name] for r in self.recent) / len(self.recent) for name in ("loss", "psnr")}
        left = step_s * (run.config.run.steps - run.step)
        run.metrics.say(
            f"step {run.step}/{run.config.run.steps}  loss {mean['loss']:.4f}  psnr {mean['psnr']:.2f} dB  "
            f"{step_s:.3f} s/step  {left:.0f} s left"
        )
        self.said_at, self.said_step, self.recent = now, run.step, []


def evaluate(run: CodecRun) -> None:
    """PSNR and SSIM on the held-out clips, to the log and the metrics."""
    quality = measure(reconstruct_with(run.codec), run.sets.heldout, run.device)
    run.metrics.write(run.step, {"heldout/psnr": quality.psnr_db, "heldout/ssim": quality.ssim})
    run.metrics.say(f"step {run.step}: held-out PSNR {quality.psnr_db:.2f} dB, SSIM {quality.ssim:.3f}")


def save_checkpoint(run: CodecRun) -> None:
    """Commit weights and moments, then drop the earlier checkpoint."""
    root = run.config.path / CHECKPOINTS
    state = {
        "step": run.step,
        "seconds": run.seconds,
        "facts": run.facts,
        "settings": run.config.defining(),
        "clips": run.facts["clips"],
    }
    write_checkpoint(
        root, _pieces(run), state=state, config_yaml=to_yaml(run.config), rank=0, gather=lambda report: [report]
    )
    prune_checkpoints(root, 1)


def _state_of(run: CodecRun) -> dict[nn.Parameter, dict[str, Any]]:
    """What the optimizer of each parameter keeps for it."""
    return {
        parameter: optimizer.state[parameter]
        for optimizer in run.optimizers
        for group in optimizer.param_groups
        for parameter in group["params"]
    }


def _pieces(run: CodecRun) -> Iterator[Piece]:
    for name, tensor in run.codec.state_dict().items():
        yield _whole("master", name, tensor)
    state = _state_of(run)
    for name, parameter in run.codec.named_parameters():
        for kind in _MOMENTS:
            if kind in state[parameter]:
                yield _whole(kind, name, state[parameter][kind])


def _whole(kind: str, name: str, tensor: Tensor) -> Piece:
    shape = tuple(tensor.shape)
    return Piece(kind=kind, name=name, global_shape=shape, offset=(0,) * len(shape), tensor=tensor)


def load_checkpoint(run: CodecRun, reader: CheckpointReader) -> None:
    """Go on from a checkpoint: weights, moments, step."""
    run.codec.load_state_dict({name: reader.tensor("master", name) for name in run.codec.state_dict()})
    held = {kind: set(reader.names(kind)) for kind in _MOMENTS}
    state = _state_of(run)
    for name, parameter in run.codec.named_parameters():
        state[parameter]["step"] = torch.tensor(float(reader.state["step"]))
        moments = {kind: reader.tensor(kind, name) for kind in _MOMENTS if name in held[kind]}
        state[parameter].update({kind: moment.to(run.device) for kind, moment in moments.items()})
    run.step, run.seconds, run.facts = reader.state["step"], reader.state["seconds"], reader.state["facts"]


def checkpoint_root(folder: Path) -> Path:
    """Where the checkpoints of a codec folder lie."""
    return folder / CHECKPOINTS
