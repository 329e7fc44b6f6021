"""DeepSpeed's partitions: what it is told, and that its state is there before the first step."""

import torch
from layout_reference import assemble, read_ranks

from parallel.optim import AdamWConfig
from parallel.zero import _deepspeed_config


def test_settings_that_keep_an_outside_backward_right():
    """Each of these was seen to give wrong gradients, without an error, when set otherwise."""
    config = _deepspeed_config(AdamWConfig(clip_norm=0.5), is_bf16=False)
    assert config["gradient_accumulation_steps"] == 1
    assert config["managed_gradient_accumulation"] is False
    assert config["gradient_clipping"] == 0.5
    zero = config["zero_optimization"]
    assert (zero["stage"], zero["contiguous_gradients"], zero["overlap_comm"]) == (1, False, False)


def test_bf16_accumulates_in_float32_as_gradients_come():
    config = _deepspeed_config(AdamWConfig(), is_bf16=True)
    assert config["bf16"] == {"enabled": True, "immediate_grad_update": True}
    assert config["data_types"] == {"grad_accum_dtype": "fp32"}


def test_state_exists_before_the_first_step(layouts):
    for _, notes in read_ranks(layouts / "initial_tp2_pp2_dp2"):
        assert notes["adam_steps"] == 0
    moments = assemble(layouts / "initial_tp2_pp2_dp2")["exp_avg"]
    assert moments and not torch.cat([moment.flatten() for moment in moments.values()]).any()
