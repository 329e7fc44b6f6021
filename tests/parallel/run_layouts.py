"""Runs every layout the tests look at, in one set of forked processes: `python run_layouts.py FOLDER [PATTERN]`.

Each case writes FOLDER/CASE/rankN.safetensors and .json; one that fails ends the run.
"""

import json
import logging
import math
import re
import sys
import time
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch
import torch.distributed as dist
from held_bytes import memory
from layout_reference import EMA, MORE_STEPS, TRIAL, prediction_inputs, read_ranks
from safetensors import safe_open
from safetensors.torch import save_file
from torch._C._distributed_c10d import _dump_fr_trace_json

from model.init import initial_value
from parallel.dims import ParallelDims
from parallel.engine import TrainEngine
from parallel.hang import hangs_told
from parallel.optim import AdamWConfig
from parallel.parity import engine_of, mine
from parallel.pipeline import Pipeline
from parallel.runtime import Grid
from parallel.shard import is_sharded
from parallel.stage import build_stage, check_replicas
from parallel.tensor import MegatronLayers
from parallel.worlds import Worlds

SIZE = 8
LAYOUTS = {
    "single": {},
    "tp2": {"tensor": 2, "sequence": False},
    "tp2_sp": {"tensor": 2},
    "pp2": {"pipeline": 2},
    "pp3": {"pipeline": 3},
    "dp2": {"data": 2},
    "tp2_pp2": {"tensor": 2, "pipeline": 2},
    "tp2_pp2_dp2": {"tensor": 2, "pipeline": 2, "data": 2},
    "cp2": {"context": 2},
    "tp2_cp2": {"tensor": 2, "context": 2},
    "cp2_pp2": {"context": 2, "pipeline": 2},
    "pp2_v2": {"pipeline": 2, "virtual_pipeline": 2},
    "pp2_full": {"pipeline": 2, "recompute": "full"},
    "tp2_z0": {"tensor": 2, "zero_stage": 0},
    "tp2_z3": {"tensor": 2, "zero_stage": 3},
    "dp3": {"data": 3},
    "dp3_z3": {"data": 3, "zero_stage": 3},
    "dp2_z0": {"data": 2, "zero_stage": 0},
    "dp2_z2": {"data": 2, "zero_stage": 2},
    "dp2_z3": {"data": 2, "zero_stage": 3},
    "tp2_sp_dp2_z2": {"tensor": 2, "data": 2, "zero_stage": 2},
    "tp2_sp_dp2_z3": {"tensor": 2, "data": 2, "zero_stage": 3},
    "pp3_v2": {"pipeline": 3, "virtual_pipeline": 2},
    "dp2_hasty": {"data": 2, "timeout_s": 2.0},
    "tp2_cp2_pp2_repeatable": {"tensor": 2, "context": 2, "pipeline": 2, "deterministic": True},
}
LAYOUTS |= {f"{name}_bf16": {**dims, "precision": "bf16"} for name, dims in LAYOUTS.items()}
TRAINED = ("single", "dp2", "tp2_sp", "tp2_pp2_dp2", "pp2_v2", "cp2_pp2", "dp2_z0", "dp2_z3", "tp2_sp_dp2_z2")
RESUMED = (
    *(("single", "tp2_pp2_dp2"), ("tp2_pp2_dp2", "dp2"), ("tp2_sp", "pp2_v2"), ("dp2_z3", "cp2_pp2")),
    *(("cp2_pp2", "tp2_sp_dp2_z3"), ("pp2_v2", "dp2_z0"), ("dp2_z0", "dp2_z2")),
    *((layout, layout) for layout in ("single", "tp2_pp2_dp2", "dp2_z3")),
)
"""From one layout to another, or to the same."""
MEASURED = (
    *("single", "dp3", "dp2_z0", "dp2_z2", "dp3_z3", "cp2", "tp2_pp2_dp2", "pp2_v2"),
    *("dp3_bf16", "tp2_pp2_dp2_bf16", "dp2_z2_bf16", "dp3_z3_bf16"),
)
"""Whose bytes are counted."""
BF16 = ("single", "dp2", "tp2_pp2", "tp2_pp2_dp2", "pp2_v2", "cp2", "dp2_z2", "dp2_z3")
NOT_FINITE = ("dp2", "tp2_pp2", "dp2_z0", "dp2_z2", "dp2_z3")


class Output:
    """What a rank hands to the tests."""

    def __init__(self):
        self.tensors, self.notes = {}, {"pieces": []}

    def add_pieces(self, pieces):
        for piece in pieces:
            self.tensors[f"{piece.kind}/{piece.name}"] = piece.tensor.clone()
            self.notes["pieces"].append(
                {"kind": piece.kind, "name": piece.name, "offset": piece.offset, "global_shape": piece.global_shape}
            )


def sharded(stage):
    return {name for name, parameter in stage.named_parameters() if is_sharded(parameter)}


def training(grid, out, folder, *, steps=TRIAL.steps):
    """Steps with DeepSpeed, then predictions with the weights and with their average."""
    with engine_of(grid, TRIAL) as engine:
        out.notes["results"] = run_steps(engine, grid, range(steps))
        out.notes["deterministic"] = torch.are_deterministic_algorithms_enabled()
        out.notes["adam_steps"] = engine.adam_steps
        inputs = prediction_inputs()
        out.tensors["predictions"] = torch.stack(engine.predict(inputs)).float()
        with engine.ema_weights():
            out.tensors["averaged_predictions"] = torch.stack(engine.predict(inputs)).float()
        assert torch.equal(torch.stack(engine.predict(inputs)).float(), out.tensors["predictions"])
        engine.check_replicas()
        out.add_pieces(engine.pieces())
        if grid.dims.precision == "fp32" and steps == TRIAL.steps:
            out.notes["more_results"] = run_steps(engine, grid, range(steps, steps + MORE_STEPS))


def run_steps(engine, grid, steps):
    rows = []
    for step in steps:
        result = engine.step(mine(TRIAL.packs(step), grid), lr=TRIAL.lr)
        engine.update_ema(EMA)
        rows.append([result.loss, result.grad_norm, result.skipped])
    return rows


def resumed(grid, out, folder, *, source):
    """Load what another layout saved, write it again, go on training."""
    saved = read_ranks(folder.parent / source)
    paths = [folder.parent / source / f"rank{rank}.safetensors" for rank in range(len(saved))]

    def read(kind, name, offset, shape):
        out.notes["elements_read"] = out.notes.get("elements_read", 0) + math.prod(shape)
        whole = torch.full(shape, float("nan"))
        for (_, notes), path in zip(saved, paths, strict=True):
            for piece in notes["pieces"]:
                if (piece["kind"], piece["name"]) == (kind, name):
                    with safe_open(path, "pt") as file:
                        paste(whole, offset, file.get_tensor(f"{kind}/{name}"), piece["offset"])
        assert not whole.isnan().any()
        return whole

    with engine_of(grid, TRIAL) as engine:
        engine.load(read, adam_steps=saved[0][1]["adam_steps"])
        out.notes["adam_steps"] = engine.adam_steps
        out.add_pieces(engine.pieces())
        out.tensors["predictions"] = torch.stack(engine.predict(prediction_inputs()))
        steps = range(TRIAL.steps, TRIAL.steps + MORE_STEPS)
        out.notes["more_results"] = run_steps(engine, grid, steps)


def paste(whole, offset, part, part_offset):
    starts = [max(a, b) for a, b in zip(offset, part_offset, strict=True)]
    ends = [min(a + n, b + m) for a, n, b, m in zip(offset, whole.shape, part_offset, part.shape, strict=True)]
    if all(start < end for start, end in zip(starts, ends, strict=True)):
        target = tuple(slice(s - o, e - o) for s, e, o in zip(starts, ends, offset, strict=True))
        source = tuple(slice(s - o, e - o) for s, e, o in zip(starts, ends, part_offset, strict=True))
        whole[target] = part[source]


def initial(grid, out, folder):
    """A run at step 0: the pieces of a fresh engine, and what one rank must not be told about the others."""
    with TrainEngine(grid, build_stage(grid, TRIAL.model, seed=7), AdamWConfig()) as engine:
        out.notes["adam_steps"] = engine.adam_steps
        out.add_pieces(engine.pieces(("master", "exp_avg")))
    out.notes["gathered"] = grid.gather_objects({"rank": grid.rank, "text": "é" * grid.rank})
    out.notes["any"] = [grid.any(False), grid.any(grid.rank == grid.world_size - 1)]
    out.notes["data_sum"] = float(grid.sum_over_data(torch.tensor(2.0**grid.data_rank)))
    grid.barrier()
    logical = initial_value("blocks.0.mlp_in.weight", (48, 32), 7)
    out.tensors["expected"] = logical


def warm_up(grid, out, folder):
    """Which groups and neighbours meet."""
    before, sent, isend = json.loads(_dump_fr_trace_json()).get("entries"), [], dist.isend
    dist.isend = lambda tensor, dst, group: sent.append(dst) or isend(tensor, dst, group=group)
    out.notes["took"] = grid.warm_up()
    dist.isend = isend
    last = before[-1]["record_id"] if before else -1
    recorded = [entry for entry in json.loads(_dump_fr_trace_json())["entries"] if entry["record_id"] > last]
    out.notes["groups"] = [entry["process_group"][1] for entry in recorded]
    out.notes["sent"] = [dist.get_group_rank(grid.pipeline_group, rank) for rank in sent]


def hang(grid, out, folder):
    """A rank that does not come."""
    grid.hang_folder = folder / "hang"
    grid.sum_over_data(torch.ones(()))
    grid.started()
    started = time.perf_counter()
    try:
        with hangs_told(grid, lambda: "after step 7"):
            if grid.rank == 0:
                grid.sum_over_data(torch.ones(()))
            time.sleep(3)
    except TimeoutError as error:
        out.notes["error"], out.notes["waited"] = str(error), time.perf_counter() - started


def not_finite(grid, out, folder):
    """A bad loss, then a bad gradient on one rank, then a step without loss, then a good step."""
    with engine_of(grid, TRIAL) as engine:
        run_steps(engine, grid, range(2))
        before = [tensor.detach().clone() for tensor in (*engine.stage.parameters(), *engine._zero.masters)]

        packs = mine(TRIAL.packs(2), grid)
        if grid.data_rank == grid.data_size - 1:
            packs[0].target_LP[3, 1] = float("nan")
        bad_loss = engine.step(packs, lr=TRIAL.lr)

        packs = mine(TRIAL.packs(2), grid)
        with infinite_gradient(engine, grid) if grid.rank == grid.world_size - 1 else nullcontext():
            bad_gradient = engine.step(packs, lr=TRIAL.lr)

        for pack in packs:
            pack.weight_L.zero_()
        no_loss = engine.step(packs, lr=TRIAL.lr)

        after = (*engine.stage.parameters(), *engine._zero.masters)
        out.notes["unchanged"] = all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
        out.notes["adam_steps"] = engine.adam_steps
        out.notes["skipped"] = [result.skipped for result in (bad_loss, bad_gradient, no_loss)]
        out.notes["finite"] = [math.isfinite(bad_loss.loss), math.isfinite(bad_gradient.grad_norm)]
        out.notes["results"] = run_steps(engine, grid, range(2, 4))


@contextmanager
def infinite_gradient(engine, grid):
    """Inside, this rank's gradients are not finite though its loss is."""
    if grid.dims.zero_stage < 3:
        last = list(engine.stage.parameters())[-1]
        handle = last.register_hook(lambda gradient: gradient * float("inf"))
        yield
        handle.remove()
    else:  # parameters have no shape that a hook could take
        backward = engine._zero.backward
        engine._zero.backward = lambda loss: backward(loss * float("inf"))
        yield
        engine._zero.backward = backward


def unequal_replicas(grid, out, folder):
    """The check for equal replicas names the parameter that is not."""
    stage = build_stage(grid, TRIAL.model, seed=0)
    if grid.rank == grid.world_size - 1:
        with torch.no_grad():
            stage.conditioning.time_in.bias[2] += 1e-3
    try:
        check_replicas(grid, dict(stage.named_parameters()), sharded(stage))
    except ValueError as error:
        out.notes["error"] = str(error)


def shared_gradients(grid, out, folder):
    """A replicated tensor whose gradient is expanded (so not contiguous) and another tensor's too."""
    entering, beside = (torch.zeros(3, 2, requires_grad=True) for _ in range(2))
    total = (MegatronLayers(grid).replicated(entering) + beside).sum() * (grid.rank + 1)
    total.backward()
    out.tensors |= {"entering": entering.grad, "beside": beside.grad}


def exchanges(grid, out, folder):
    """Tokens for heads and back, and which tokens a context rank has."""
    layers = MegatronLayers(grid)
    whole = torch.arange(6 * 4 * 2, dtype=torch.float64).view(6, 4, 2)
    mine = whole[3 * grid.context_rank : 3 * grid.context_rank + 3].clone().requires_grad_()
    first, second = layers.gather_tokens((mine, 10 * mine))
    back = layers.gather_heads(first + second)
    (back * (grid.context_rank + 1)).sum().backward()
    out.tensors |= {"first": first.detach(), "second": second.detach(), "back": back.detach(), "grad": mine.grad}
    out.notes["lengths"] = [layers.local_lengths(lengths) for lengths in ((6,), (1, 2, 3), (4, 2), (2, 2, 1, 1))]


def refusals(grid, out, folder):
    """Packs that do not fit the layout."""
    stage = build_stage(grid, TRIAL.model, seed=0)
    inputs = TRIAL.packs(0)[1].inputs
    shorter = {"patch_LP": inputs.patch_LP[:-1], "position_L3": inputs.position_L3[:-1]}
    odd = type(inputs)(**{**vars(inputs), **shorter})
    try:
        Pipeline(grid, stage).predict([odd])
    except ValueError as error:
        out.notes["error"] = str(error)


def missing_gradients(grid, out, folder):
    """The accessor finds gradients after a backward pass, and none before it or after they were dropped."""
    with engine_of(grid, TRIAL) as engine:
        packs, name = mine(TRIAL.packs(0), grid), "conditioning.time_in.weight"
        found = []
        for action in (lambda: None, lambda: engine._accumulate(packs, scale=1.0), engine._zero.drop_gradients):
            action()
            try:
                found.append(bool(engine._zero.gradient(name).any()))
            except AssertionError as error:
                found.append(str(error))
        out.notes["found"] = found


def many_steps(grid, out, folder, *, steps):
    """Long enough for copies to part that are not kept together; the engine refuses them when they do."""
    with engine_of(grid, TRIAL) as engine:
        run_steps(engine, grid, range(steps))
        engine.check_replicas()
        out.notes["adam_steps"] = engine.adam_steps


def cases():
    for layout in TRAINED:
        yield f"training_{layout}", layout, training, {}
    for source, target in RESUMED:
        yield f"resumed_{source}_{target}", target, resumed, {"source": f"training_{source}"}
    for layout in BF16:
        yield f"bf16_{layout}", f"{layout}_bf16", training, {"steps": 3}
    yield "initial_tp2_pp2_dp2", "tp2_pp2_dp2", initial, {}
    yield "many_steps_tp2_pp2_dp2", "tp2_pp2_dp2", many_steps, {"steps": 50}
    yield "many_steps_tp2_cp2", "tp2_cp2", many_steps, {"steps": 50}
    for layout in ("tp2_pp2_dp2", "pp3", "pp3_v2"):
        yield f"warm_up_{layout}", layout, warm_up, {}
    yield "hang_dp2", "dp2_hasty", hang, {}
    yield "deterministic_tp2_cp2_pp2", "tp2_cp2_pp2_repeatable", training, {"steps": 2}
    for layout in ("dp2", "dp2_bf16", "dp2_z0"):
        yield f"missing_gradients_{layout}", layout, missing_gradients, {}
    for layout in NOT_FINITE:
        yield f"not_finite_{layout}", layout, not_finite, {}
    for layout in ("dp2", "tp2_sp", "pp2"):
        yield f"unequal_replicas_{layout}", layout, unequal_replicas, {}
    for layout in MEASURED:
        yield f"memory_{layout}", layout, memory, {}
    yield "shared_gradients_tp2_sp", "tp2_sp", shared_gradients, {}
    yield "refusals_tp2_sp", "tp2_sp", refusals, {}
    yield "exchanges_cp2", "cp2", exchanges, {}


def run_case(folder, layout, function, options):
    out = Output()
    with Grid(ParallelDims(**LAYOUTS[layout])) as grid:
        function(grid, out, folder, **options)
        rank = grid.rank
    out.notes["deterministic_after"] = torch.are_deterministic_algorithms_enabled()
    save_file({key: tensor.contiguous() for key, tensor in out.tensors.items()}, folder / f"rank{rank}.safetensors")
    (folder / f"rank{rank}.json").write_text(json.dumps(out.notes))


def main():
    root, pattern = Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else ""
    logging.captureWarnings(True)
    with Worlds(SIZE) as worlds:
        for name, layout, function, options in cases():
            if re.search(pattern, name):
                (root / name).mkdir(parents=True)
                dims = ParallelDims(**LAYOUTS[layout])
                worlds.run(dims.model_size * (dims.data or 1), run_case, root / name, layout, function, options)


if __name__ == "__main__":
    main()
