import pytest
import torch
from torch import nn

from trainer.muon import Muon, orthogonalised


@pytest.mark.parametrize("shape", [(2, 8, 8), (3, 8, 20), (2, 20, 8)])
def test_singular_values_come_close_to_one_and_directions_stay(shape):
    torch.manual_seed(0)
    matrices = torch.randn(shape, dtype=torch.float64)
    u, _, vh = torch.linalg.svd(matrices, full_matrices=False)
    made = orthogonalised(matrices)
    values = torch.linalg.svdvals(made)
    assert values.min() > 0.3 and values.max() < 1.3
    inner = u.mT @ made @ vh.mT
    torch.testing.assert_close(inner, torch.diag_embed(torch.diagonal(inner, dim1=1, dim2=2)), rtol=0, atol=1e-9)


def test_steps_are_those_of_torch():
    """Theirs orthogonalises in bfloat16, hence the tolerance."""
    torch.manual_seed(0)
    start = [torch.randn(16, 40), torch.randn(40, 16), torch.randn(16, 40)]
    ours, theirs = ([nn.Parameter(tensor.clone()) for tensor in start] for _ in range(2))
    mine = Muon(ours, lr=0.01, momentum=0.9, weight_decay=0.1)
    reference = torch.optim.Muon(theirs, lr=0.01, momentum=0.9, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    for _ in range(5):
        for a, b in zip(ours, theirs, strict=True):
            a.grad = torch.randn_like(a)
            b.grad = a.grad.clone()
        mine.step()
        reference.step()
    for a, b, first in zip(ours, theirs, start, strict=True):
        assert (a - b).norm() < 0.01 * (b - first).norm()


def test_kernels_are_taken_as_matrices():
    torch.manual_seed(0)
    kernel, matrix = nn.Parameter(torch.ones(8, 4, 3, 3)), nn.Parameter(torch.ones(8, 36))
    gradient = torch.randn(8, 4, 3, 3)
    for parameter in (kernel, matrix):
        parameter.grad = gradient.reshape(parameter.shape)
        Muon([parameter], lr=0.1).step()
    assert torch.equal(kernel.reshape(8, 36), matrix)
    assert not torch.equal(matrix, torch.ones(8, 36))


def test_parameters_without_a_gradient_stay():
    parameter = nn.Parameter(torch.ones(4, 4))
    Muon([parameter], lr=0.1, weight_decay=0.5).step()
    assert torch.equal(parameter, torch.ones(4, 4))
