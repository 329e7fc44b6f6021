"""The DiT against diffusers' WanTransformer3DModel, which we did not write, forward and backward.

Shapes: B samples of one grid, C T H W latents, L tokens of a pack, n tokens of a sample, P values of a patch.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from model.dit import DiTConfig, VideoDiT
from model.init import init_weights
from model.packed import PackedInputs, patch_positions, patchify, unpatchify
from model.wan_weights import config_from_wan, config_to_wan, from_wan, to_wan

diffusers = pytest.importorskip("diffusers")

CONFIG = DiTConfig(
    num_blocks=2, num_heads=3, head_dim=16, ffn_dim=80, text_dim=24, in_channels=5, out_channels=4, time_freq_dim=32
)
GRIDS = [(1, 4, 6), (5, 3, 5), (2, 1, 1), (4, 6, 2)]
TEXT_LENGTHS = [1, 7, 512]
SCORES_ONLY = (".norm2.", "attn2.norm", "attn2.to_q", "attn2.to_k")


@pytest.fixture
def float64_casts_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the reference stay in float64: its casts to float32 do nothing, also while it builds its RoPE tables."""
    to_float32 = Tensor.float
    monkeypatch.setattr(Tensor, "float", lambda x: x if x.dtype == torch.float64 else to_float32(x))


def reference_of(config: DiTConfig, dtype: torch.dtype) -> torch.nn.Module:
    """A WanTransformer3DModel in which every parameter is random, biases and norm weights included."""
    torch.manual_seed(0)
    wan = diffusers.WanTransformer3DModel(**config_to_wan(config)).to(dtype)
    with torch.no_grad():
        for name, parameter in wan.named_parameters():
            centre = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            parameter.copy_(centre + torch.randn_like(parameter) * (0.3 if parameter.ndim < 2 else 0.15))
    return wan.eval()


@dataclass(frozen=True, kw_only=True)
class Case:
    """Inputs of both models: a batch of B samples of one size."""

    latent_BCTHW: Tensor
    time: Tensor
    """`[B]` or per token `[B, n]`, in [0, 1]."""
    text_BNE: Tensor
    cotangent_BCTHW: Tensor
    grid: tuple[int, int, int]


def make_case(
    config: DiTConfig, grid: tuple[int, int, int], text_length: int, time: str, dtype: torch.dtype = torch.float64
) -> Case:
    generator = torch.Generator().manual_seed(7)

    def randn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=dtype)

    (t, h, w), size = grid, [g * p for g, p in zip(grid, config.patch_size, strict=True)]
    times = {
        "per sample": torch.rand(2, generator=generator, dtype=dtype),
        "per frame": torch.rand(2, t, generator=generator, dtype=dtype).repeat_interleave(h * w, 1),
        "per token": torch.rand(2, t * h * w, generator=generator, dtype=dtype),
    }
    return Case(
        latent_BCTHW=randn(2, config.in_channels, *size),
        time=times[time],
        text_BNE=randn(2, text_length, config.text_dim),
        cotangent_BCTHW=randn(2, config.out_channels, *size),
        grid=grid,
    )


def pack_of(case: Case, config: DiTConfig) -> PackedInputs:
    """The batch as one pack, with a conditioning row for each distinct noise level of each sample."""
    patches, rows, levels = [], [], []
    tokens = case.grid[0] * case.grid[1] * case.grid[2]
    for latent_CTHW, time in zip(case.latent_BCTHW, case.time, strict=True):
        level_R, row_n = torch.unique(time.expand(tokens), return_inverse=True)
        rows.append(row_n + sum(len(level) for level in levels))
        levels.append(level_R)
        patches.append(patchify(latent_CTHW, config.patch_size))
    time_R = torch.cat(levels)
    return PackedInputs(
        patch_LP=torch.cat(patches),
        position_L3=patch_positions(case.grid).repeat(2, 1),
        row_L=torch.cat(rows),
        segment_lengths=(tokens, tokens),
        time_R=time_R,
        is_condition_R=torch.zeros(len(time_R), dtype=torch.bool),
        text_KE=case.text_BNE.flatten(0, 1),
        text_lengths=(case.text_BNE.shape[1],) * 2,
    )


def outputs(dit: VideoDiT, wan: torch.nn.Module, case: Case) -> Iterator[Tensor]:
    """Predicted latents `[B, C, T, H, W]` of both."""
    prediction_LP = dit(pack_of(case, dit.config))
    samples = [unpatchify(x_nP, case.grid, dit.config.patch_size) for x_nP in prediction_LP.chunk(2)]
    yield torch.stack(samples)
    yield wan(case.latent_BCTHW, case.time * 1000, case.text_BNE, return_dict=False)[0]


def ours_of(wan: torch.nn.Module, config: DiTConfig, dtype: torch.dtype) -> VideoDiT:
    dit = VideoDiT(config).to(dtype)
    dit.load_state_dict(from_wan(wan.state_dict(), config))
    return dit


def worst_gradient(dit: VideoDiT, wan: torch.nn.Module, *, one_text_token: bool) -> tuple[float, str]:
    """Largest relative error (Frobenius norm) of a parameter's gradient, and whose.

    With one text token the softmax over it is constant: what feeds its scores only has no gradient but rounding.
    """
    gradients = {name: parameter.grad for name, parameter in dit.named_parameters()}
    ours = to_wan(gradients, dit.config, drop_condition_embedding=True)
    theirs = {name: parameter.grad for name, parameter in wan.named_parameters()}
    assert ours.keys() == theirs.keys()
    errors = []
    for name, gradient in theirs.items():
        error, size = (ours[name] - gradient).norm().item(), gradient.norm().item()
        if one_text_token and any(part in name for part in SCORES_ONLY):
            assert size < 1e-12 and error < 1e-12, name
        else:
            assert size > 1e-6, f"{name}: its gradient is too small to tell anything"
            errors.append((error / size, name))
    return max(errors)


def check_outputs_and_gradients(config: DiTConfig, case: Case) -> None:
    wan = reference_of(config, torch.float64)
    dit = ours_of(wan, config, torch.float64)
    case.latent_BCTHW.requires_grad_()
    case.text_BNE.requires_grad_()
    inputs = [case.latent_BCTHW, case.text_BNE]
    input_gradients = []
    predictions = []
    for prediction in outputs(dit, wan, case):
        (prediction * case.cotangent_BCTHW).sum().backward()
        predictions.append(prediction.detach())
        input_gradients.append([x.grad.clone() for x in inputs])
        for x in inputs:
            x.grad = None
    ours, theirs = predictions
    assert theirs.abs().mean() > 0.1
    assert (ours - theirs).abs().max() <= 1e-9
    error, name = worst_gradient(dit, wan, one_text_token=case.text_BNE.shape[1] == 1)
    assert error <= 1e-9, name
    for our_gradient, their_gradient in zip(*input_gradients, strict=True):
        assert (our_gradient - their_gradient).norm() <= 1e-9 * their_gradient.norm()


@pytest.mark.parametrize("time", ["per sample", "per frame", "per token"])
@pytest.mark.parametrize("grid", GRIDS)
def test_float64_matches_wan_at_every_grid(float64_casts_off: None, grid: tuple[int, int, int], time: str) -> None:
    check_outputs_and_gradients(CONFIG, make_case(CONFIG, grid, 7, time))


@pytest.mark.parametrize("text_length", TEXT_LENGTHS)
def test_float64_matches_wan_at_every_text_length(float64_casts_off: None, text_length: int) -> None:
    check_outputs_and_gradients(CONFIG, make_case(CONFIG, (3, 2, 3), text_length, "per sample"))


@pytest.mark.parametrize("head_dim", [6, 10, 16, 32])
def test_float64_matches_wan_with_deep_patches_and_any_head(float64_casts_off: None, head_dim: int) -> None:
    """Head widths that do not divide into three equal axes, and patches that span two frames."""
    config = replace(CONFIG, head_dim=head_dim, patch_size=(2, 1, 3))
    check_outputs_and_gradients(config, make_case(config, (2, 3, 2), 4, "per frame"))


@pytest.mark.parametrize("time", ["per sample", "per token"])
def test_unmodified_reference_in_float32(time: str) -> None:
    wan = reference_of(CONFIG, torch.float32)
    dit = ours_of(wan, CONFIG, torch.float32)
    with torch.no_grad():
        ours, theirs = outputs(dit, wan, make_case(CONFIG, (5, 3, 5), 7, time, torch.float32))
    assert theirs.abs().mean() > 0.1
    assert (ours - theirs).abs().max() <= 1e-5


def test_unmodified_reference_in_bfloat16() -> None:
    """Rounding differs in places, so the two may differ by about what bfloat16 costs the reference itself."""
    case32 = make_case(CONFIG, (3, 3, 5), 7, "per sample", torch.float32)
    wan32 = reference_of(CONFIG, torch.float32)
    with torch.no_grad():
        _, exact = outputs(ours_of(wan32, CONFIG, torch.float32), wan32, case32)
        wan = wan32.to(torch.bfloat16)
        case = replace(case32, latent_BCTHW=case32.latent_BCTHW.bfloat16(), text_BNE=case32.text_BNE.bfloat16())
        ours, theirs = outputs(ours_of(wan, CONFIG, torch.bfloat16), wan, case)
    their_error = (theirs.float() - exact).norm() / exact.norm()
    our_error = (ours.float() - exact).norm() / exact.norm()
    assert our_error <= 1.25 * their_error


def test_our_weights_load_into_wan_and_come_back(float64_casts_off: None) -> None:
    dit = VideoDiT(CONFIG)
    init_weights(dit, seed=3)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in dit.named_parameters():
            if name != "conditioning.condition_embedding":
                parameter.add_(torch.randn_like(parameter) * 0.1)
    dit = dit.double()
    exported = to_wan(dit.state_dict(), CONFIG)
    wan = diffusers.WanTransformer3DModel(**config_to_wan(CONFIG)).double()
    wan.load_state_dict(exported, strict=True)
    ours, theirs = outputs(dit, wan, make_case(CONFIG, (3, 2, 3), 7, "per frame"))
    assert theirs.abs().mean() > 0.01
    assert (ours - theirs).abs().max() <= 1e-9
    returned = from_wan(wan.state_dict(), CONFIG)
    assert returned.keys() == dit.state_dict().keys()
    assert all(torch.equal(returned[name], value) for name, value in dit.state_dict().items())


def test_a_trained_condition_embedding_is_not_lost_in_silence() -> None:
    state = VideoDiT(CONFIG).state_dict()
    state["conditioning.condition_embedding"] = torch.full((CONFIG.dim,), 0.25)
    with pytest.raises(ValueError, match="reaches 0.25 .*drop_condition_embedding=True"):
        to_wan(state, CONFIG)
    assert "patch_embedding.weight" in to_wan(state, CONFIG, drop_condition_embedding=True)


def test_config_survives_the_round_trip() -> None:
    wan = diffusers.WanTransformer3DModel(**config_to_wan(CONFIG))
    assert config_from_wan(wan.config) == CONFIG


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_dim": 1280}, "image_dim=1280"),
        ({"added_kv_proj_dim": 5120}, "added_kv_proj_dim=5120"),
        ({"cross_attn_norm": False}, "cross_attn_norm=False"),
    ],
)
def test_other_kinds_of_wan_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config_from_wan(config_to_wan(CONFIG) | changes)


def test_an_incomplete_config_is_refused() -> None:
    wan = config_to_wan(CONFIG)
    del wan["ffn_dim"]
    with pytest.raises(ValueError, match="lacks ffn_dim"):
        config_from_wan(wan)


def test_weights_of_another_size_are_refused() -> None:
    state = to_wan(VideoDiT(CONFIG).state_dict(), CONFIG)
    with pytest.raises(ValueError, match=r"lacks blocks\.2\."):
        from_wan(state, replace(CONFIG, num_blocks=3))
    with pytest.raises(ValueError, match=r"unknown blocks\.1\."):
        from_wan(state, replace(CONFIG, num_blocks=1))
    with pytest.raises(ValueError, match=r"ffn\.net\.0\.proj\.weight .*\(80, 48\).*\(96, 48\)"):
        from_wan(state, replace(CONFIG, ffn_dim=96))
