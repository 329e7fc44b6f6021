"""Idle time of the pipeline schedule against theory, beside torch.distributed.pipelining.

    make bench          or: CUDA_VISIBLE_DEVICES= python -m bench.pipeline [--stages 2 4 8] [--steps 5]

Every stage sleeps 50 ms forward and 100 ms backward (its chunks share that where the schedule is interleaved), so the
schedule alone decides how long a step takes, and the processes need no core of their own. Ours is `parallel.pipeline`
on the CPU; theirs has the same sleeps and messages in the same processes; their steps alternate. All ranks start a step
at one agreed instant, and it ends when the last one is done.

With p stages, m microbatches and v chunks a stage, theory says: idle = (p - 1) (forward + backward) / v on every rank,
with sleeps that end on time and with messages and code that take none. What they take is printed apart. Where other
programs want the same cores, `chrt -r 1` before the command (as root) keeps them out of the figures.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from torch import Tensor, nn
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleInterleaved1F1B

from model.dit import DiTConfig, Stage, VideoDiT
from model.packed import PackedInputs
from parallel.dims import ParallelDims
from parallel.pipeline import Pipeline, weighted_error
from parallel.runtime import Grid
from parallel.stage import stages_of

FORWARD_S, BACKWARD_S = 0.050, 0.100
TOKENS, WIDTH = 256, 64
MESSAGES = 20
START_S = 0.05
"""From the agreement on an instant to that instant."""
TIMEOUT_S = 60.0


@dataclass(frozen=True, kw_only=True)
class Case:
    """One schedule: `chunks` > 1 is the interleaved one."""

    stages: int
    microbatches: int
    chunks: int = 1

    @property
    def work_s(self) -> float:
        return self.microbatches * (FORWARD_S + BACKWARD_S)

    @property
    def idle_s(self) -> float:
        return (self.stages - 1) * (FORWARD_S + BACKWARD_S) / self.chunks

    @property
    def name(self) -> str:
        return "1F1B" if self.chunks == 1 else f"interleaved x{self.chunks}"

    @property
    def sleeps_in_a_row(self) -> int:
        """Sleeps of the longest chain of a step."""
        return 2 * (self.microbatches * self.chunks + self.stages - 1)

    @property
    def messages_in_a_row(self) -> int:
        """Messages of that chain: down to the last stage and back, and between that stage's own sleeps.

        One stage exchanges once a forward while its pipeline fills, then once a forward with a backward.
        """
        filling = (self.chunks - 1) * self.stages
        return 2 * (self.stages - 1) + self.microbatches * self.chunks + filling - 1

    @property
    def model(self) -> DiTConfig:
        """Only its sizes are used: one block a chunk, patches as wide as the stream."""
        return DiTConfig(
            num_blocks=self.stages * self.chunks,
            num_heads=4,
            head_dim=WIDTH // 4,
            ffn_dim=WIDTH,
            text_dim=8,
            in_channels=WIDTH // 4,
        )


@dataclass(frozen=True, kw_only=True)
class Pack:
    inputs: PackedInputs
    target_LP: Tensor
    weight_L: Tensor


class Sleeper(nn.Module):
    """Sleeps forward and backward, and adds up how long it really slept."""

    def __init__(self, chunks: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(WIDTH))
        self.forward_s, self.backward_s = FORWARD_S / chunks, BACKWARD_S / chunks
        self.slept_s = 0.0

    def sleep(self, seconds: float) -> None:
        started = time.perf_counter()
        time.sleep(seconds)
        self.slept_s += time.perf_counter() - started

    def forward(self, stream_LD: Tensor) -> Tensor:
        return _Sleep.apply(stream_LD * self.scale, self)


class _Sleep(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, stream_LD: Tensor, sleeper: Sleeper) -> Tensor:
        ctx.sleeper = sleeper
        sleeper.sleep(sleeper.forward_s)
        return stream_LD.clone()

    @staticmethod
    def backward(ctx: Any, gradient_LD: Tensor) -> tuple[Tensor, None]:
        ctx.sleeper.sleep(ctx.sleeper.backward_s)
        return gradient_LD, None


class SleepingStages(nn.Module):
    """What `Pipeline` takes for the stages of a DiT."""

    def __init__(self, config: DiTConfig, stages: list[Stage]) -> None:
        super().__init__()
        self.config, self.stages = config, stages
        self.sleeper = Sleeper(len(stages))

    def forward(self, inputs: PackedInputs, hidden_lD: Tensor | None = None, *, stage: int = 0) -> Tensor:
        return self.sleeper(inputs.patch_LP if hidden_lD is None else hidden_lD)


@dataclass(frozen=True, kw_only=True)
class Contender:
    """A way to run a step, and what sleeps in it on this rank."""

    run: Callable[[], object]
    sleepers: list[Sleeper]


@dataclass(frozen=True, kw_only=True)
class Step:
    """How long a step took, from the common start until the last rank was done."""

    seconds: float
    overshoot_s: float
    """By which a sleep was too long, mean over all of them."""


def tensors(count: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(TOKENS, WIDTH, generator=generator) for _ in range(count)]


def pack(stream_LD: Tensor) -> Pack:
    inputs = PackedInputs(
        patch_LP=stream_LD,
        position_L3=torch.zeros(TOKENS, 3, dtype=torch.int64),
        row_L=torch.zeros(TOKENS, dtype=torch.int64),
        segment_lengths=(TOKENS,),
        time_R=torch.zeros(1),
        is_condition_R=torch.zeros(1, dtype=torch.bool),
        text_KE=torch.zeros(1, 8),
        text_lengths=(1,),
    )
    return Pack(inputs=inputs, target_LP=torch.zeros(TOKENS, WIDTH), weight_L=torch.ones(TOKENS))


def ours(case: Case, grid: Grid) -> Contender:
    stages = SleepingStages(case.model, stages_of(grid, case.model.num_blocks))
    pipeline = Pipeline(grid, cast(VideoDiT, stages))
    batch = [pack(stream_LD) for stream_LD in tensors(case.microbatches)]
    return Contender(run=lambda: pipeline.forward_backward(batch, scale=1.0), sleepers=[stages.sleeper])


def theirs(case: Case, grid: Grid) -> Contender:
    sleepers = [Sleeper(case.chunks) for _ in range(case.chunks)]
    streams = tensors(case.microbatches)
    stages: list[Any] = [
        PipelineStage(
            sleeper,
            chunk * case.stages + grid.pipeline_rank,
            case.stages * case.chunks,
            grid.device,
            input_args=streams[0].clone().requires_grad_(bool(chunk or grid.pipeline_rank)),
            output_args=streams[0].clone().requires_grad_(),
            group=grid.pipeline_group,
        )
        for chunk, sleeper in enumerate(sleepers)
    ]

    def error(output_LP: Tensor, target_LP: Tensor) -> Tensor:
        return weighted_error(output_LP, target_LP, torch.ones(TOKENS))

    settings: dict[str, Any] = {"n_microbatches": case.microbatches, "loss_fn": error, "scale_grads": False}
    schedule = Schedule1F1B(stages[0], **settings) if case.chunks == 1 else ScheduleInterleaved1F1B(stages, **settings)
    inputs = (torch.cat(streams),) if grid.is_first_stage else ()
    target = torch.zeros(TOKENS * case.microbatches, WIDTH) if grid.is_last_stage else None
    return Contender(run=lambda: schedule.step(*inputs, target=target, return_outputs=False), sleepers=sleepers)


def agree(value: float, over: dist.ReduceOp.RedOpType) -> float:
    agreed = torch.tensor(value, dtype=torch.float64)
    dist.all_reduce(agreed, op=over)
    return float(agreed)


def timed_step(contender: Contender, case: Case) -> Step:
    for sleeper in contender.sleepers:
        sleeper.slept_s = 0.0
    start = agree(time.perf_counter() + START_S, dist.ReduceOp.MAX)
    time.sleep(max(0.0, start - time.perf_counter()))
    contender.run()
    end = agree(time.perf_counter(), dist.ReduceOp.MAX)
    overslept = sum(sleeper.slept_s for sleeper in contender.sleepers) - case.work_s
    sleeps = 2 * case.microbatches * case.chunks * case.stages
    return Step(seconds=end - start, overshoot_s=agree(overslept, dist.ReduceOp.SUM) / sleeps)


def message_seconds(grid: Grid) -> float:
    """One message between the first two stages, from a sender that has just slept to a receiver that waits."""
    message = torch.zeros(TOKENS * WIDTH // 2, dtype=torch.float64)  # as many bytes as a stream in float32
    seconds = []
    for index in range(MESSAGES if grid.pipeline_rank < 2 else 0):
        sender = index % 2
        if grid.pipeline_rank == sender:
            time.sleep(FORWARD_S)
            message[0] = time.perf_counter()
            dist.send(message, 1 - sender, group=grid.pipeline_group)
        else:
            dist.recv(message, sender, group=grid.pipeline_group)
            seconds.append(time.perf_counter() - float(message[0]))
    return agree(statistics.median(seconds) if seconds else 0.0, dist.ReduceOp.MAX)


def worker(rank: int, cases: list[Case], steps: int, folder: str) -> None:
    """One rank; the first writes `results.json`."""
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    stages, timeout = cases[0].stages, timedelta(seconds=TIMEOUT_S)
    store = dist.FileStore(f"{folder}/store", stages)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=stages, timeout=timeout)
    results = []
    for case in cases:
        dims = ParallelDims(pipeline=stages, virtual_pipeline=case.chunks, start_timeout_s=TIMEOUT_S)
        with Grid(dims) as grid:
            message_s = message_seconds(grid)
            contenders = {"ours": ours(case, grid), "theirs": theirs(case, grid)}
            rounds = [
                {name: asdict(timed_step(one, case)) for name, one in contenders.items()} for _ in range(steps + 1)
            ]
        # The first round warms up.
        results.append({"case": asdict(case), "message_s": message_s, "rounds": rounds[1:]})
    if rank == 0:
        Path(folder, "results.json").write_text(json.dumps(results))
    dist.destroy_process_group()


def measure(cases: list[Case], steps: int) -> list[dict[str, Any]]:
    """Runs cases of one number of stages in processes of their own."""
    with tempfile.TemporaryDirectory() as folder:
        multiprocessing.start_processes(
            worker, (cases, steps, folder), nprocs=cases[0].stages, daemon=True, start_method="fork"
        )
        return json.loads(Path(folder, "results.json").read_text())


def report(result: dict[str, Any]) -> None:
    case, message_s = Case(**result["case"]), result["message_s"]
    print(
        f"p {case.stages}, m {case.microbatches}, {case.name}: theory {1000 * (case.work_s + case.idle_s):.0f} ms a "
        f"step, {1000 * case.idle_s:.0f} of them idle; a message takes {1000 * message_s:.2f} ms"
    )
    for name, title in (("ours", "Tessera"), ("theirs", "torch.distributed.pipelining")):
        steps = [Step(**one[name]) for one in result["rounds"]]
        seconds = sorted(step.seconds for step in steps)
        median_s = statistics.median(seconds)
        idle = [(one - case.work_s) / case.idle_s for one in (median_s, seconds[0], seconds[-1])]
        sleeps_s = case.sleeps_in_a_row * statistics.median(step.overshoot_s for step in steps)
        messages_s = case.messages_in_a_row * message_s
        over_s = median_s - case.work_s - case.idle_s
        line = f"  {title:28s} {1000 * median_s:7.1f} ms   idle / theory {idle[0]:.3f} ({idle[1]:.3f} to {idle[2]:.3f})"
        line += f"   over by {1000 * over_s:.1f} ms: sleeps {1000 * sleeps_s:.1f}, {case.messages_in_a_row} messages "
        print(f"{line}{1000 * messages_s:.1f}, code {1000 * (over_s - sleeps_s - messages_s):.1f}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Idle time of the pipeline schedule against theory.")
    parser.add_argument("--stages", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--steps", type=int, default=5)
    arguments = parser.parse_args()
    if min(arguments.stages) < 2 or arguments.steps < 1:
        parser.error("a pipeline has at least 2 stages, and at least 1 step is measured")
    if torch.cuda.is_available():
        parser.error(
            "the schedule is measured on the CPU; hide the GPUs: CUDA_VISIBLE_DEVICES= python -m bench.pipeline"
        )
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, torch {torch.__version__}; ", end="")
    print(f"messages of {TOKENS * WIDTH * 4 / 1024:.0f} KiB over gloo; median of {arguments.steps} steps", flush=True)
    for stages in arguments.stages:
        cases = [Case(stages=stages, microbatches=2 * stages)]
        if stages <= 4:
            cases.append(Case(stages=stages, microbatches=2 * stages, chunks=2))
        for result in measure(cases, arguments.steps):
            report(result)


if __name__ == "__main__":
    main()
