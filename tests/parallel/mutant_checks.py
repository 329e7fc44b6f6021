"""What a rank of a mutated program measures: imported after the mutation is in place, since it imports the program.

A check returns findings `[what, value, where]`; none means that nothing is wrong.
"""

import json
import math
import os
import time

import layout_reference as reference
import run_layouts
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file

from parallel.dims import ParallelDims
from parallel.engine import TrainEngine
from parallel.optim import AdamWConfig
from parallel.runtime import Grid
from parallel.shard import is_on_every_stage, shard_of
from parallel.stage import build_stage, check_replicas, sum_over_stages

EXACT, NEAR = 1e-10, 2e-5
MICROBATCHES, STEPS, SEEDS = 3, 2, 5
COUNTS = (MICROBATCHES, 2 * MICROBATCHES)
"""Packs of the float64 steps: of one data rank, of two."""


def write_reference(folder):
    """What the dense model makes of the same packs, for ranks that must not trust their own."""
    notes = {"losses64": {}}
    for count in COUNTS:
        loss, gradients = reference.reference_gradients(count)
        notes["losses64"][str(count)] = loss
        save_file(gradients, folder / f"gradients_{count}.safetensors")
    training = reference.reference_training(STEPS)
    notes |= {name: training[name] for name in ("losses", "norms")}
    for kind in ("master", "ema"):
        save_file(training[kind], folder / f"{kind}.safetensors")
    predictions = {name: training[name] for name in ("predictions", "averaged_predictions")}
    save_file(predictions, folder / "predictions.safetensors")
    for seed in range(SEEDS):
        save_file(_seeded_gradients(seed), folder / f"seed_{seed}.safetensors")
    (folder / "notes.json").write_text(json.dumps(notes))


def sizes():
    """Ranks of each layout."""
    layouts = {name: ParallelDims(**dims) for name, dims in run_layouts.LAYOUTS.items()}
    return {name: dims.model_size * (dims.data or 1) for name, dims in layouts.items()}


def run_alone():
    """A step on one process, which imports what the engines import late."""
    with Grid(ParallelDims()) as grid, run_layouts.make_engine(grid) as engine:
        run_layouts.run_steps(engine, grid, range(1))


def parity(grid, folder):
    """Float64 under Megatron's schedule; where that is right, steps with DeepSpeed in float32."""
    return float64(grid, folder) or steps(grid, folder)


def float64(grid, folder):
    """Loss and gradients of one global batch."""
    out = run_layouts.Output()
    run_layouts.gradients(grid, out, folder, microbatches=MICROBATCHES)
    count, findings = MICROBATCHES * grid.data_size, Findings()
    loss = read_notes(folder)["losses64"][str(count)]
    if out.notes["loss"] is not None:
        findings.compare("loss", abs(out.notes["loss"] - loss) / loss, "", EXACT)
    whole = load_file(folder / f"gradients_{count}.safetensors")
    for piece in out.notes["pieces"]:
        part, name = out.tensors[piece["name"]], piece["name"]
        error = (part - cut(whole[name], piece["offset"], part.shape)).norm() / whole[name].norm()
        findings.compare("gradient", float(error), name, EXACT)
    return findings.worst()


def steps(grid, folder):
    """Losses, norms, weights, their average and what they predict after a few clipped steps; in bf16 the first two."""
    out, findings, expected = run_layouts.Output(), Findings(), read_notes(folder)
    run_layouts.training(grid, out, folder, steps=STEPS)
    is_narrow = grid.dims.precision == "bf16"
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
            error = reference.relative(part, cut(whole[kind][name], piece["offset"], part.shape))
            findings.compare("weights" if kind == "master" else kind, error, name, NEAR)
    for name, predictions in load_file(folder / "predictions.safetensors").items():
        findings.compare("predictions", reference.relative(out.tensors[name], predictions), name, NEAR)
    return findings.worst()


def replicas(grid, folder):
    """Weights that are odd on the last rank are refused on every rank: by themselves, by and in an engine."""
    findings, told = Findings(), {}
    stage, fresh = (build_stage(grid, reference.CONFIG, seed=0) for _ in range(2))
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
    late = folder / f"late_{grid.gather_objects(os.getpid())[0]}"
    if grid.rank == 0:
        time.sleep(0.5)
        late.touch()
    grid.barrier()
    findings.compare("barrier", 0.0 if late.exists() else math.nan, "", 0.0)
    return findings.worst()


def bf16(grid, folder):
    """Squared error, and square, of each shard's first gradient in bf16, for each seed; see `mutants.vector_error`."""
    stage = build_stage(grid, reference.CONFIG, seed=0)
    rows = []
    with TrainEngine(grid, stage, AdamWConfig()) as engine:
        for seed in range(SEEDS):
            whole = load_file(folder / f"seed_{seed}.safetensors")
            rows.append({})
            for name, gradient in first_gradients(grid, engine, seed).items():
                shard = shard_of(engine._zero.named[name], grid)
                part = shard.of(whole[name])
                squares = [float(x.double().square().sum()) for x in (gradient.double().view_as(part) - part, part)]
                rows[-1][f"{name} {shard.offset}"] = squares
            engine._zero.drop_gradients()
    return rows


def first_gradients(grid, engine, seed):
    """Gradients by name as `TrainEngine.step` hands them to DeepSpeed, and their sum over replicas."""
    with torch.no_grad():
        for name, parameter in engine.stage.named_parameters():
            shard = shard_of(parameter, grid)
            parameter.copy_(shard.of(reference.random_value(f"{seed}/{name}", shard.global_shape)))
    packs = reference.step_packs(seed)
    weight = float(sum(pack.weight_L.sum() for pack in packs))
    engine._pipeline.forward_backward(run_layouts.mine(packs, grid), scale=1 / weight)
    gradients = {name: engine._zero.gradient(name) for name in engine._zero.named}
    sum_over_stages(grid, [g for name, g in gradients.items() if is_on_every_stage(name)])
    for gradient in gradients.values():
        dist.all_reduce(gradient, group=grid.replica_group)
    return gradients


def _seeded_gradients(seed):
    model = reference.dense_model(torch.float64)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(reference.random_value(f"{seed}/{name}", parameter.shape))
    reference.dense_loss(model, reference.step_packs(seed), torch.float64).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


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


CHECKS = {"parity": parity, "steps": steps, "replicas": replicas, "grid": of_the_grid, "bf16": bf16}
