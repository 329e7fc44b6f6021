"""How far a layout is from plain torch in one process: loss, gradients, global norm, weights.

`write_references` puts what is right into a folder; the `measure_` functions run on every rank of a layout, compare the
rectangles a rank holds with it and return the same on all ranks. They are called through `parallel.worlds`.
"""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from model.dit import VideoDiT
from parallel.dims import ParallelDims
from parallel.engine import TrainEngine
from parallel.pipeline import Microbatch, Pipeline
from parallel.reference import Reference, Trial, reference_gradients, reference_training, weight_of
from parallel.runtime import Grid
from parallel.shard import is_on_every_stage, is_sharded, shard_of
from parallel.stage import build_stage, sum_over_stages

TRAINING = "training"
GRADIENT_TOLERANCE = 1e-10
"""In float64 under Megatron's schedule, relative to the norm of the whole tensor."""
TRAINING_TOLERANCE = 2e-5
"""In float32 with DeepSpeed, after some steps with clipping."""
BF16_TOLERANCE = 1.5
"""Times the distance of a single process in bf16 from float64."""


@dataclass(frozen=True, kw_only=True)
class Distance:
    """How far something is from what it should be, relative to that, and what it is."""

    value: float
    what: str

    def __str__(self) -> str:
        return f"{self.value:.2g} {self.what}".strip()

    @staticmethod
    def worst(distances: Iterable["Distance"]) -> "Distance":
        """The largest; one that is not a number is larger than any."""
        return max(distances, key=lambda distance: _nan_is_largest(distance.value))


def write_references(folder: Path, trial: Trial, counts: Sequence[int], seeds: int) -> None:
    """Gradients in float64 over each of `counts` packs, weights after training in float32, and the same per seed."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    for count, reference in reference_gradients(trial, counts, device).items():
        _write(folder, f"gradients_{count}", reference)
    if trial.steps:
        _write(folder, TRAINING, reference_training(trial, torch.float32, device))
    for seed in range(seeds):
        (reference,) = reference_gradients(_seeded(trial, seed), [trial.packs_per_step], device).values()
        _write(folder, f"seed_{seed}", reference)


def measure_gradients(dims: ParallelDims, folder: str, trial: Trial, microbatches: Sequence[int]) -> dict[str, Any]:
    """Distance of the loss and of the worst gradient in float64, over several numbers of packs a replica."""
    losses, gradients = [], []
    with Grid(dims) as grid:
        dit = build_stage(grid, trial.model, seed=0).double()
        _fill(dit, grid, trial)
        pipeline = Pipeline(grid, dit)
        for number in microbatches:
            total = number * grid.data_size
            packs = trial.packs(0, count=total)
            dit.zero_grad(set_to_none=True)
            share = pipeline.forward_backward(mine(packs, grid), scale=1 / weight_of(packs))
            sum_over_stages(grid, [_gradient(p) for name, p in dit.named_parameters() if is_on_every_stage(name)])
            for parameter in dit.parameters():
                dist.all_reduce(_gradient(parameter), group=grid.replica_group)
            found = {name: _gradient(p) for name, p in dit.named_parameters()}
            label = f"{number} {'pack' if number == 1 else 'packs'}"
            reference = _read(folder, f"gradients_{total}")
            losses.append(_of_number(_sum_of_shares(share, grid), reference["losses"][0], label))
            gradients.append(_compare_shards(folder, f"gradients_{total}", found, dit, grid, label))
    return {"loss": Distance.worst(losses), "gradient": Distance.worst(gradients)}


def measure_training(dims: ParallelDims, folder: str, trial: Trial) -> dict[str, Any]:
    """Worst distance of loss, global norm and weights over steps with DeepSpeed in float32, clipping active.

    Raises ValueError where copies of a weight are not bit-equal in the end.
    """
    reference = _read(folder, TRAINING)
    losses, norms = [], []
    with Grid(dims) as grid, engine_of(grid, trial) as engine:
        for step in range(trial.steps):
            result = engine.step(mine(trial.packs(step), grid), lr=trial.lr)
            losses.append(_of_number(result.loss, reference["losses"][step], f"step {step + 1}"))
            norms.append(_of_number(result.grad_norm, reference["norms"][step], f"step {step + 1}"))
        engine.check_replicas()
        squares = _piece_squares(folder, TRAINING, engine, "master")
    weights = (_relative(square, reference["squares"][name], name) for name, square in squares.items())
    return {
        "loss in training": Distance.worst(losses),
        "global norm": Distance.worst(norms),
        "weight": Distance.worst(weights),
    }


def measure_bf16(dims: ParallelDims, folder: str, trial: Trial, seeds: int) -> list[float]:
    """Distance of the whole first gradient vector in bf16 from float64's, for each seed.

    The gradient is that which reached the optimizer, under any ZeRO stage: AdamW's first moment after one step that
    clips nothing is the gradient times (1 - beta1).
    """
    distances = []
    optim = replace(trial.optim, clip_norm=math.inf)
    with Grid(replace(dims, precision="bf16")) as grid:
        for seed in range(seeds):
            seeded = replace(_seeded(trial, seed), optim=optim)
            with engine_of(grid, seeded) as engine:
                engine.step(mine(seeded.packs(0), grid), lr=trial.lr)
                squares = _piece_squares(folder, f"seed_{seed}", engine, "exp_avg", scale=1 / (1 - optim.beta1))
            whole = sum(_read(folder, f"seed_{seed}")["squares"].values())
            distances.append((sum(squares.values()) / whole) ** 0.5)
    return distances


def _seeded(trial: Trial, seed: int) -> Trial:
    return replace(trial, seed=trial.seed + 1 + seed)


def engine_of(grid: Grid, trial: Trial) -> TrainEngine:
    """This rank's part of the trial's run at its start."""
    stage = build_stage(grid, trial.model, seed=0)
    _fill(stage, grid, trial)
    return TrainEngine(grid, stage, trial.optim)


@torch.no_grad()
def _fill(dit: VideoDiT, grid: Grid, trial: Trial) -> None:
    for name, parameter in dit.named_parameters():
        shard = shard_of(parameter, grid)
        parameter.copy_(shard.of(trial.value(name, shard.global_shape)))


def mine(packs: Sequence[Any], grid: Grid) -> list[Microbatch]:
    """Those of all packs that this rank's replica computes."""
    share = len(packs) // grid.data_size
    return list(packs[grid.data_rank * share : (grid.data_rank + 1) * share])


def _sum_of_shares(share: float, grid: Grid) -> float:
    """The loss of all replicas; every tensor rank of a last stage has the same share."""
    shares = torch.tensor(share if grid.tensor_rank == 0 else 0.0, dtype=torch.float64, device=grid.device)
    dist.all_reduce(shares)
    return float(shares)


def _compare_shards(
    folder: str, reference: str, found: dict[str, Tensor], dit: VideoDiT, grid: Grid, label: str
) -> Distance:
    squares = _shard_squares(folder, reference, found, dit, grid)
    right = _read(folder, reference)["squares"]
    assert set(squares) == set(right), f"not all parameters were found: {set(right) - set(squares)}"
    return Distance.worst(_relative(square, right[name], f"{name}, {label}") for name, square in squares.items())


def _piece_squares(folder: str, reference: str, engine: TrainEngine, kind: str, scale: float = 1.0) -> dict[str, float]:
    """Squared distance of each logical tensor of the optimizer's state, times `scale`, over all ranks' pieces."""
    here: dict[str, float] = {}
    for piece in engine.pieces([kind]):
        right = _rectangle(folder, reference, piece.name, piece.offset, tuple(piece.tensor.shape))
        here[piece.name] = here.get(piece.name, 0.0) + _square(piece.tensor.cpu() * scale, right)
    ranks = engine.grid.gather_objects(here)
    totals = {name: sum(rank.get(name, 0.0) for rank in ranks) for rank in ranks for name in rank}
    assert set(totals) == set(_read(folder, reference)["squares"]), "a parameter is missing"
    return totals


def _shard_squares(
    folder: str, reference: str, found: dict[str, Tensor], dit: VideoDiT, grid: Grid
) -> dict[str, float]:
    """Squared distance of each logical tensor: summed over the tensor ranks that share it, the worst of its copies."""
    here = {}
    for name, parameter in dit.named_parameters():
        shard = shard_of(parameter, grid)
        right = _rectangle(folder, reference, name, shard.offset, shard.shape)
        here[name] = [_square(found[name].detach().cpu(), right), is_sharded(parameter)]
    place = [grid.tensor_rank, grid.pipeline_rank, grid.replica_rank]
    copies: dict[str, dict[tuple[int, int, int], float]] = {}
    for (tensor_rank, stage, replica), squares in grid.gather_objects([place, here]):
        for name, (square, sharded) in squares.items():
            # Shards of one tensor are added up under one key; copies of one are kept apart.
            key = (-1 if sharded else tensor_rank, stage, replica)
            of_name = copies.setdefault(name, {})
            of_name[key] = of_name.get(key, 0.0) + square
    return {name: max(of_name.values(), key=_nan_is_largest) for name, of_name in copies.items()}


def _nan_is_largest(value: float) -> float:
    return math.inf if math.isnan(value) else value


def _square(value: Tensor, right: Tensor) -> float:
    return float((value.double() - right.double()).square().sum())


def _relative(square: float, right_square: float, what: str) -> Distance:
    return Distance(value=(square / right_square if right_square else square) ** 0.5, what=what)


def _of_number(value: float, right: float, what: str) -> Distance:
    return Distance(value=abs(value - right) / abs(right), what=what)


def _gradient(parameter: torch.nn.Parameter) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad


def _write(folder: Path, name: str, reference: Reference) -> None:
    tensors = {key: tensor.detach().cpu().contiguous() for key, tensor in reference.tensors.items()}
    save_file(tensors, folder / f"{name}.safetensors")
    squares = {key: float(tensor.double().square().sum()) for key, tensor in tensors.items()}
    numbers = {"losses": reference.losses, "norms": reference.norms, "squares": squares}
    (folder / f"{name}.json").write_text(json.dumps(numbers))


def _read(folder: str, name: str) -> dict[str, Any]:
    return json.loads((Path(folder) / f"{name}.json").read_text())


def _rectangle(folder: str, name: str, tensor: str, offset: Sequence[int], shape: Sequence[int]) -> Tensor:
    place = tuple(slice(start, start + size) for start, size in zip(offset, shape, strict=True))
    with safe_open(Path(folder) / f"{name}.safetensors", "pt") as file:
        return file.get_slice(tensor)[place]
