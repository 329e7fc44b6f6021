"""The optimizer's settings and which parameters are decayed."""

import pytest

from model.dit import DiTConfig, VideoDiT
from parallel.optim import AdamWConfig, is_decayed


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
