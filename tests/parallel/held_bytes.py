"""Every byte of tensors that an engine holds, by kind, at the moments that count."""

import gc

import torch
from layout_reference import TRIAL

from parallel.engine import TrainEngine
from parallel.parity import mine
from parallel.runtime import parallel_state
from parallel.stage import build_stage


def memory(grid, out, folder):
    """A case of `run_layouts`: what is held where the engine's start is fullest, and when an update begins."""
    packs = mine(TRIAL.packs(0, count=2 * grid.data_size), grid)
    before = storages()  # kept, so that none of their addresses comes again
    stage = build_stage(grid, TRIAL.model, seed=0)
    with Watched(grid, stage, TRIAL.optim, before, out.notes) as engine:
        update = engine._zero.step

        def step(lr):
            out.notes["held"] = by_kind(engine, before)
            return update(lr)

        engine._zero.step = step
        engine.step(packs, lr=TRIAL.lr)
    out.notes["pipeline_rank"] = grid.pipeline_rank


class Watched(TrainEngine):
    """Notes what is held when the average has come and the initial weights have not gone."""

    def __init__(self, grid, stage, optim, before, notes):
        self.before, self.notes = before, notes
        super().__init__(grid, stage, optim)

    def __setattr__(self, name, value):
        super().__setattr__(name, value)
        if name == "_ema":
            self.notes["start"] = sum(storage.nbytes() for storage in storages(self.before).values())


def by_kind(engine, before):
    zero = engine._zero
    streams = [chunk._received for chunk in engine._pipeline.chunks if chunk._received is not None]
    kinds = {
        "weights": zero.local_weights().values(),
        "masters": zero.masters,
        "moments": [tensor for state in zero._adamw.state.values() for tensor in state.values()],
        "average": engine._ema,
        "gathering": parallel_state.get_global_memory_buffer().buffer.values(),
        "streams": [*streams, *(stream.grad for stream in streams)],
    }
    found, held = storages(before), {}
    for kind, tensors in kinds.items():
        addresses = {tensor.untyped_storage().data_ptr() for tensor in tensors} & found.keys()
        held[kind] = sum(found.pop(address).nbytes() for address in addresses)
    return held | {"rest": sum(storage.nbytes() for storage in found.values())}


def storages(before=()):
    """{address: storage} of all tensors on the CPU, but for those of before."""
    gc.collect()
    tensors = [thing for thing in gc.get_objects() if issubclass(type(thing), torch.Tensor)]
    found = [tensor.untyped_storage() for tensor in tensors if tensor.device.type == "cpu"]
    return {s.data_ptr(): s for s in found if s.nbytes() and s.data_ptr() not in before}
