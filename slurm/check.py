"""What a training job would do on its nodes, found out before the queue: one sentence for what would not work."""

import shutil
from dataclasses import replace
from typing import Literal

from model.flops import parameter_count
from parallel.dryrun import dry_run
from parallel.legality import require_legal
from slurm.cluster import ClusterConfig
from trainer.build import open_shards
from trainer.checkpoint import CheckpointReader, committed_steps, step_folder
from trainer.config import TrainConfig, workload
from trainer.layout import size
from trainer.online_plan import with_plan
from trainer.train import plan_lines, resume

_BYTES_PER_PARAMETER = 16
"""Of a checkpoint: master weight, two moments and the average, in float32."""


def check_training(config: TrainConfig, cluster: ClusterConfig, *, nodes: int, ranks_per_node: int) -> list[str]:
    """What the run would be, in words.

    Raises:
        ValueError: the layout does not fit the nodes or their GPUs, the shards are not there or not for this model, the
            disk is too full, or the run folder holds another run.
    """
    world = nodes * ranks_per_node
    if config.parallel.precision is None:  # this machine may have no GPU where the nodes have
        precision: Literal["bf16", "fp32"] = "bf16" if cluster.gpus_per_node else "fp32"
        config = replace(config, parallel=replace(config.parallel, precision=precision))
    try:
        dims = require_legal(config.parallel, workload(config), world)
    except ValueError as error:
        raise ValueError(f"nodes={nodes} x {ranks_per_node} ranks: {error}") from error
    lines = [f"nodes: {nodes} x {ranks_per_node} ranks"]
    if ranks_per_node % dims.tensor and dims.tensor > 1:
        lines.append(f"note: parallel.tensor={dims.tensor} reaches over nodes, where messages are slow")
    config = with_plan(config)
    shards, plan = open_shards(config)
    lines += plan_lines(config, shards, plan, world)
    if steps := committed_steps(config.path / "checkpoints"):
        progress = resume(config, CheckpointReader(step_folder(config.path / "checkpoints", steps[-1])), shards)
        lines.append(f"goes on from step {progress.step} in {config.path / 'checkpoints'}")
    return [*lines, _memory(config, cluster, world), _disk(config)]


def _memory(config: TrainConfig, cluster: ClusterConfig, world: int) -> str:
    found = dry_run(
        config.parallel,
        config.model,
        world_size=world,
        tokens_per_pack=config.data.tokens_per_pack,
        packs_per_step=config.data.packs_per_step,
    )
    rank = found.fullest
    alone = rank.first_rank == rank.last_rank
    who = f"rank {rank.first_rank} needs" if alone else f"each of ranks {rank.first_rank}-{rank.last_rank} needs"
    needed = f"{who} {size(rank.total)}"
    if cluster.gpu_memory_gib is not None and rank.total > cluster.gpu_memory_gib * 2**30:
        raise ValueError(
            f"{needed}, but a GPU has cluster.gpu_memory_gib={cluster.gpu_memory_gib:g}: raise parallel.tensor, "
            "parallel.pipeline or parallel.zero_stage, set parallel.recompute, or lower data.tokens_per_pack"
        )
    return f"memory: {needed}" + ("" if rank.activations is not None else ", without activations")


def _disk(config: TrainConfig) -> str:
    checkpoint = _BYTES_PER_PARAMETER * parameter_count(config.model).total
    kept = config.run.keep_checkpoints + 1  # one is written before one is deleted
    there = next(path for path in (config.path.absolute(), *config.path.absolute().parents) if path.exists())
    free = shutil.disk_usage(there).free
    words = f"{kept} checkpoints of {size(checkpoint)}, {size(free)} free in {there}"
    if kept * checkpoint > free:
        raise ValueError(f"disk: {words}: make room, choose another folder=, or lower run.keep_checkpoints")
    return f"disk: {words}"
