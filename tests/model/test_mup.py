"""muP: what each parameter is, and that nothing changes at the base width."""

from dataclasses import replace

import pytest
import torch

from model.dit import DiTConfig, VideoDiT
from model.init import init_weights, initial_value
from model.mup import rate_factor, role_of
from model.packed import PackedInputs
from model.wan_weights import from_wan, to_wan

CONFIG = DiTConfig(num_blocks=2, num_heads=4, head_dim=8, ffn_dim=128, text_dim=12, time_freq_dim=16)
TOKENS = 6


def inputs() -> PackedInputs:
    draw = torch.Generator().manual_seed(0)
    return PackedInputs(
        patch_LP=torch.randn(TOKENS, CONFIG.patch_values_in, generator=draw),
        position_L3=torch.arange(TOKENS)[:, None].expand(-1, 3).contiguous(),
        row_L=torch.zeros(TOKENS, dtype=torch.int64),
        segment_lengths=(TOKENS,),
        time_R=torch.tensor([0.4]),
        is_condition_R=torch.tensor([False]),
        text_KE=torch.randn(3, CONFIG.text_dim, generator=draw),
        text_lengths=(3,),
    )


def test_roles_are_the_number_of_dimensions_that_grow_with_the_width() -> None:
    """Found by building the model at two widths, not from names."""
    wide = replace(CONFIG, num_heads=8, ffn_dim=256)
    with torch.device("meta"):
        narrow, wider = (dict(VideoDiT(config).named_parameters()) for config in (CONFIG, wide))
    for name, parameter in narrow.items():
        out, *others = [b > a for a, b in zip(parameter.shape, wider[name].shape, strict=True)]
        is_table = name.endswith("scale_shift_table")
        expected = {
            (True,): "vector",
            (False,): "vector",
            (True, True): "hidden",
            (True, False): "input",
            (False, True): "output",
        }
        assert role_of(name) == ("vector" if is_table else expected[(out, *others)]), name


def test_only_hidden_matrices_learn_slower_when_wider() -> None:
    assert rate_factor("blocks.3.mlp_in.weight", 4.0) == rate_factor("conditioning.modulation.weight", 4.0) == 0.25
    others = ("head.projection.weight", "patch_embedding.weight", "blocks.0.mlp_in.bias", "head.scale_shift_table")
    assert {rate_factor(name, 4.0) for name in others} == {1.0}


def filled(config: DiTConfig) -> VideoDiT:
    dit = VideoDiT(config)
    init_weights(dit, 3, config.mup_base_dim)
    with torch.no_grad():
        dit.head.projection.weight.normal_(generator=torch.Generator().manual_seed(5))
        dit.head.projection.bias.normal_(generator=torch.Generator().manual_seed(6))
    return dit


def test_at_the_base_width_the_model_is_the_standard_one() -> None:
    with torch.no_grad():
        assert torch.equal(filled(CONFIG)(inputs()), filled(replace(CONFIG, mup_base_dim=CONFIG.dim))(inputs()))


def test_the_output_is_divided_and_its_bias_is_not() -> None:
    base, wide = filled(CONFIG), filled(replace(CONFIG, mup_base_dim=CONFIG.dim // 4))
    wide.load_state_dict(base.state_dict())
    with torch.no_grad():
        bias_P = base.head.projection.bias
        torch.testing.assert_close(wide(inputs()) - bias_P, (base(inputs()) - bias_P) / 4)


@pytest.mark.parametrize("name", ["patch_embedding.weight", "conditioning.text_in.weight"])
def test_weights_into_the_width_keep_their_variance(name: str) -> None:
    narrow = initial_value(name, (256, 64), 0, 256)
    wide = initial_value(name, (4096, 64), 0, 256)
    assert torch.equal(narrow, initial_value(name, (256, 64), 0))
    assert wide.std().item() == pytest.approx((2 / (256 + 64)) ** 0.5, rel=0.02)


def test_the_multiplier_is_folded_into_weights_that_leave() -> None:
    config = replace(CONFIG, mup_base_dim=8)
    state = filled(config).state_dict()
    wan = to_wan(state, config)
    standard = VideoDiT(CONFIG)
    standard.load_state_dict(from_wan(wan, CONFIG))
    ours = VideoDiT(config)
    ours.load_state_dict(from_wan(wan, config))
    with torch.no_grad():
        torch.testing.assert_close(standard(inputs()), ours(inputs()))
    torch.testing.assert_close(ours.state_dict(), state)


def test_a_base_width_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="model.mup_base_dim is 0"):
        replace(CONFIG, mup_base_dim=0)
