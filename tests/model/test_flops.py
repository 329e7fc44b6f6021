"""FLOPs and parameter counts against torch's counter, diffusers' model and published figures."""

from dataclasses import replace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from model.dit import DiTConfig, VideoDiT
from model.flops import forward_flops, parameter_count, training_flops
from model.packed import PackedInputs
from model.wan_weights import config_to_wan

CONFIG = DiTConfig(num_blocks=3, num_heads=3, head_dim=16, ffn_dim=80, text_dim=24, in_channels=5, out_channels=4)
WAN_14B = DiTConfig(num_blocks=40, num_heads=40, head_dim=128, ffn_dim=13824, text_dim=4096)
WAN_1_3B = DiTConfig(num_blocks=30, num_heads=12, head_dim=128, ffn_dim=8960, text_dim=4096)
VIDEO, TEXT, ROWS = (12, 7, 30), (4, 1, 9), 5


def inputs_on(device: str, config: DiTConfig, *, requires_grad: bool = False) -> PackedInputs:
    with torch.device(device):
        return PackedInputs(
            patch_LP=torch.zeros(sum(VIDEO), config.patch_values_in, requires_grad=requires_grad),
            position_L3=torch.zeros(sum(VIDEO), 3, dtype=torch.int64),
            row_L=torch.zeros(sum(VIDEO), dtype=torch.int64),
            segment_lengths=VIDEO,
            time_R=torch.zeros(ROWS),
            is_condition_R=torch.zeros(ROWS, dtype=torch.bool),
            text_KE=torch.zeros(sum(TEXT), config.text_dim, requires_grad=requires_grad),
            text_lengths=TEXT,
        )


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_forward_equals_torch_s_counter(device: str) -> None:
    with torch.device(device):
        dit = VideoDiT(CONFIG)
    # The counter does not know the CPU's fused attention.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        dit(inputs_on(device, CONFIG))
    assert counter.get_total_flops() == forward_flops(CONFIG, video_tokens=VIDEO, text_tokens=TEXT, rows=ROWS)


def test_training_equals_torch_s_counter() -> None:
    """All but the gradient of the sinusoids, which nobody asks for."""
    with torch.device("meta"):
        dit = VideoDiT(CONFIG)
    with FlopCounterMode(display=False) as counter:
        dit(inputs_on("meta", CONFIG, requires_grad=True)).sum().backward()
    sinusoids = 2 * ROWS * CONFIG.time_freq_dim * CONFIG.dim
    formula = training_flops(CONFIG, video_tokens=VIDEO, text_tokens=TEXT, rows=ROWS)
    assert counter.get_total_flops() == formula - sinusoids


@pytest.mark.parametrize("config", [WAN_1_3B, WAN_14B], ids=["1.3b", "14b"])
def test_wan_at_full_size_equals_torch_s_counter(config: DiTConfig) -> None:
    with torch.device("meta"):
        dit = VideoDiT(config)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        dit(inputs_on("meta", config))
    assert counter.get_total_flops() == forward_flops(config, video_tokens=VIDEO, text_tokens=TEXT, rows=ROWS)


@pytest.mark.parametrize(
    ("config", "video_tokens", "petaflops"),
    [
        (WAN_14B, 8_192, "0.769"),
        (WAN_14B, 32_760, "5.035"),
        (WAN_14B, 37_440, "6.184"),
        (WAN_14B, 75_600, "19.57"),
        (WAN_1_3B, 8_192, "0.101"),
        (WAN_1_3B, 32_760, "0.849"),
        (WAN_1_3B, 37_440, "1.067"),
        (WAN_1_3B, 75_600, "3.750"),
    ],
)
def test_wan_s_published_sizes(config: DiTConfig, video_tokens: int, petaflops: str) -> None:
    """PFLOP of a training step on one sample with 512 text tokens, to every printed digit."""
    flops = training_flops(config, video_tokens=[video_tokens], text_tokens=[512], rows=1)
    assert f"{flops / 1e15:.{len(petaflops.split('.')[1])}f}" == petaflops


def test_a_pack_costs_the_sum_of_its_samples() -> None:
    alone = [forward_flops(CONFIG, video_tokens=[s], text_tokens=[c], rows=1) for s, c in zip(VIDEO, TEXT, strict=True)]
    assert forward_flops(CONFIG, video_tokens=VIDEO, text_tokens=TEXT, rows=3) == sum(alone)


@pytest.mark.parametrize("config", [CONFIG, replace(CONFIG, patch_size=(2, 1, 3), time_freq_dim=34), WAN_1_3B, WAN_14B])
def test_parameter_count_is_the_module_s(config: DiTConfig) -> None:
    with torch.device("meta"):
        dit = VideoDiT(config)
    count = parameter_count(config)
    assert count.total == sum(p.numel() for p in dit.parameters())
    assert count.non_embedding == sum(p.numel() for p in dit.blocks.parameters())


@pytest.mark.parametrize("config", [WAN_1_3B, WAN_14B], ids=["1.3b", "14b"])
def test_parameter_count_is_diffusers_and_the_condition_embedding(config: DiTConfig) -> None:
    diffusers = pytest.importorskip("diffusers")
    with torch.device("meta"):
        wan = diffusers.WanTransformer3DModel(**config_to_wan(config))
    assert parameter_count(config).total == sum(p.numel() for p in wan.parameters()) + config.dim
