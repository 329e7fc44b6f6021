"""Patches, their order and their way back."""

from dataclasses import replace

import pytest
import torch

from model.packed import PackedInputs, on_device, patch_positions, patchify, unpatchify

CASES = [((1, 2, 2), (3, 2, 5)), ((2, 1, 3), (1, 4, 2)), ((1, 1, 1), (2, 3, 4)), ((1, 2, 2), (1, 1, 1))]


@pytest.mark.parametrize(("patch_size", "grid"), CASES)
def test_unpatchify_inverts_patchify(patch_size: tuple[int, int, int], grid: tuple[int, int, int]) -> None:
    size = [g * p for g, p in zip(grid, patch_size, strict=True)]
    x_CTHW = torch.arange(5 * size[0] * size[1] * size[2]).reshape(5, *size)
    patch_LP = patchify(x_CTHW, patch_size)
    assert torch.equal(unpatchify(patch_LP, grid, patch_size), x_CTHW)


@pytest.mark.parametrize(("patch_size", "grid"), CASES)
def test_each_token_holds_the_cells_at_its_position(
    patch_size: tuple[int, int, int], grid: tuple[int, int, int]
) -> None:
    """Values in the order (pt ph pw c), tokens in the order of `patch_positions`."""
    (pt, ph, pw), size = patch_size, [g * p for g, p in zip(grid, patch_size, strict=True)]
    x_CTHW = torch.randn(3, *size, generator=torch.Generator().manual_seed(0))
    position_L3 = patch_positions(grid)
    assert position_L3.dtype == torch.int64 and len(position_L3) == grid[0] * grid[1] * grid[2]
    for patch_P, (t, h, w) in zip(patchify(x_CTHW, patch_size), position_L3.tolist(), strict=True):
        cells = x_CTHW[:, t * pt : (t + 1) * pt, h * ph : (h + 1) * ph, w * pw : (w + 1) * pw]
        assert torch.equal(patch_P, cells.permute(1, 2, 3, 0).flatten())


def test_a_size_off_the_patch_lattice_is_refused() -> None:
    with pytest.raises(Exception, match="divide"):
        patchify(torch.zeros(3, 1, 4, 5), (1, 2, 2))


def test_moving_a_pack_narrows_what_is_learned_from_only() -> None:
    inputs = PackedInputs(
        patch_LP=torch.zeros(4, 6),
        position_L3=torch.zeros(4, 3, dtype=torch.int64),
        row_L=torch.zeros(4, dtype=torch.int64),
        segment_lengths=(4,),
        time_R=torch.zeros(1),
        is_condition_R=torch.zeros(1, dtype=torch.bool),
        text_KE=torch.zeros(2, 5),
        text_lengths=(2,),
    )
    moved = inputs.to("cpu", torch.bfloat16)
    assert moved.patch_LP.dtype == moved.text_KE.dtype == torch.bfloat16
    assert moved.time_R.dtype == torch.float32, "a noise level in bfloat16 has two digits"
    assert moved.position_L3.dtype == moved.row_L.dtype == torch.int64
    assert moved.is_condition_R.dtype == torch.bool
    assert moved.segment_lengths == (4,) and moved.num_tokens == 4
    between = replace(inputs, position_L3=torch.full((4, 3), 1 / 3, dtype=torch.float64)).to("cpu", torch.bfloat16)
    assert torch.equal(between.position_L3, torch.full((4, 3), 1 / 3, dtype=torch.float64))
    without = replace(inputs, patch_LP=None).to("cpu", torch.bfloat16)
    assert without.patch_LP is None and without.num_tokens == 4
    assert without.text_KE.dtype == torch.bfloat16


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_what_goes_to_a_gpu_is_what_was_given_though_the_host_goes_on() -> None:
    given = [torch.randn(1000, 64, generator=torch.Generator().manual_seed(seed)) for seed in range(20)]
    moved = [on_device(x, "cuda") for x in given]  # the page-locked copies are let go of at once
    assert all(torch.equal(there.cpu(), here) for there, here in zip(moved, given, strict=True))
