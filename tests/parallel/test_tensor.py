"""What the layers exchange, and where their weights start; whole gradients are in `test_parity`."""

import torch
from layout_reference import CONFIG, assemble, read_ranks, relative

from model.dit import VideoDiT
from model.init import initial_value


def test_tokens_are_exchanged_for_heads_and_back(layouts):
    whole = torch.arange(6 * 4 * 2, dtype=torch.float64).view(6, 4, 2)
    for rank, (tensors, notes) in enumerate(read_ranks(layouts / "exchanges_cp2")):
        heads, tokens = slice(2 * rank, 2 * rank + 2), slice(3 * rank, 3 * rank + 3)
        assert torch.equal(tensors["first"], whole[:, heads])
        assert torch.equal(tensors["second"], 10 * whole[:, heads])
        assert torch.equal(tensors["back"], 11 * whole[tokens])
        # Each rank weighs what it gets back by its number plus one; a token's gradient comes home.
        assert torch.equal(tensors["grad"], torch.full((3, 4, 2), 11.0 * (rank + 1), dtype=torch.float64))
        assert (
            notes["lengths"] == [[[3], [1, 2, 0], [3, 0], [2, 1, 0, 0]], [[3], [0, 0, 3], [1, 2], [0, 1, 1, 1]]][rank]
        )


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
