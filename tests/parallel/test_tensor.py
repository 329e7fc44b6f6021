"""Megatron's layers against the dense model: loss and every gradient in float64, one rank and several."""

from itertools import product

import pytest
import torch
from layout_reference import CONFIG, assemble, read_ranks, reference_gradients, relative

from model.dit import VideoDiT
from model.init import initial_value

TOLERANCE = 1e-10


def check_gradients(folder, *, data=1, microbatches):
    """Every rank's shard of every gradient, and the loss of every last stage; returns the worst error."""
    loss, reference = reference_gradients(microbatches * data)
    worst, seen = 0.0, set()
    for tensors, notes in read_ranks(folder):
        if notes["loss"] is not None:
            assert abs(notes["loss"] - loss) <= TOLERANCE * loss
        for piece in notes["pieces"]:
            part, name = tensors[piece["name"]], piece["name"]
            whole = reference[name]
            place = tuple(slice(o, o + n) for o, n in zip(piece["offset"], part.shape, strict=True))
            error = float((part - whole[place]).norm() / whole.norm())
            assert error <= TOLERANCE, f"{name} at {piece['offset']}: {error:.1e}"
            worst = max(worst, error)
            seen.add(name)
    assert seen == set(reference)
    return worst


def test_reference_gradients_are_all_alive():
    _, gradients = reference_gradients(1)
    dead = [name for name, gradient in gradients.items() if float(gradient.norm()) < 1e-6]
    assert not dead


@pytest.mark.parametrize(("layout", "microbatches"), [*product(["single", "tp2", "tp2_sp"], [1, 2, 3]), ("tp4_sp", 2)])
def test_tensor_parallel_gradients_equal_dense(layouts, layout, microbatches):
    check_gradients(layouts / f"gradients_{layout}_{microbatches}", microbatches=microbatches)


def test_a_replicated_gradient_is_summed_whatever_its_memory_and_leaves_others_alone(layouts):
    """Megatron's own function reduces in place: here it would lose the sum, or add it to the wrong tensor."""
    for rank, (tensors, _) in enumerate(read_ranks(layouts / "shared_gradients_tp2_sp")):
        assert torch.equal(tensors["entering"], torch.full((3, 2), 1.0 + 2.0))
        assert torch.equal(tensors["beside"], torch.full((3, 2), rank + 1.0))


def test_initial_weights_do_not_depend_on_the_layout(layouts):
    whole = assemble(layouts / "initial_tp2_pp2_dp2")
    names = {name: tuple(p.shape) for name, p in VideoDiT(CONFIG).named_parameters()}
    assert set(whole["master"]) == set(names)
    for name, shape in names.items():
        assert relative(whole["master"][name], initial_value(name, shape, 7)) == 0
        assert not whole["exp_avg"][name].any()
