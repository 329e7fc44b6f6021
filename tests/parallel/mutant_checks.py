"""What a rank of a mutated program measures: imported after the mutation is in place, since it imports the program.

A check returns findings `[what, value, where]`; none means that nothing is wrong.
"""

import json
import math
import os
import time
from dataclasses import replace

import run_layouts
import torch
from layout_reference import TRIAL, reference_training, relative
from safetensors.torch import load_file, save_file

from parallel.dims import ParallelDims
from parallel.engine import TrainEngine
from parallel.optim import AdamWConfig
from parallel.parity import engine_of, measure_bf16, measure_gradients, write_references
from parallel.runtime import Grid
from parallel.stage import build_stage, check_replicas

EXACT, NEAR = 1e-10, 2e-5
MICROBATCHES, STEPS, SEEDS = 3, 2, 5
COUNTS = (MICROBATCHES, 2 * MICROBATCHES)
"""Packs of the float64 steps: of one data rank, of two."""


def write_reference(folder):
    """What plain torch makes of the same packs, for ranks that must not trust their own."""
    write_references(folder, replace(TRIAL, steps=0), COUNTS, SEEDS)
    training = reference_training(STEPS)
    for kind in ("master", "ema"):
        save_file(training[kind], folder / f"{kind}.safetensors")
    predictions = {name: training[name] for name in ("predictions", "averaged_predictions")}
    save_file(predictions, folder / "predictions.safetensors")
    (folder / "notes.json").write_text(json.dumps({name: training[name] for name in ("losses", "norms")}))


def sizes():
    """Ranks of each layout."""
    layouts = {name: ParallelDims(**dims) for name, dims in run_layouts.LAYOUTS.items()}
    return {name: dims.model_size * (dims.data or 1) for name, dims in layouts.items()}


def run_alone():
    """A step on one process, which imports what the engines import late."""
    with Grid(ParallelDims()) as grid, engine_of(grid, TRIAL) as engine:
        run_layouts.run_steps(engine, grid, range(1))


def parity(dims, folder):
    """Float64 under Megatron's schedule; where that is right, steps with DeepSpeed in float32."""
    return float64(dims, folder) or steps(dims, folder)


def float64(dims, folder):
    """Loss and gradients of one global batch."""
    findings = Findings()
    for what, distance in measure_gradients(dims, str(folder), TRIAL, [MICROBATCHES]).items():
        findings.compare(what, distance.value, distance.what, EXACT)
    return findings.worst()


def steps(dims, folder):
    """Losses, norms, weights, their average and what they predict after a few clipped steps; in bf16 the first two."""
    out, findings, expected = run_layouts.Output(), Findings(), read_notes(folder)
    with Grid(dims) as grid:
        run_layouts.training(grid, out, folder, steps=STEPS)
    is_narrow = dims.precision == "bf16"
    rows = zip(out.notes["results"], expected["losses"], expected["norms"], strict=True)
    for number, ((loss, norm, skipped), loss_0, norm_0) in enumerate(rows):
        findings.compare("loss", abs(loss - loss_0) / loss_0, f"step {number}", 0.02 if is_narrow else NEAR)
        error = math.nan if skipped else abs(norm - norm_0) / norm_0
        findings.compare("norm", error, f"step {number}", 0.05 if is_narrow else NEAR)
    if is_narrow:
        return findings.worst()
    whole = {kind: load_file(folder / f"{kind}.safetensors") for kind in ("master", "ema")}
    for piece in out.notes["pieces"]:
        kind, name = piece["kind"], piece["name"]
        if kind in whole:
            part = out.tensors[f"{kind}/{name}"]
            error = relative(part, cut(whole[kind][name], piece["offset"], part.shape))
            findings.compare("weights" if kind == "master" else kind, error, name, NEAR)
    for name, predictions in load_file(folder / "predictions.safetensors").items():
        findings.compare("predictions", relative(out.tensors[name], predictions), name, NEAR)
    return findings.worst()


def replicas(grid, folder):
    """Weights that are odd on the last rank are refused on every rank: by themselves, by and in an engine."""
    findings, told = Findings(), {}
    stage, fresh = (build_stage(grid, TRIAL.model, seed=0) for _ in range(2))
    spoil(grid, fresh)
    told["check_replicas"] = complaint(
        lambda: check_replicas(grid, dict(fresh.named_parameters()), run_layouts.sharded(fresh))
    )
    with TrainEngine(grid, stage, AdamWConfig()) as engine:
        engine.check_replicas()
        spoil(grid, stage)
        told["TrainEngine.check_replicas"] = complaint(engine.check_replicas)
    told["TrainEngine"] = complaint(lambda: TrainEngine(grid, fresh, AdamWConfig()))
    for what, text in told.items():
        findings.compare("not refused", 0.0 if "are not: conditioning.time_in.bias" in text else math.nan, what, 0.0)
    return findings.worst()


def spoil(grid, stage):
    with torch.no_grad():
        stage.conditioning.time_in.bias[2] += 1e-3 * (grid.rank == grid.world_size - 1)


def complaint(attempt):
    try:
        attempt()
    except (ValueError, AssertionError) as error:
        return str(error)
    return ""


def of_the_grid(grid, folder):
    """What the grid's own collectives return, and that a barrier holds all back until the last is there."""
    findings, size = Findings(), grid.world_size
    gathered = grid.gather_objects({"rank": grid.rank, "text": "é" * grid.rank})
    expected = [{"rank": rank, "text": "é" * rank} for rank in range(size)]
    findings.compare("gather_objects", 0.0 if gathered == expected else math.nan, "", 0.0)
    flags = [grid.any(False), grid.any(grid.rank == 0), grid.any(grid.rank == size - 1)]
    findings.compare("any", 0.0 if flags == [False, True, True] else math.nan, "", 0.0)
    total = float(grid.sum_over_data(torch.tensor(2.0**grid.data_rank)))
    findings.compare("sum_over_data", abs(total - (2**grid.data_size - 1)), "", 0.0)
    total = float(grid.sum_over_ranks(torch.tensor(2.0**grid.rank)))
    findings.compare("sum_over_ranks", abs(total - (2**size - 1)), "", 0.0)
    memory = torch.full((5,), grid.rank, dtype=torch.uint8)
    grid.hand_on(memory)
    reader = grid.rank - grid.tensor_rank - grid.tensor_size * grid.context_rank
    findings.compare("hand_on", 0.0 if memory.tolist() == [reader] * 5 else math.nan, "", 0.0)
    late = folder / f"late_{grid.gather_objects(os.getpid())[0]}"
    if grid.rank == 0:
        time.sleep(0.5)
        late.touch()
    grid.barrier()
    findings.compare("barrier", 0.0 if late.exists() else math.nan, "", 0.0)
    return findings.worst()


def bf16(dims, folder):
    """Distance of the first gradient vector in bf16 from float64's, for each seed."""
    return measure_bf16(dims, str(folder), TRIAL, SEEDS)


class Findings:
    """The worst of each kind of error above its tolerance."""

    def __init__(self):
        self._found = {}

    def compare(self, what, value, where, tolerance):
        if value <= tolerance:
            return
        value = value if math.isfinite(value) else math.inf
        if value > self._found.get(what, [what, 0.0, ""])[1]:
            self._found[what] = [what, value, where]

    def worst(self):
        return list(self._found.values())


def cut(whole, offset, shape):
    return whole[tuple(slice(o, o + n) for o, n in zip(offset, shape, strict=True))]


def read_notes(folder):
    return json.loads((folder / "notes.json").read_text())


def on_a_grid(check):
    """A check of dims from one of their grid."""

    def checked(dims, folder):
        with Grid(dims) as grid:
            return check(grid, folder)

    return checked


CHECKS = {
    "parity": parity,
    "steps": steps,
    "replicas": on_a_grid(replicas),
    "grid": on_a_grid(of_the_grid),
    "bf16": bf16,
}
