"""Dense layers."""

import pytest
import torch
from torch import nn

from model.layers import DENSE, FullWidthRMSNorm, Layers


def test_rms_norm_equals_its_equation_forward_and_backward() -> None:
    generator = torch.Generator().manual_seed(0)
    x, cotangent = (torch.randn(5, 12, generator=generator, dtype=torch.float64) for _ in range(2))
    norm = FullWidthRMSNorm(12, 1e-2).double()
    nn.init.normal_(norm.weight, generator=generator)
    x.requires_grad_()
    expected = x / (x.square().mean(-1, keepdim=True) + 1e-2).sqrt() * norm.weight
    assert (norm(x) - expected).abs().max() < 1e-14
    inputs = (x, norm.weight)
    gradients = zip(
        torch.autograd.grad(norm(x), inputs, cotangent), torch.autograd.grad(expected, inputs, cotangent), strict=True
    )
    assert all((ours - theirs).abs().max() < 1e-14 for ours, theirs in gradients)


def test_rms_norm_of_a_narrow_type_is_rounded_once() -> None:
    x = torch.randn(3, 64, generator=torch.Generator().manual_seed(0)).bfloat16() * 1e3
    norm = FullWidthRMSNorm(64, 1e-6)
    assert torch.equal(norm.bfloat16()(x), norm.float()(x.float()).bfloat16())


@pytest.mark.parametrize("gather_sequence", [True, False])
def test_dense_linears_have_weight_and_bias_of_the_logical_shape(gather_sequence: bool) -> None:
    for linear in (DENSE.column_linear(6, 10, gather_sequence=gather_sequence), DENSE.row_linear(6, 10)):
        assert {name: tuple(p.shape) for name, p in linear.named_parameters()} == {"weight": (10, 6), "bias": (10,)}


def test_dense_layers_move_nothing() -> None:
    layers: Layers = DENSE
    x = torch.arange(6.0).reshape(3, 2)
    assert layers.tensor_size == 1
    assert layers.replicated(x) is x and layers.scatter_sequence(x) is x and layers.gather_sequence(x) is x
