"""Each layer of the `wan` codec against the rule it stands for, or the reference's layer."""

import pytest
import torch
from diffusers.models.autoencoders import autoencoder_kl_wan as reference
from torch import Tensor

from model.codec_wan_blocks import (
    AverageDown,
    CausalConv3d,
    ChannelRMSNorm,
    Downsample,
    DuplicateUp,
    FrameAttention,
    RepeatPixels,
    Upsample,
)


def features(channels: int, frames: int, height: int = 4, width: int = 6) -> Tensor:
    generator = torch.Generator().manual_seed(frames)
    return torch.randn(2, channels, frames, height, width, generator=generator, dtype=torch.float64)


def test_causal_convolution_sees_two_frames_back_and_none_ahead():
    torch.manual_seed(0)
    layer = CausalConv3d(3, 4, 3).double()
    x = features(3, 6)
    reached = []
    for frame in range(6):
        probe = x.clone().requires_grad_()
        layer(probe)[:, :, frame].sum().backward()
        assert probe.grad is not None
        reached.append([t for t in range(6) if probe.grad[:, :, t].abs().max() > 0])
    assert reached == [[0], [0, 1], [0, 1, 2], [1, 2, 3], [2, 3, 4], [3, 4, 5]]


@pytest.mark.parametrize("frames", [1, 3, 9])
def test_time_is_halved_with_frame_0_set_apart(frames: int):
    torch.manual_seed(0)
    layer = Downsample(4, time=True).double()
    x = features(4, frames)
    small = torch.stack([layer.resample(x[:, :, t]) for t in range(frames)], dim=2)
    expected = [small[:, :, 0]]
    for pair in range((frames - 1) // 2):
        window = small[:, :, 2 * pair : 2 * pair + 3]
        assert layer.time_conv is not None
        weight = layer.time_conv.weight[:, :, :, 0, 0]
        expected.append(torch.einsum("bithw,oit->bohw", window, weight) + layer.time_conv.bias[:, None, None])
    torch.testing.assert_close(layer(x), torch.stack(expected, dim=2), rtol=0, atol=1e-12)


@pytest.mark.parametrize("frames", [1, 2, 4])
def test_time_is_doubled_without_a_look_at_frame_0(frames: int):
    torch.manual_seed(0)
    layer = Upsample(4, 2, time=True).double()
    x = features(4, frames)
    assert layer.time_conv is not None
    weight, bias = layer.time_conv.weight[:, :, :, 0, 0], layer.time_conv.bias[:, None, None]
    grown = [x[:, :, 0]]
    for frame in range(1, frames):
        mixed = bias
        for tap, source in enumerate((frame - 2, frame - 1, frame)):
            if source >= 1:
                mixed = mixed + torch.einsum("bihw,oi->bohw", x[:, :, source], weight[:, :, tap])
        grown += [mixed[:, :4], mixed[:, 4:]]
    expected = torch.stack([layer.resample(frame) for frame in grown], dim=2)
    torch.testing.assert_close(layer(x), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("time", [1, 2])
@pytest.mark.parametrize(("channels", "out"), [(4, 4), (4, 8), (6, 4)])
@pytest.mark.parametrize("frames", [1, 5])
def test_averaging_shortcut_matches_the_reference(time: int, channels: int, out: int, frames: int):
    x = features(channels, frames)
    expected = reference.AvgDown3D(channels, out, factor_t=time, factor_s=2)(x)
    torch.testing.assert_close(AverageDown(channels, out, time=time, space=2)(x), expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("time", [1, 2])
@pytest.mark.parametrize(("channels", "out"), [(4, 4), (8, 4), (8, 2)])
def test_duplicating_shortcut_matches_the_reference(time: int, channels: int, out: int):
    x = features(channels, 3)
    theirs = reference.DupUp3D(channels, out, factor_t=time, factor_s=2)
    chunks = [theirs(x[:, :, t : t + 1], first_chunk=t == 0) for t in range(3)]
    assert torch.equal(DuplicateUp(channels, out, time=time, space=2)(x), torch.cat(chunks, dim=2))


def test_widths_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="fit the widths"):
        AverageDown(3, 16, time=1, space=2)
    with pytest.raises(ValueError, match="fit the widths"):
        DuplicateUp(16, 3, time=1, space=2)


def test_attention_stays_inside_a_frame():
    torch.manual_seed(0)
    layer = FrameAttention(4).double()
    x = features(4, 3)
    changed = x.clone()
    changed[:, :, 1] *= -2
    difference = (layer(x) - layer(changed)).abs().amax(dim=(0, 1, 3, 4))
    assert difference[1] > 1e-3
    torch.testing.assert_close(difference[[0, 2]], torch.zeros(2, dtype=torch.float64), rtol=0, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_norm_matches_the_reference(dtype: torch.dtype):
    ours, theirs = ChannelRMSNorm(8, 3).to(dtype), reference.WanRMS_norm(8, images=False).to(dtype)
    with torch.no_grad():
        ours.gamma.copy_(torch.rand_like(ours.gamma))
        theirs.gamma.copy_(ours.gamma)
    x = features(8, 2).to(dtype)
    assert torch.equal(ours(x), theirs(x))


def test_pixels_are_repeated_exactly():
    x = features(2, 1)[:, :, 0]
    assert torch.equal(RepeatPixels()(x), x.repeat_interleave(2, 2).repeat_interleave(2, 3))
