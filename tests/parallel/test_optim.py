"""The optimizer's settings and which parameters are decayed."""

import pytest

from model.dit import DiTConfig, VideoDiT
from parallel.optim import AdamWConfig, is_decayed, parameter_groups


def test_only_matrices_of_linear_layers_are_decayed():
    config = DiTConfig(num_blocks=1, num_heads=2, head_dim=6, ffn_dim=8, text_dim=4, time_freq_dim=4)
    named = {name: tuple(p.shape) for name, p in VideoDiT(config).named_parameters()}
    kept = {
        name.rsplit(".", 1)[-1] if "norm" not in name else "norm" for name in named if not is_decayed(name, named[name])
    }
    assert kept == {"bias", "norm", "scale_shift_table", "condition_embedding"}
    assert is_decayed("blocks.0.mlp_in.weight", named["blocks.0.mlp_in.weight"])


@pytest.mark.parametrize("options", [{"beta1": 1.0}, {"eps": 0.0}, {"clip_norm": 0.0}, {"weight_decay": -1.0}])
def test_settings_that_cannot_work_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        AdamWConfig(**options)


SHAPES = {"blocks.0.mlp_in.weight": (64, 16), "patch_embedding.weight": (16, 12), "head.projection.weight": (12, 16)}
SHAPES |= {"blocks.0.mlp_in.bias": (64,), "head.scale_shift_table": (2, 16), "blocks.0.cross_norm.weight": (16,)}


def test_without_mup_there_are_those_that_decay_and_the_others():
    groups = parameter_groups(AdamWConfig(weight_decay=0.1), SHAPES, 1.0)
    assert [(group.weight_decay, group.rate_factor) for group in groups] == [(0.1, 1.0), (0.0, 1.0)]
    assert [name for group in groups for name in group.names] == list(SHAPES)


def test_with_mup_rates_fall_with_the_width_and_what_decays_does_not():
    groups = parameter_groups(AdamWConfig(weight_decay=0.1), SHAPES, 4.0)
    assert sorted(name for group in groups for name in group.names) == sorted(SHAPES)
    found = {name: (group.rate_factor, group.weight_decay) for group in groups for name in group.names}
    assert found["blocks.0.mlp_in.weight"] == (0.25, 0.4)
    assert found["patch_embedding.weight"] == found["head.projection.weight"] == (1.0, 0.1)
    assert found["head.scale_shift_table"] == (1.0, 0.0)
