"""Train a video DiT.

python -m trainer.train experiment=demo
torchrun --nproc-per-node 4 -m trainer.train experiment=demo parallel=tp2_pp2
"""

import logging
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from itertools import product
from typing import Any

import hydra
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from data.curriculum import Curriculum
from data.integrity import QUICK_SAMPLES, quick_problems
from data.mixture import DataSet
from data.plan import FILE_NAME as PLAN_NAME
from model.flops import parameter_count
from parallel.engine import TrainEngine
from parallel.hang import hangs_told
from parallel.launch import Launch, SlurmJob
from parallel.legality import require_legal
from parallel.runtime import Grid
from trainer.build import Run, build_engine, heldout_of, open_shards, plan_config, trained_of
from trainer.checkpoint import CheckpointReader, newest_checkpoint
from trainer.code_version import code_version
from trainer.compose import to_dataclass, to_yaml, user_errors
from trainer.config import TrainConfig, differences, workload
from trainer.deadline import Deadline
from trainer.loop import Progress, train
from trainer.metrics import Metrics
from trainer.online import OnlineEncoder, begin
from trainer.online_plan import with_plan
from trainer.samples import sample_set
from trainer.signals import StopRequest
from trainer.starts import Starts, exit_code

log = logging.getLogger(__name__)

HOW_TO_GO_ON = "to go on, raise run.steps with allow_changes=true: the schedule is stretched to it"


def plan_lines(config: TrainConfig, shards: DataSet, plan: Curriculum, world_size: int) -> list[str]:
    """What a run would do, checked as far as one process can."""
    model, data, training = config.model, config.data, plan.plans[-1].data
    dims = require_legal(config.parallel, workload(config), world_size)
    count = parameter_count(model)
    tokens = sum(int(manifest.chunks.video_tokens.sum()) for manifest in training.manifests)
    encoder = shards.manifests[0].supply
    return [
        f"run {config.name} in {config.folder}: {config.run.steps} steps",
        f"layout: {dims.describe()}, {world_size} in all",
        f"model: {count.total:,} parameters, {count.non_embedding:,} of them in the {model.num_blocks} blocks",
        f"data: {len(training):,} training samples of {len(shards):,}, {tokens:,} tokens",
        f"step: {data.packs_per_step} packs of {data.tokens_per_pack} tokens",
        *([encoder.line(shards.manifests[0])] if isinstance(encoder, OnlineEncoder) else []),
    ]


def say_plan(config: TrainConfig, shards: DataSet, plan: Curriculum, world_size: int) -> None:
    """The plan, and what is wrong in the shards of small sets: a hostile member, say, though it concerns no sample."""
    log.info("\n".join(plan_lines(config, shards, plan, world_size)))
    looks = log.isEnabledFor(logging.WARNING) and len(shards) <= QUICK_SAMPLES
    for manifest in shards.manifests if looks else ():
        found = quick_problems(manifest)
        if found.count:
            log.warning(
                "%s: %s; samples are read by their place and each is checked; python -m data.doctor %s lists all",
                *(manifest.folder, ", ".join(found.lines(1)), manifest.folder),
            )


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
    config = with_plan(config)
    shards, plan = open_shards(config)
    manifest = shards.manifests[0]
    say_plan(config, shards, plan, launch.world_size)
    if config.dry_run:
        return 0
    reader = newest_checkpoint(config.path / "checkpoints")
    progress = Progress() if reader is None else resume(config, reader, shards)
    if progress.step >= config.run.steps:
        log.info("step %d of %d is done; %s", progress.step, config.run.steps, HOW_TO_GO_ON)
        return 0
    with (
        StopRequest(speaks=speaks) as stop,
        Grid(config.parallel, hang_folder=config.path / "hang") as grid,
        hangs_told(grid, lambda: f"after step {progress.step}"),
        build_engine(config, grid) as engine,
    ):
        starts = agree_on_start(grid, progress.step, config)
        deadline = Deadline.of_job(closing_s=config.wandb.finish_s)
        if reader is not None:
            with deadline.measured("save"):  # until one was seen: what it takes to read is about what it takes to write
                engine.load(reader.read, adam_steps=int(reader.state["adam_steps"]))
            log.info("resumed from %s", reader.folder)
        begin(config, manifest, grid)
        heldout, trained = heldout_of(config, manifest), trained_of(config, manifest)
        samples = sample_set(config, manifest, multiple=grid.dims.stream_shards)
        with (
            Metrics(config.path, speaks=speaks, resume_step=progress.step, config_yaml=to_yaml(config)) as metrics,
            hangs_told(grid, lambda: f"after step {progress.step}"),  # here too, for log.txt to have the sentence
        ):
            if speaks:
                metrics.start_wandb(config.wandb, name=config.name, settings=facts(config, grid, engine, shards))
            metrics.note("DeepSpeed: " + ", ".join(f"{name}={value}" for name, value in engine.settings.items()))
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
                starts=starts,
            )
            record_plan(config, shards, progress, metrics)
            warm_up(grid, metrics)
            metrics.exit_code = train(parts, progress, stop, deadline)
        grid.barrier()  # a launcher that sees one rank end with 75 ends the others, and rank 0 may have W&B to wait for
        return metrics.exit_code


def facts(config: TrainConfig, grid: Grid, engine: TrainEngine, shards: DataSet) -> dict[str, Any]:
    """What W&B shows as the run's config: chosen names only, so that no path and no credential is among them."""
    count = parameter_count(config.model)
    return {
        **config.defining(),
        **{f"parallel.{name}": value for name, value in asdict(grid.dims).items()},
        **{f"run.{name}": value for name, value in asdict(config.run).items()},
        **{f"evaluation.{name}": value for name, value in asdict(config.evaluation).items()},
        **{f"deepspeed.{name}": value for name, value in engine.settings.items()},
        "parameters": count.total,
        "parameters.non_embedding": count.non_embedding,
        "ranks": grid.world_size,
        "device": str(grid.device.type),
        "manifest": shards.hash,
        **code_version(),
    }


def warm_up(grid: Grid, metrics: Metrics) -> None:
    """Connect the ranks before the first step."""
    seconds = grid.warm_up()
    if grid.world_size > 1:
        metrics.say(f"connections between {grid.world_size} ranks made in {seconds:.2f} s")


def record_plan(config: TrainConfig, shards: DataSet, progress: Progress, metrics: Metrics) -> None:
    """What `python -m data.order` needs, of the steps from here on."""
    if metrics.speaks:
        with metrics.guarded(config.path / PLAN_NAME):
            plan_config(config).write(config.path, shards=shards.hash, start=progress.position)


def agree_on_start(grid: Grid, step: int, config: TrainConfig) -> Starts:
    """This start of the run, written down.

    ValueError where ranks found different checkpoints, as on nodes whose disks are not shared, or where the job was
    started too often from this step.
    """
    steps = grid.gather_objects(step)
    if len(set(steps)) > 1:
        raise ValueError(
            f"ranks found different checkpoints in {config.path / 'checkpoints'} (steps {sorted(set(steps))}): "
            "give a folder= that all nodes share"
        )
    starts = Starts(config.path, SlurmJob.from_environment())
    failure = starts.begin(step, max_restarts=config.run.max_restarts) if grid.rank == 0 else None
    if told := [text for text in grid.gather_objects(failure) if text]:
        raise ValueError(told[0])
    return starts


def read(config: DictConfig) -> TrainConfig:
    return to_dataclass(TrainConfig, config)


def jobs_of(words: Sequence[str]) -> list[list[str]]:
    """The overrides of each job of a sweep, of the words of its command."""
    parsed = OverridesParser.create().parse_overrides([word for word in words if not word.startswith("-")])
    choices = {
        one.get_key_element(): [f"{one.get_key_element()}={value}" for value in one.sweep_string_iterator()]
        if one.is_sweep_override()
        else [str(one.input_line)]
        for one in parsed
    }
    return [list(job) for job in product(*choices.values())]


def swept(jobs: list[list[str]]) -> list[list[str]]:
    """Of each job, the overrides that are not those of all."""
    varies = [len({*words}) > 1 for words in zip(*jobs, strict=True)]
    return [[word for word, own in zip(job, varies, strict=True) if own] for job in jobs]


def refuse_shared_folders(jobs: list[list[str]]) -> None:
    """ValueError where two jobs of a sweep would write the same run, or one of them cannot be read."""
    own, names = HydraConfig.instance().cfg, Counter[str]()
    for job in jobs:
        composed = hydra.compose("train", job, return_hydra_config=True)
        HydraConfig.instance().set_config(composed)  # for `${hydra:runtime.choices.model}`
        ours = OmegaConf.masked_copy(composed, [str(key) for key in composed if key != "hydra"])
        names[read(ours).folder] += 1
    HydraConfig.instance().cfg = own
    folder, count = names.most_common(1)[0]
    if count > 1:
        keys = [word.split("=")[0] for word in swept(jobs)[0]]
        groups = HydraConfig.get().runtime.choices
        parts = "-".join(f"${{hydra:runtime.choices.{key}}}" if key in groups else f"${{{key}}}" for key in keys)
        raise ValueError(
            f"{count} jobs of this sweep would write into {folder}: give each a name of its own, such as "
            f"'name=sweep-{parts}'"
        )


@user_errors
@hydra.main(config_path="../conf", config_name="train", version_base="1.3")
@user_errors
def main(config: DictConfig) -> None:
    """Hydra's entry; a job of a sweep after the other with `--multirun`."""
    wanted = read(config)
    if HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN:
        number, jobs = HydraConfig.get().job.num, jobs_of(sys.argv[1:])
        if number == 0:
            refuse_shared_folders(jobs)
        log.info("job %d of %d: %s", number + 1, len(jobs), " ".join(swept(jobs)[number]))
    if code := run(wanted):
        sys.exit(exit_code(code))  # of a sweep too: none of its jobs is begun after a stop


if __name__ == "__main__":
    main()
