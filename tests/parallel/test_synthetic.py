"""Made-up packs: unequal, always the same, and with nothing in them that a layout could lose unseen."""

import torch

from model.dit import DiTConfig, VideoDiT
from parallel.synthetic import lively_value, synthetic_pack

CONFIG = DiTConfig(num_blocks=1, num_heads=2, head_dim=6, ffn_dim=8, text_dim=4, time_freq_dim=4)


def test_packs_are_a_pure_function_of_their_number():
    first, again, other = (synthetic_pack(CONFIG, 48, number) for number in (3, 3, 5))
    assert torch.equal(first.inputs.patch_LP, again.inputs.patch_LP)
    assert first.inputs.segment_lengths == again.inputs.segment_lengths != other.inputs.segment_lengths


def test_packs_hold_images_clips_conditions_and_padding():
    packs = [synthetic_pack(CONFIG, 48, number) for number in range(10)]
    frames = [int(pack.inputs.position_L3[:, 0].max()) + 1 for pack in packs]
    assert min(frames) == 1 and max(frames) > 1
    assert sum(bool(pack.inputs.is_condition_R.any()) for pack in packs) > 4
    assert len({len(pack.inputs.segment_lengths) for pack in packs}) > 2
    for number, pack in enumerate(packs):
        inputs = pack.inputs
        assert inputs.num_tokens == len(pack.weight_L) == sum(inputs.segment_lengths) == 48
        assert len(inputs.text_lengths) == len(inputs.segment_lengths)
        assert int(inputs.row_L.max()) + 1 == len(inputs.time_R) == len(inputs.is_condition_R)
        assert not pack.weight_L[inputs.is_condition_R[inputs.row_L]].any(), "conditions carry no loss"
        is_padding_L = (inputs.patch_LP == 0).all(-1)
        assert not pack.weight_L[is_padding_L].any()
        assert int(is_padding_L.sum()) == (47 if number % 5 == 4 else int(is_padding_L.sum()))
    lie_between = [bool((pack.inputs.position_L3 % 1).any()) for pack in packs]
    assert any(lie_between) and not all(lie_between), "some clips have positions between frames"
    assert any((pack.inputs.patch_LP == 0).all(-1).any() for number, pack in enumerate(packs) if number % 5 != 4)


def test_no_parameter_starts_at_zero():
    for name, parameter in VideoDiT(CONFIG).named_parameters():
        value = lively_value(name, tuple(parameter.shape), seed=0)
        assert value.shape == parameter.shape and float(value.abs().mean()) > 0.02, name
        assert not torch.equal(value, lively_value(name, tuple(parameter.shape), seed=1))
