"""Initial weights are named numbers."""

import pytest
import torch

from model.dit import DiTConfig, Stage, VideoDiT
from model.init import init_weights, initial_value

CONFIG = DiTConfig(num_blocks=3, num_heads=4, head_dim=16, ffn_dim=128, text_dim=24)


def test_a_value_depends_on_its_name_shape_and_seed_alone() -> None:
    name, shape = "blocks.1.mlp_in.weight", (128, 64)
    value = initial_value(name, shape, 5)
    torch.manual_seed(99)
    torch.rand(3)
    assert torch.equal(value, initial_value(name, shape, 5))
    assert value.dtype == torch.float32
    assert not torch.equal(value, initial_value(name, shape, 6))
    assert not torch.equal(value, initial_value("blocks.2.mlp_in.weight", shape, 5))


def test_drawing_leaves_the_global_generator_alone() -> None:
    state = torch.get_rng_state()
    initial_value("blocks.1.mlp_in.weight", (8, 8), 5)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("cut", [1, 2])
def test_stages_start_from_the_whole_model_s_weights(cut: int) -> None:
    whole = VideoDiT(CONFIG)
    init_weights(whole, seed=4)
    state = whole.state_dict()
    for stage in (Stage(cut, 3, False, True), Stage(0, cut, True, False)):
        part = VideoDiT(CONFIG, stages=[stage])
        init_weights(part, seed=4)
        assert all(torch.equal(value, state[name]) for name, value in part.state_dict().items())


def test_variance_is_glorot_s() -> None:
    value = initial_value("blocks.0.mlp_in.weight", (1024, 256), 0)
    assert value.std().item() == pytest.approx((2 / 1280) ** 0.5, rel=0.01)
    assert abs(value.mean().item()) < 1e-3


def test_gates_biases_and_outputs_start_at_zero_and_norms_at_one() -> None:
    dit = VideoDiT(CONFIG)
    init_weights(dit, seed=0)
    zero = {name for name, p in dit.named_parameters() if not p.any()}
    ones = {name for name, p in dit.named_parameters() if (p == 1).all()}
    norms = ("self_attention.query_norm", "self_attention.key_norm", "cross_norm")
    norms += ("cross_attention.query_norm", "cross_attention.key_norm")
    assert ones == {f"blocks.{i}.{norm}.weight" for i in range(3) for norm in norms}
    matrices = {"conditioning.modulation.weight", "head.projection.weight"}
    tables = {"conditioning.condition_embedding", "head.scale_shift_table"}
    tables |= {f"blocks.{i}.scale_shift_table" for i in range(3)}
    assert zero == matrices | tables | {name for name, _ in dit.named_parameters() if name.endswith(".bias")}
