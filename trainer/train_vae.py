"""Train a video codec on clip shards.

    python -m trainer.train_vae clips=runs/demo/clips folder=runs/demo/codec [vae=wan21 ...]

The folder becomes the codec folder: weights and config for `trainer.encode`, `metrics.json` with everything measured
on held-out clips, `metrics.jsonl`, and a sheet of reconstructions. A finished codec of the same clips and settings is
left as it is; an interrupted one goes on from its checkpoint.
"""

import json
import logging
import shutil
import sys
import time
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import hydra
import torch
from omegaconf import DictConfig
from torch.utils.flop_counter import FlopCounterMode

from data.clips import clip_shards, clip_shards_identity, count_clips
from model.codec import CODEC_FILES, build_codec, codec_identity, save_codec
from model.codec_patch import PatchCodec
from model.perceptual import load_perceptual
from parallel.launch import Launch
from trainer.checkpoint import newest_checkpoint
from trainer.codec_clips import read_sets, to_video, videos_of
from trainer.codec_config import TrainVaeConfig
from trainer.codec_quality import (
    Quality,
    latent_statistics,
    measure,
    measure_resampling,
    pca_codec,
    pick_spread,
    reconstruct_with,
    table,
    to_json,
    write_reconstructions,
)
from trainer.codec_run import CodecRun, build_optimizers, checkpoint_root, load_checkpoint, train
from trainer.compose import to_dataclass, to_yaml, user_errors
from trainer.device import choose_device
from trainer.metrics import Metrics
from trainer.mirror import ID_FILE, RUN_FILE
from trainer.signals import EXIT_STOPPED, StopRequest

log = logging.getLogger(__name__)
METRICS, SHEET, RUN_CONFIG = "metrics.json", "reconstructions.png", "config.yaml"
BEFORE = "codec before training"


def run(config: TrainVaeConfig) -> int:
    """Train, or say why there is nothing to do; returns the exit code."""
    Launch.require_single("trainer.train_vae")
    clips = clip_shards_identity(config.clips)
    if not config.replace and _stands(config, clips):
        log.info("%s stands: codec %s; nothing to do", config.folder, codec_identity(config.folder))
        return 0
    if config.dry_run:
        total = count_clips(config.clips)
        described = f"{len(clip_shards(config.clips))} shards" + (f", {total} clips" if total is not None else "")
        log.info(
            "would train on %s (%s) for %d steps into %s", config.clips, described, config.run.steps, config.folder
        )
        return 0
    with StopRequest() as stop:
        job = prepare(config, clips)
        with job.metrics:
            reason = train(job, stop)
            if reason is not None:
                log.info("stopped by %s at step %d, all saved; the same command goes on", reason, job.step)
                job.metrics.exit_code = EXIT_STOPPED
            else:
                finish(job)
    return job.metrics.exit_code


def prepare(config: TrainVaeConfig, clips: str) -> CodecRun:
    """Read clips, build the codec, fit its shortcuts, measure what stands before the first step; or resume."""
    if config.run.threads is not None:
        torch.set_num_threads(config.run.threads)
    torch.manual_seed(config.seed)
    device = choose_device(config.run.device)
    features = load_perceptual(config.loss.features).to(device) if config.loss.features else None
    reader = None if config.replace else newest_checkpoint(checkpoint_root(config.path))
    if reader is not None:
        _check_same(config, reader.state, clips)
    sets = read_sets(config.clips, config.clip, config.data)
    for line in sets.report.lines():
        log.info(line)
    log.info("%d training and %d held-out windows", len(sets.training), len(sets.heldout))
    codec = build_codec(config.codec).to(device)
    if config.replace:
        _forget(config.path)
    step = reader.state["step"] if reader else 0
    with ExitStack() as until_ready:
        metrics = Metrics(config.path, speaks=True, resume_step=step, config_yaml=to_yaml(config))
        until_ready.enter_context(metrics)
        metrics.start_wandb(config.wandb, name=config.path.name, settings=config.defining())
        job = CodecRun(
            config=config,
            codec=codec,
            optimizers=build_optimizers(codec, config.optim),
            sets=sets,
            metrics=metrics,
            device=device,
            features=features,
        )
        if reader is not None:
            load_checkpoint(job, reader)
            log.info("going on from step %d of %d", job.step, config.run.steps)
        else:
            job.facts = facts_before(job, clips)
        until_ready.pop_all()
    return job


def facts_before(job: CodecRun, clips: str) -> dict[str, Any]:
    """Fit what can be fitted; then measure size, cost, and quality before training beside the baselines."""
    started, codec, config = time.perf_counter(), job.codec, job.config
    heldout, explained = job.sets.heldout, {}
    if isinstance(codec, PatchCodec):
        explained = codec.fit_shortcuts(videos_of(job.sets.training, job.device))
    before = linear = measure(reconstruct_with(codec), heldout, job.device)
    if not isinstance(codec, PatchCodec):
        pca = pca_codec(codec, job.sets.training, job.device)
        linear = measure(reconstruct_with(pca), heldout, job.device)
    qualities = {"trilinear": measure_resampling(codec, heldout, job.device), "PCA": linear, BEFORE: before}
    parameters = sum(parameter.numel() for parameter in codec.parameters())
    flops = 3 * forward_flops_per_pixel(job) * config.data.pixels_per_batch
    log.info("%.2f M parameters, %.1f GFLOP a step", parameters / 1e6, flops / 1e9)
    for line in table(qualities):
        log.info(line)
    return {
        "clips": clips,
        "parameters": parameters,
        "flops_per_step": flops,
        "explained_variance": explained,
        "quality": {name: asdict(quality) for name, quality in qualities.items()},
        "seconds_before": round(time.perf_counter() - started, 1),
    }


@torch.no_grad()
def forward_flops_per_pixel(job: CodecRun) -> float:
    """Measured on the longest training clip."""
    longest = max(job.sets.training, key=lambda clip: clip.frames_T3HW.numel())
    video_B3THW = to_video(longest.frames_T3HW[None].to(job.device))
    with FlopCounterMode(display=False) as counter:
        job.codec.decode(job.codec.encode(video_B3THW))
    return counter.get_total_flops() / video_B3THW[0, 0].numel()


def finish(job: CodecRun) -> None:
    """Latent statistics, the comparison, the codec folder; `metrics.json` comes last and says that all stands."""
    config, heldout = job.config, job.sets.heldout
    codec = job.codec.eval()
    mean_C, scale_C = latent_statistics(codec, job.sets.training, job.device)
    codec.set_latent_statistics(mean_C=mean_C, scale_C=scale_C)
    save_codec(codec, config.path)
    qualities = {name: Quality(**values) for name, values in job.facts["quality"].items()}
    qualities["codec"] = measure(reconstruct_with(codec), heldout, job.device)
    write_reconstructions(
        config.path / SHEET,
        codec,
        pick_spread(heldout, config.run.sheet_clips),
        device=job.device,
        footer=config.attribution,
    )
    job.metrics.write(job.step, {f"final/psnr {name}": quality.psnr_db for name, quality in qualities.items()})
    described = {
        **to_json(qualities),
        "codec": codec_identity(config.path),
        "clips": job.facts["clips"],
        "settings": config.defining(),
        "steps": job.step,
        "seconds": round(job.seconds, 1),
        **{name: value for name, value in job.facts.items() if name not in ("quality", "clips")},
        "training_windows": len(job.sets.training),
        "heldout_sources": sorted({clip.source for clip in heldout}),
        "skipped_clips": [str(item) for item in job.sets.report.skipped],
        "latent_mean": mean_C.tolist(),
        "latent_scale": scale_C.tolist(),
    }
    scratch = config.path / f".{METRICS}.tmp"
    scratch.write_text(json.dumps(described, indent=1), encoding="utf-8")
    scratch.replace(config.path / METRICS)
    for line in [*table(qualities), f"codec {described['codec']} in {config.folder}, pictures in {SHEET}"]:
        log.info(line)


def _stands(config: TrainVaeConfig, clips: str) -> bool:
    """Whether the folder holds a finished codec of these clips and settings; ValueError where it holds another."""
    path = config.path / METRICS
    if not path.is_file():
        if (config.path / CODEC_FILES[0]).is_file() and not checkpoint_root(config.path).is_dir():
            raise ValueError(f"{config.folder} holds a codec that was not trained there: give another folder")
        return False
    described = json.loads(path.read_text(encoding="utf-8"))
    _check_same(config, described, clips)
    if described["codec"] != codec_identity(config.path):
        raise ValueError(f"{config.folder}: the codec was changed after training: give another folder, or replace=true")
    return True


def _check_same(config: TrainVaeConfig, saved: dict[str, Any], clips: str) -> None:
    """ValueError unless `saved` (checkpoint state or metrics) is of these settings and clips."""
    current = config.defining()
    changed = [
        f"{key}: {saved['settings'].get(key)} -> {value}"
        for key, value in current.items()
        if saved["settings"].get(key) != value
    ]
    if saved["clips"] != clips:
        changed.append("other clips")
    if changed:
        raise ValueError(
            f"{config.folder} holds training with other settings ({'; '.join(changed[:5])}): "
            "give another folder, or replace=true to start again"
        )


def _forget(folder: Path) -> None:
    """Delete what training left in a folder, and nothing else."""
    shutil.rmtree(checkpoint_root(folder), ignore_errors=True)
    for name in (METRICS, "metrics.jsonl", "log.txt", ID_FILE, RUN_FILE, SHEET, RUN_CONFIG, *CODEC_FILES):
        (folder / name).unlink(missing_ok=True)


@user_errors
@hydra.main(config_path="../conf", config_name="train_vae", version_base="1.3")
@user_errors
def main(cfg: DictConfig) -> None:
    """Entry point."""
    sys.exit(run(to_dataclass(TrainVaeConfig, cfg)))


if __name__ == "__main__":
    main()
