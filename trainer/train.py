"""Train a video DiT.

python -m trainer.train experiment=demo
torchrun --nproc-per-node 4 -m trainer.train experiment=demo parallel=tp2_pp2
"""

import logging
import sys
from dataclasses import asdict

import hydra
import torch
from omegaconf import DictConfig

from data.manifest import Manifest
from data.pack import PackPlan
from model.flops import parameter_count
from parallel.runtime import Grid, Launch
from trainer.build import Run, build_engine, heldout_of, open_shards
from trainer.checkpoint import CheckpointReader, newest_checkpoint
from trainer.compose import to_dataclass, user_errors
from trainer.config import TrainConfig, differences
from trainer.loop import Progress, train
from trainer.metrics import Metrics
from trainer.signals import StopRequest

log = logging.getLogger(__name__)


def plan_lines(config: TrainConfig, manifest: Manifest, plan: PackPlan, world_size: int) -> list[str]:
    """What a run would do, checked as far as one process can."""
    dims = config.parallel.resolve(world_size)
    model, data = config.model, config.data
    dims.check_model(num_heads=model.num_heads, ffn_dim=model.ffn_dim, num_blocks=model.num_blocks)
    dims.check_packs(tokens_per_pack=data.tokens_per_pack, packs_per_step=data.packs_per_step)
    count = parameter_count(model)
    tokens = int(plan.manifest.video_tokens.sum())
    sequence = " with sequence parallelism" if dims.tensor > 1 and dims.sequence else ""
    return [
        f"run {config.name} in {config.folder}: {config.run.steps} steps",
        f"layout: {dims.tensor} tensor{sequence} x {dims.pipeline} pipeline x {dims.data} data, {world_size} in all",
        f"model: {count.total:,} parameters, {count.non_embedding:,} of them in the {model.num_blocks} blocks",
        f"data: {len(plan.manifest):,} training samples of {len(manifest):,}, {tokens:,} tokens an epoch",
        f"step: {data.packs_per_step} packs of {data.tokens_per_pack} tokens",
    ]


def resume(config: TrainConfig, reader: CheckpointReader, manifest: Manifest) -> Progress:
    """Progress of a checkpoint; refuses one of other settings or other shards, naming the differences."""
    state = reader.state
    changed = differences(state["settings"], config.defining())
    if state["manifest"] != manifest.hash:
        changed.append(f"shards: {state['manifest'][:12]} -> {manifest.hash[:12]}")
    if changed and not config.allow_changes:
        raise ValueError(
            f"{reader.folder} was saved under other settings ({'; '.join(changed)}): restore them, choose another "
            "folder=, or resume all the same with allow_changes=true"
        )
    if changed:
        log.warning("resumed under other settings: %s", "; ".join(changed))
    return Progress(**{name: state[name] for name in asdict(Progress())})


def run(config: TrainConfig) -> int:
    """Train, or say what would be trained; returns the exit code."""
    launch = Launch.from_environment()
    speaks = launch.rank == 0
    if not speaks:
        logging.getLogger().setLevel(logging.ERROR)
    torch.set_num_threads(config.run.threads_per_rank)
    manifest, plan = open_shards(config)
    for line in plan_lines(config, manifest, plan, launch.world_size):
        log.info(line)
    if config.dry_run:
        return 0
    reader = newest_checkpoint(config.path / "checkpoints")
    progress = Progress() if reader is None else resume(config, reader, manifest)
    if progress.step >= config.run.steps:
        log.info("step %d of %d is done; raise run.steps to go on", progress.step, config.run.steps)
        return 0
    with StopRequest(speaks=speaks) as stop, Grid(config.parallel) as grid, build_engine(config, grid) as engine:
        if reader is not None:
            engine.load(reader.read, adam_steps=int(reader.state["adam_steps"]))
            log.info("resumed from %s", reader.folder)
        heldout = heldout_of(config, manifest)
        metrics = Metrics(config.path, speaks=speaks, resume_step=progress.step)
        metrics.start_wandb(config.wandb, name=config.name, settings=config.defining())
        code = train(
            Run(
                config=config,
                grid=grid,
                engine=engine,
                manifest=manifest,
                plan=plan,
                null_text=manifest.null_text(),
                heldout=heldout,
                metrics=metrics,
            ),
            progress,
            stop,
        )
        metrics.close(code)
    return code


@user_errors
@hydra.main(config_path="../conf", config_name="train", version_base="1.3")
@user_errors
def main(config: DictConfig) -> None:
    """Hydra's entry."""
    sys.exit(run(to_dataclass(TrainConfig, config)))


if __name__ == "__main__":
    main()
