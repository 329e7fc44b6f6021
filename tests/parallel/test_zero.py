"""DeepSpeed's partitions: what it is told, and that its state is there before the first step."""

import pytest
import torch
from layout_reference import assemble, read_ranks

from parallel.optim import AdamWConfig
from parallel.zero import deepspeed_config


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_settings_that_keep_an_outside_backward_right(stage):
    """Each of these was seen to give wrong gradients, without an error, when set otherwise."""
    config = deepspeed_config(AdamWConfig(clip_norm=0.5), zero_stage=stage, is_bf16=False)
    assert config["gradient_accumulation_steps"] == 1
    assert config["managed_gradient_accumulation"] is False
    assert config["gradient_clipping"] == 0.5
    zero = config["zero_optimization"]
    assert (zero["stage"], zero["contiguous_gradients"], zero["overlap_comm"]) == (stage, False, False)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_bf16_sums_in_float32(stage):
    config = deepspeed_config(AdamWConfig(), zero_stage=stage, is_bf16=True)
    assert config["bf16"]["enabled"] and config["bf16"]["check_grad_overflow"]
    assert config["bf16"].get("immediate_grad_update", False) == (stage == 1)
    assert config["data_types"] == {"grad_accum_dtype": "fp32"}
    assert config["communication_data_type"] == "fp32"


def test_state_exists_before_the_first_step(layouts):
    for _, notes in read_ranks(layouts / "initial_tp2_pp2_dp2"):
        assert notes["adam_steps"] == 0
    moments = assemble(layouts / "initial_tp2_pp2_dp2")["exp_avg"]
    assert moments and not torch.cat([moment.flatten() for moment in moments.values()]).any()


@pytest.mark.parametrize("layout", ["dp2", "dp2_bf16", "dp2_z0"])
def test_a_gradient_that_has_not_come_is_not_taken_for_zero(layouts, layout):
    for _, notes in read_ranks(layouts / f"missing_gradients_{layout}"):
        missing = "conditioning.time_in.weight has no gradient"
        assert notes["found"] == [missing, True, missing]
