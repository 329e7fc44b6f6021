"""FLOPs and parameter counts against torch's counter, diffusers' model and published figures."""

from dataclasses import replace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from model.dit import DiTConfig, VideoDiT
from model.flops import PackSums, flops_of, forward_flops, hardware_flops, parameter_count, training_flops
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


BRIDGE_CASES = [(WAN_1_3B, (32_760, 75_600)), (WAN_14B, (8_192, 37_440, 32_760))]


@pytest.mark.parametrize(("config", "video_tokens"), BRIDGE_CASES, ids=["1.3b", "14b"])
def test_the_terms_are_those_of_megatron_bridge_s_wan(config: DiTConfig, video_tokens: tuple[int, ...]) -> None:
    """Written out as it counts them: blocks, patches, text and head; what rows cost it leaves out."""
    h, f, c, layers = config.dim, config.ffn_dim, 512, config.num_blocks
    s, pairs, n = sum(video_tokens), sum(n * n for n in video_tokens), len(video_tokens)
    attention = 2 * (4 * s * h * h + 2 * pairs * h)
    cross = 2 * (2 * s * h * h + 2 * n * c * h * h + 2 * s * c * h)
    mlp = 2 * (2 * s * h * f)
    volume = 1 * 2 * 2
    once = 2 * s * h * volume * (16 + 16) + 2 * n * c * (4096 * h + h * h)
    theirs = 3 * (layers * (attention + cross + mlp) + once)
    assert training_flops(config, video_tokens=video_tokens, text_tokens=[c] * n, rows=0) == theirs


@pytest.mark.parametrize(
    ("blocks", "width", "tokens", "published"),
    [(28, 1152, 256, 118.6), (28, 1152, 1024, 524.6)],
    ids=["XL/2", "XL/2-512"],
)
def test_dit_s_published_gflops_are_our_terms_as_multiplications(
    blocks: int, width: int, tokens: int, published: float
) -> None:
    """DiT has no text and modulates in each block: without cross-attention's q and o, with 12 h^2 a block and image."""
    config = DiTConfig(
        num_blocks=blocks, num_heads=16, head_dim=width // 16, ffn_dim=4 * width, text_dim=1, in_channels=4
    )
    config = replace(config, out_channels=8)
    flops = forward_flops(config, video_tokens=[tokens], text_tokens=[0], rows=1)
    flops += blocks * (12 * width**2 - 4 * tokens * width**2) - 12 * width**2
    assert flops / 2 / 1e9 == pytest.approx(published, rel=1e-3)


@pytest.mark.parametrize("recomputed", [0, 1, 3])
def test_full_recomputation_is_what_torch_s_counter_finds(recomputed: int) -> None:
    """Block by block, as `parallel.recompute` does."""
    with torch.device("meta"):
        dit = VideoDiT(CONFIG)
    chosen = list(dit.blocks.values())[:recomputed]

    def run(block, x_lD, context):  # type: ignore[no-untyped-def]
        return checkpoint(block, x_lD, context, use_reentrant=False) if block in chosen else block(x_lD, context)

    dit.run_block = run
    with FlopCounterMode(display=False) as counter:
        dit(inputs_on("meta", CONFIG, requires_grad=True)).sum().backward()
    sums = PackSums.of(VIDEO, TEXT, ROWS)
    formula = hardware_flops(CONFIG, sums, recompute="full", recompute_blocks=recomputed)
    assert counter.get_total_flops() == formula - 2 * ROWS * CONFIG.time_freq_dim * CONFIG.dim
    assert hardware_flops(CONFIG, sums, recompute="selective", recompute_blocks=3) == 3 * flops_of(CONFIG, sums)


def test_parameters_by_kind_are_those_of_the_modules() -> None:
    with torch.device("meta"):
        dit = VideoDiT(CONFIG)
    count = parameter_count(CONFIG)
    sizes = {name: p.numel() for name, p in dit.named_parameters()}
    time = ("conditioning.time", "conditioning.modulation", "conditioning.condition_embedding")
    kinds = {"blocks": "blocks.", "patches": "patch_embedding.", "text": "conditioning.text", "head": "head."}
    for kind, prefix in {**kinds, "time": time}.items():
        assert getattr(count, kind) == sum(size for name, size in sizes.items() if name.startswith(prefix)), kind
