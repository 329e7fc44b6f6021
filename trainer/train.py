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

from data.curriculum import Curriculum
from data.mixture import DataSet
from data.plan import FILE_NAME as PLAN_NAME
from model.flops import parameter_count
from parallel.hang import hangs_told
from parallel.launch import Launch
from parallel.legality import require_legal
from parallel.runtime import Grid
from trainer.build import Run, build_engine, heldout_of, open_shards, plan_config, trained_of
from trainer.checkpoint import CheckpointReader, newest_checkpoint
from trainer.compose import to_dataclass, to_yaml, user_errors
from trainer.config import TrainConfig, differences, workload
from trainer.loop import Progress, train
from trainer.metrics import Metrics
from trainer.samples import sample_set
from trainer.signals import StopRequest

log = logging.getLogger(__name__)


def plan_lines(config: TrainConfig, shards: DataSet, plan: Curriculum, world_size: int) -> list[str]:
    """What a run would do, checked as far as one process can."""
    model, data, training = config.model, config.data, plan.plans[-1].data
    dims = require_legal(config.parallel, workload(config), world_size)
    count = parameter_count(model)
    tokens = sum(int(manifest.chunks.video_tokens.sum()) for manifest in training.manifests)
    return [
        f"run {config.name} in {config.folder}: {config.run.steps} steps",
        f"layout: {dims.describe()}, {world_size} in all",
        f"model: {count.total:,} parameters, {count.non_embedding:,} of them in the {model.num_blocks} blocks",
        f"data: {len(training):,} training samples of {len(shards):,}, {tokens:,} tokens",
        f"step: {data.packs_per_step} packs of {data.tokens_per_pack} tokens",
    ]


def resume(config: TrainConfig, reader: CheckpointReader, shards: DataSet) -> Progress:
    """Progress of a checkpoint; refuses one of other settings or other shards, naming the differences."""
    state = reader.state
    changed = differences(state["settings"], config.defining())
    if state["manifest"] != shards.hash:
        changed.append(f"shards: {state['manifest'][:12]} -> {shards.hash[:12]}")
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
    if config.run.threads_per_rank is not None:
        torch.set_num_threads(config.run.threads_per_rank)
    shards, plan = open_shards(config)
    manifest = shards.manifests[0]
    log.info("\n".join(plan_lines(config, shards, plan, launch.world_size)))
    if config.dry_run:
        return 0
    reader = newest_checkpoint(config.path / "checkpoints")
    progress = Progress() if reader is None else resume(config, reader, shards)
    if progress.step >= config.run.steps:
        log.info(
            "step %d of %d is done; to go on, raise run.steps with allow_changes=true: the schedule is stretched to it",
            progress.step,
            config.run.steps,
        )
        return 0
    with (
        StopRequest(speaks=speaks) as stop,
        Grid(config.parallel, hang_folder=config.path / "hang") as grid,
        hangs_told(grid, lambda: f"after step {progress.step}"),
        build_engine(config, grid) as engine,
    ):
        agree_on_step(grid, progress.step, config)
        if reader is not None:
            engine.load(reader.read, adam_steps=int(reader.state["adam_steps"]))
            log.info("resumed from %s", reader.folder)
        heldout, trained = heldout_of(config, manifest), trained_of(config, manifest)
        samples = sample_set(config, manifest, multiple=grid.dims.stream_shards)
        with (
            Metrics(config.path, speaks=speaks, resume_step=progress.step, config_yaml=to_yaml(config)) as metrics,
            hangs_told(grid, lambda: f"after step {progress.step}"),  # here too, for log.txt to have the sentence
        ):
            settings = config.defining() | {f"deepspeed.{name}": value for name, value in engine.settings.items()}
            metrics.start_wandb(config.wandb, name=config.name, settings=settings)
            metrics.say("DeepSpeed: " + ", ".join(f"{name}={value}" for name, value in engine.settings.items()))
            parts = Run(
                config=config,
                grid=grid,
                engine=engine,
                manifest=manifest,
                shards=shards,
                plan=plan,
                null_text=manifest.null_text(),
                heldout=heldout,
                trained=trained,
                samples=samples,
                metrics=metrics,
            )
            record_plan(config, shards, metrics)
            seconds = grid.warm_up()
            if grid.world_size > 1:
                metrics.say(f"connections between {grid.world_size} ranks made in {seconds:.2f} s")
            metrics.exit_code = train(parts, progress, stop)
            return metrics.exit_code


def record_plan(config: TrainConfig, shards: DataSet, metrics: Metrics) -> None:
    """What `python -m data.order` needs."""
    if metrics.speaks:
        with metrics.guarded(config.path / PLAN_NAME):
            plan_config(config).write(config.path, shards=shards.hash)


def agree_on_step(grid: Grid, step: int, config: TrainConfig) -> None:
    """ValueError where ranks found different checkpoints, as on nodes whose disks are not shared."""
    steps = grid.gather_objects(step)
    if len(set(steps)) > 1:
        raise ValueError(
            f"ranks found different checkpoints in {config.path / 'checkpoints'} (steps {sorted(set(steps))}): "
            "give a folder= that all nodes share"
        )


@user_errors
@hydra.main(config_path="../conf", config_name="train", version_base="1.3")
@user_errors
def main(config: DictConfig) -> None:
    """Hydra's entry."""
    sys.exit(run(to_dataclass(TrainConfig, config)))


if __name__ == "__main__":
    main()
