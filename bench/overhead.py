"""What a training step costs beside the same DeepSpeed engine in a bare loop; DDP and FSDP2 of the same module beside.

    make bench          or: CUDA_VISIBLE_DEVICES= python -m bench.overhead [--model demo] [--rounds 20]

Two data ranks on the CPU over gloo, float32, one thread each, with the same weights, packs, AdamW and clipping. The
bare loop is the module, `backward` and `engine.step`: no schedule, no check, no loss of the global batch. In a round
each takes one step, in an order that changes; a ratio is the median of those within rounds. After the last round all
must have the same weights. Where other programs want the same cores, `chrt -r 1` before the command (as root) keeps
them out of the figures.
"""

import argparse
import json
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
import yaml
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from model.block import Block
from model.dit import DiTConfig, Head
from model.packed import PackedInputs, patch_positions
from parallel.dims import ParallelDims
from parallel.engine import TrainEngine
from parallel.optim import AdamWConfig, is_decayed
from parallel.pipeline import weighted_error
from parallel.runtime import Grid
from parallel.stage import build_stage
from parallel.zero import ZeroOptimizer

RANKS = 2
GRIDS = ((1, 8, 8), (4, 8, 8), (3, 8, 8))  # frames, rows and columns of patches: 512 tokens
TEXT_TOKENS = 24
LR = 1e-4
CLIP_NORM = 0.02
"""Below the norms there are, so that clipping acts."""
TIMEOUT_S = 120.0
SAME = 1e-3
"""Weights may differ by this much of their norm: AdamW magnifies the rounding of gradients near zero."""


@dataclass(frozen=True, kw_only=True)
class Pack:
    inputs: PackedInputs
    target_LP: Tensor
    weight_L: Tensor


@dataclass(frozen=True, kw_only=True)
class Contender:
    """A way to take a step over this rank's packs, and the weights it leaves."""

    step: Callable[[list[Pack]], object]
    weights: Callable[[], dict[str, Tensor]]


def make_packs(config: DiTConfig, count: int, *, seed: int) -> list[Pack]:
    generator = torch.Generator().manual_seed(seed)
    lengths = tuple(t * h * w for t, h, w in GRIDS)
    segments, tokens = len(GRIDS), sum(lengths)
    packs = []
    for _ in range(count):
        inputs = PackedInputs(
            patch_LP=torch.randn(tokens, config.patch_values_in, generator=generator),
            position_L3=torch.cat([patch_positions(grid) for grid in GRIDS]),
            row_L=torch.arange(segments).repeat_interleave(torch.tensor(lengths)),
            segment_lengths=lengths,
            time_R=torch.rand(segments, generator=generator),
            is_condition_R=torch.zeros(segments, dtype=torch.bool),
            text_KE=torch.randn(segments * TEXT_TOKENS, config.text_dim, generator=generator),
            text_lengths=(TEXT_TOKENS,) * segments,
        )
        target_LP = torch.randn(tokens, config.patch_values_out, generator=generator)
        packs.append(Pack(inputs=inputs, target_LP=target_LP, weight_L=torch.ones(tokens)))
    return packs


def scaled_error(module: nn.Module, pack: Pack, packs: list[Pack]) -> Tensor:
    """This pack's part of the mean over this rank's tokens; ranks have equally many."""
    weight = sum(len(one.weight_L) for one in packs)
    return weighted_error(module(pack.inputs), pack.target_LP, pack.weight_L) / weight


def copies(module: nn.Module) -> dict[str, Tensor]:
    named = {name.removeprefix("module."): parameter.detach() for name, parameter in module.named_parameters()}
    return {name: p.full_tensor() if isinstance(p, DTensor) else p for name, p in named.items()}


@contextmanager
def ours(grid: Grid, config: DiTConfig, optim: AdamWConfig) -> Iterator[Contender]:
    with TrainEngine(grid, build_stage(grid, config, seed=0), optim) as engine:
        yield Contender(step=lambda packs: engine.step(packs, lr=LR), weights=lambda: copies(engine.stage))


@contextmanager
def bare(grid: Grid, config: DiTConfig, optim: AdamWConfig) -> Iterator[Contender]:
    module = build_stage(grid, config, seed=0)
    zero = ZeroOptimizer(grid, module, optim)
    engine = zero._engine
    for group in engine.optimizer.param_groups:
        group["lr"] = LR

    def step(packs: list[Pack]) -> None:
        for pack in packs:
            scaled_error(module, pack, packs).backward()
        engine.step()

    yield Contender(step=step, weights=lambda: copies(module))
    zero.close()


def adamw(module: nn.Module, optim: AdamWConfig) -> torch.optim.AdamW:
    groups: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for name, parameter in module.named_parameters():
        groups[is_decayed(name, tuple(parameter.shape))].append(parameter)
    return torch.optim.AdamW(
        [
            {"params": groups[True], "weight_decay": optim.weight_decay},
            {"params": groups[False], "weight_decay": 0.0},
        ],
        lr=LR,
        betas=(optim.beta1, optim.beta2),
        eps=optim.eps,
        fused=True,
    )


@contextmanager
def ddp(grid: Grid, config: DiTConfig, optim: AdamWConfig) -> Iterator[Contender]:
    module = DistributedDataParallel(build_stage(grid, config, seed=0), process_group=grid.data_group)
    optimizer = adamw(module, optim)

    def step(packs: list[Pack]) -> None:
        for pack in packs:
            with nullcontext() if pack is packs[-1] else module.no_sync():
                scaled_error(module, pack, packs).backward()
        nn.utils.clip_grad_norm_(module.parameters(), optim.clip_norm)
        optimizer.step()
        optimizer.zero_grad()

    yield Contender(step=step, weights=lambda: copies(module))


@contextmanager
def fsdp2(grid: Grid, config: DiTConfig, optim: AdamWConfig) -> Iterator[Contender]:
    module: Any = build_stage(grid, config, seed=0)
    mesh = DeviceMesh.from_group(grid.data_group, "cpu")
    for part in module.modules():
        if isinstance(part, Block | Head):
            fully_shard(part, mesh=mesh)
    fully_shard(module, mesh=mesh)
    optimizer = adamw(module, optim)

    def step(packs: list[Pack]) -> None:
        for pack in packs:
            module.set_requires_gradient_sync(pack is packs[-1])
            scaled_error(module, pack, packs).backward()
        nn.utils.clip_grad_norm_(module.parameters(), optim.clip_norm)
        optimizer.step()
        optimizer.zero_grad()

    yield Contender(step=step, weights=lambda: copies(module))


CONTENDERS = {"Tessera": ours, "same DeepSpeed engine, bare loop": bare, "DDP": ddp, "FSDP2": fsdp2}


def seconds_of(step: Callable[[], object]) -> float:
    """How long a step takes on the slower rank."""
    dist.barrier()
    started = time.perf_counter()
    step()
    seconds = torch.tensor(time.perf_counter() - started, dtype=torch.float64)
    dist.all_reduce(seconds, op=dist.ReduceOp.MAX)
    return float(seconds)


def differences(weights: dict[str, dict[str, Tensor]]) -> dict[str, float]:
    """Of each contender's weights from the first one's, the worst tensor's, relative to its norm."""
    reference = next(iter(weights.values()))
    return {
        name: max(float((own[key] - one).norm() / one.norm().clamp_min(1e-3)) for key, one in reference.items())
        for name, own in weights.items()
    }


def worker(rank: int, config: DiTConfig, packs: int, rounds: int, folder: str) -> None:
    """One rank; the first writes `results.json`."""
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    store, timeout = dist.FileStore(f"{folder}/store", RANKS), timedelta(seconds=TIMEOUT_S)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=RANKS, timeout=timeout)
    batch = make_packs(config, packs, seed=rank)
    seconds: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    with Grid(ParallelDims(data=RANKS, start_timeout_s=TIMEOUT_S)) as grid, ExitStack() as open_ones:
        optim = AdamWConfig(clip_norm=CLIP_NORM)
        running = {name: open_ones.enter_context(build(grid, config, optim)) for name, build in CONTENDERS.items()}
        for number in range(rounds + 1):
            for name in random.Random(number).sample(list(CONTENDERS), len(CONTENDERS)):
                taken = seconds_of(partial(running[name].step, batch))
                if number:  # the first round warms up
                    seconds[name].append(taken)
        different = differences({name: contender.weights() for name, contender in running.items()})
    if rank == 0:
        Path(folder, "results.json").write_text(json.dumps({"seconds": seconds, "different": different}))
    dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description="Our training step beside a bare DeepSpeed loop, DDP and FSDP2.")
    parser.add_argument("--model", default="demo", help="a file of conf/model, without .yaml")
    parser.add_argument("--packs", type=int, default=2, help="of 512 tokens, for a rank and step")
    parser.add_argument("--rounds", type=int, default=20)
    arguments = parser.parse_args()
    if arguments.packs < 1 or arguments.rounds < 2:
        parser.error("at least 1 pack is trained on, and at least 2 rounds are measured")
    if torch.cuda.is_available():
        parser.error("steps are compared on the CPU; hide the GPUs: CUDA_VISIBLE_DEVICES= python -m bench.overhead")
    conf = Path(__file__).parents[1] / "conf" / "model" / f"{arguments.model}.yaml"
    config = DiTConfig(**yaml.safe_load(conf.read_text()))
    print(
        f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, torch {torch.__version__}; {arguments.model}, ", end=""
    )
    print(f"{RANKS} data ranks, {arguments.packs} packs of {sum(t * h * w for t, h, w in GRIDS)} tokens each; ", end="")
    print(f"median of {arguments.rounds} rounds", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        work = (config, arguments.packs, arguments.rounds, folder)
        multiprocessing.start_processes(worker, work, nprocs=RANKS, daemon=True, start_method="fork")
        results = json.loads(Path(folder, "results.json").read_text())
    base = results["seconds"]["same DeepSpeed engine, bare loop"]
    for name, seconds in results["seconds"].items():
        ratios = [one / other for one, other in zip(seconds, base, strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        print(
            f"  {name:33s} {1000 * statistics.median(seconds):7.1f} ms a step (fastest {1000 * min(seconds):.1f})   "
            f"/ bare loop {middle:.3f} (quartiles {low:.3f} to {high:.3f})"
        )
    worst = max(results["different"].values())
    print(f"  weights after {arguments.rounds + 1} steps: at most {worst:.1e} of their norm apart")
    if worst > SAME:
        raise SystemExit(f"the contenders did not do the same work: {results['different']}")


if __name__ == "__main__":
    main()
