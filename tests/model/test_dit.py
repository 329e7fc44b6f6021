"""What a DiT promises whatever its weights: packing, stages, the contract with `Layers`, and its configs."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import dacite
import pytest
import torch
import yaml
from torch import Tensor, nn

from model.dit import DiTConfig, Stage, VideoDiT
from model.flops import parameter_count
from model.init import init_weights
from model.layers import DenseLayers
from model.packed import PackedInputs, patch_positions

CONFIG = DiTConfig(num_blocks=3, num_heads=3, head_dim=16, ffn_dim=80, text_dim=24, in_channels=5, out_channels=4)
GRIDS = ((3, 2, 4), (1, 3, 3), (2, 5, 1))
TEXT_LENGTHS = (4, 1, 6)
CONFIG_FILES = sorted((Path(__file__).parents[2] / "conf" / "model").glob("*.yaml"))


def random_dit(config: DiTConfig = CONFIG, **arguments: Any) -> VideoDiT:
    """A float64 DiT in which nothing is zero."""
    dit = VideoDiT(config, **arguments).double()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in dit.named_parameters():
            centre = 1.0 if name.endswith("norm.weight") else 0.0
            parameter.copy_(centre + 0.15 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return dit


def sample(index: int) -> PackedInputs:
    """One sample as a pack of its own; its first frame is a condition and each frame has its own noise level."""
    generator = torch.Generator().manual_seed(index)
    (t, h, w), text_length = GRIDS[index], TEXT_LENGTHS[index]

    def randn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    return PackedInputs(
        patch_LP=randn(t * h * w, CONFIG.patch_values_in),
        position_L3=patch_positions((t, h, w)),
        row_L=torch.arange(t).repeat_interleave(h * w),
        segment_lengths=(t * h * w,),
        time_R=torch.rand(t, generator=generator, dtype=torch.float64),
        is_condition_R=torch.arange(t) == 0,
        text_KE=randn(text_length, CONFIG.text_dim),
        text_lengths=(text_length,),
    )


def pack(samples: list[PackedInputs]) -> PackedInputs:
    first_rows = [sum(len(s.time_R) for s in samples[:i]) for i in range(len(samples))]
    return PackedInputs(
        patch_LP=torch.cat([s.patch_LP for s in samples]),
        position_L3=torch.cat([s.position_L3 for s in samples]),
        row_L=torch.cat([s.row_L + first for s, first in zip(samples, first_rows, strict=True)]),
        segment_lengths=tuple(s.num_tokens for s in samples),
        time_R=torch.cat([s.time_R for s in samples]),
        is_condition_R=torch.cat([s.is_condition_R for s in samples]),
        text_KE=torch.cat([s.text_KE for s in samples]),
        text_lengths=tuple(len(s.text_KE) for s in samples),
    )


def test_a_packed_sample_equals_the_sample_alone() -> None:
    dit, samples = random_dit(), [sample(i) for i in range(3)]
    packed = dit(pack(samples)).split([s.num_tokens for s in samples])
    for alone, prediction_nP in zip(samples, packed, strict=True):
        assert prediction_nP.abs().mean() > 0.1
        assert (dit(alone) - prediction_nP).abs().max() <= 1e-12


def test_neighbours_do_not_reach_a_packed_sample() -> None:
    """Other content in the neighbours leaves every bit, and no gradient flows to them."""
    dit, (first, middle, last) = random_dit(), [sample(i) for i in range(3)]
    other = replace(first, patch_LP=first.patch_LP + 5, text_KE=-first.text_KE, time_R=1 - first.time_R)
    own = slice(first.num_tokens, first.num_tokens + middle.num_tokens)
    inputs = pack([first, middle, last])
    inputs.patch_LP.requires_grad_()
    inputs.text_KE.requires_grad_()
    prediction_nP = dit(inputs)[own]
    assert torch.equal(prediction_nP, dit(pack([other, middle, other]))[own])
    prediction_nP.square().sum().backward()
    assert inputs.patch_LP.grad is not None and inputs.text_KE.grad is not None
    moved_L = inputs.patch_LP.grad.abs().amax(1) > 0
    assert moved_L[own].all() and moved_L.sum() == middle.num_tokens
    assert (inputs.text_KE.grad.abs().amax(1) > 0).tolist() == [False] * 4 + [True] + [False] * 6


def test_order_within_a_segment_is_free() -> None:
    """Tokens carry their position, so a shuffled segment gives shuffled predictions."""
    dit, alone = random_dit(), sample(0)
    order = torch.randperm(alone.num_tokens, generator=torch.Generator().manual_seed(0))
    shuffled = replace(
        alone, patch_LP=alone.patch_LP[order], position_L3=alone.position_L3[order], row_L=alone.row_L[order]
    )
    assert (dit(shuffled) - dit(alone)[order]).abs().max() <= 1e-12


def test_a_condition_row_is_told_from_noise_at_the_same_level() -> None:
    dit, inputs = random_dit(), sample(0)
    plain = replace(inputs, is_condition_R=torch.zeros(3, dtype=torch.bool))
    assert (dit(inputs) - dit(plain)).abs().max() > 1e-3
    nn.init.zeros_(dit.conditioning.condition_embedding)
    assert torch.equal(dit(inputs), dit(plain))


@pytest.mark.parametrize("cut", [0, 1, 2, 3])
def test_stages_in_sequence_equal_the_whole(cut: int) -> None:
    """Outputs and gradients, with parameter names that are global; also where one stage has no block."""
    whole, inputs = random_dit(), pack([sample(0), sample(1)])
    stages = [Stage(0, cut, True, False), Stage(cut, CONFIG.num_blocks, False, True)]
    first, last = (VideoDiT(CONFIG, stages=[stage]).double() for stage in stages)
    state = whole.state_dict()
    for part in (first, last):
        part.load_state_dict({name: state[name] for name in part.state_dict()})
    names = [set(part.state_dict()) for part in (first, last)]
    assert names[0] | names[1] == set(state)
    assert all(name.startswith("conditioning.") for name in names[0] & names[1])

    expected, prediction = whole(inputs), last(inputs, first(inputs))
    assert torch.equal(prediction, expected)
    expected.square().sum().backward()
    prediction.square().sum().backward()
    split = [dict(part.named_parameters()) for part in (first, last)]
    for name, parameter in whole.named_parameters():
        gradients = [part[name].grad for part in split if name in part and part[name].grad is not None]
        assert parameter.grad is not None
        assert (sum(gradients) - parameter.grad).norm() <= 1e-12 * parameter.grad.norm(), name


class SpyLayers(DenseLayers):
    """Dense layers that note what enters the residual stream."""

    def __init__(self) -> None:
        self.replicas: list[Tensor] = []
        self.own: list[nn.Module] = []

    def keep(self, module: nn.Module) -> nn.Module:
        self.own.append(module)
        return module

    def column_linear(self, in_features: int, out_features: int, *, gather_sequence: bool) -> nn.Module:
        return self.keep(super().column_linear(in_features, out_features, gather_sequence=gather_sequence))

    def row_linear(self, in_features: int, out_features: int) -> nn.Module:
        return self.keep(super().row_linear(in_features, out_features))

    def sharded_rms_norm(self, features: int, eps: float) -> nn.Module:
        return self.keep(super().sharded_rms_norm(features, eps))

    def replicated(self, tensor: Tensor) -> Tensor:
        self.replicas.append(tensor)
        return tensor


def test_every_replicated_parameter_enters_the_stream_through_layers() -> None:
    """Once each: a parameter that skips `replicated` has a partial gradient under sequence parallelism."""
    layers = SpyLayers()
    dit = random_dit(layers=layers)
    dit(sample(0))
    sharded = {id(p) for module in layers.own for p in module.parameters()}
    expected = {
        name for name, p in dit.named_parameters() if id(p) not in sharded and not name.startswith("conditioning.")
    }
    names = {id(p): name for name, p in dit.named_parameters()}
    marked = [names[id(x)] for x in layers.replicas if id(x) in names]
    assert sorted(marked) == sorted(expected)
    derived = [tuple(x.shape) for x in layers.replicas if id(x) not in names]
    assert derived == [(3, 6, CONFIG.dim), (3, CONFIG.dim)], "the modulation table and the head's time embedding"


def test_bfloat16_stays_near_float32() -> None:
    dit = random_dit()
    inputs = pack([sample(0), sample(1), sample(2)])
    exact_LP = dit(inputs)
    rough_LP = dit.bfloat16()(inputs.to("cpu", torch.bfloat16))
    assert rough_LP.dtype == torch.bfloat16
    assert (rough_LP.double() - exact_LP).norm() / exact_LP.norm() < 0.03


def test_an_untrained_dit_predicts_zero() -> None:
    dit = VideoDiT(CONFIG)
    init_weights(dit, seed=0)
    assert dit(sample(0).to("cpu", torch.float32)).abs().max() == 0


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("head_dim", 15, "head_dim is 15"),
        ("head_dim", 4, "head_dim is 4"),
        ("num_blocks", 0, "num_blocks is 0"),
        ("num_heads", -2, "num_heads is -2"),
        ("text_dim", 0, "text_dim is 0"),
        ("time_freq_dim", 7, "time_freq_dim is 7"),
        ("patch_size", (1, 2), r"patch_size is \(1, 2\)"),
        ("patch_size", (1, 0, 2), r"patch_size is \(1, 0, 2\)"),
        ("eps", 0.0, "eps is 0.0"),
    ],
)
def test_a_size_that_cannot_be_built_is_refused(field: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        replace(CONFIG, **{field: value})
    assert str(error.value).endswith(".") and "\n" not in str(error.value)


def load(path: Path) -> DiTConfig:
    settings = dacite.Config(strict=True, cast=[tuple])
    return dacite.from_dict(DiTConfig, yaml.safe_load(path.read_text()), settings)


@pytest.mark.parametrize("path", CONFIG_FILES, ids=lambda path: path.stem)
def test_shipped_sizes_are_what_their_names_say(path: Path) -> None:
    config, name = load(path), path.stem
    total = parameter_count(config).total
    named = {"nano": 58e3, "tiny": 0.2e6, "demo": 4.4e6, "wan_1_3b": 1.42e9, "wan_14b": 14.3e9}
    digits, unit = name.removeprefix("ladder_")[:-1], name[-1]
    said = named[name] if name in named else float(digits) * {"m": 1e6, "b": 1e9}[unit]
    assert abs(total / said - 1) < 0.1
    assert config.text_dim == (4096 if name.startswith("wan") else 12 if name == "nano" else 384)


def test_the_ladder_changes_size_only() -> None:
    """Same head width, MLP ratio and shape at every rung; widths and depths that grow together."""
    ladder = sorted((load(path) for path in CONFIG_FILES if path.stem.startswith("ladder")), key=lambda c: c.dim)
    assert len(ladder) == 6
    assert {c.head_dim for c in ladder} == {64} and {c.ffn_dim / c.dim for c in ladder} == {4}
    assert all(38 <= c.dim / c.num_blocks <= 45 for c in ladder)
    assert all(c.num_heads % 2 == 0 for c in ladder), "so that each can be split over two tensor ranks"
    depths = [c.num_blocks for c in ladder]
    assert depths == sorted(set(depths))
