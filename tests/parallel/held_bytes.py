"""Every byte of tensors that an engine holds, by kind, at the moments that count."""

import gc

import torch
from megatron.core.parallel_state import get_global_memory_buffer

from parallel.engine import TrainEngine


class Ledger:
    """Counts the storages of tensors made since it was. Use as a context manager."""

    def __init__(self):
        self.start, self.held = 0, {}

    def __enter__(self):
        gc.collect()
        gc.freeze()  # what is there now is looked at no more, which also makes looking quick
        return self

    def __exit__(self, *_):
        gc.unfreeze()

    def watch_engine(self, grid, stage, optim):
        """An engine that notes what is held where its start is fullest, and before each update."""
        engine = _Watched.__new__(_Watched)
        engine.on_average = self._note_start
        engine.__init__(grid, stage, optim)
        update = engine._zero.step

        def step(lr):
            self.held = self._by_kind(engine)
            return update(lr)

        engine._zero.step = step
        return engine

    def _note_start(self):
        self.start = sum(storage.nbytes() for storage in _storages().values())

    def _by_kind(self, engine):
        zero = engine._zero
        streams = [chunk._received for chunk in engine._pipeline.chunks if chunk._received is not None]
        states = [tensor for state in zero._adamw.state.values() for tensor in state.values()]
        weights = zero.local_weights().values()
        kinds = {"weights": weights, "masters": zero.masters, "moments": states, "average": engine._ema}
        kinds["gathering"] = get_global_memory_buffer().buffer.values()
        kinds["streams"] = [*streams, *(stream.grad for stream in streams)]
        found, held = _storages(), {}
        for kind, tensors in kinds.items():
            addresses = {tensor.untyped_storage().data_ptr() for tensor in tensors} & found.keys()
            held[kind] = sum(found.pop(address).nbytes() for address in addresses)
        return held | {"rest": sum(storage.nbytes() for storage in found.values())}


class _Watched(TrainEngine):
    def __setattr__(self, name, value):
        super().__setattr__(name, value)
        if name == "_ema":
            self.on_average()


def _storages():
    gc.collect()
    tensors = [thing for thing in gc.get_objects() if issubclass(type(thing), torch.Tensor)]
    storages = [tensor.untyped_storage() for tensor in tensors if tensor.device.type == "cpu"]
    return {storage.data_ptr(): storage for storage in storages if storage.nbytes()}
