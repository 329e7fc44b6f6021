"""The conditioning table."""

import pytest
import torch

from model.conditioning import Conditioning, time_sinusoid


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sinusoid_matches_diffusers(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit for bit, in float64 with the reference's cast of the time off."""
    pytest.importorskip("diffusers")
    from diffusers.models.embeddings import get_timestep_embedding

    time_R = torch.tensor([0.0, 1e-3, 0.37, 0.5, 0.9999, 1.0], dtype=dtype)
    monkeypatch.setattr(torch.Tensor, "float", lambda x: x)
    theirs = get_timestep_embedding(time_R * 1000, 256, flip_sin_to_cos=True, downscale_freq_shift=0)
    ours = time_sinusoid(time_R, 256)
    assert ours.dtype == dtype
    assert torch.equal(ours, theirs)


def test_levels_are_told_apart_finely() -> None:
    """A shift of a thousandth of the schedule moves the sinusoid visibly, anywhere on it."""
    time_R = torch.linspace(0, 1, 1001, dtype=torch.float64)
    sinusoid_RF = time_sinusoid(time_R, 256)
    assert (sinusoid_RF[1:] - sinusoid_RF[:-1]).norm(dim=1).min() > 1


def test_rows_are_independent_and_conditions_shifted() -> None:
    torch.manual_seed(0)
    conditioning = Conditioning(dim=12, text_dim=5, time_freq_dim=8).double()
    torch.nn.init.normal_(conditioning.condition_embedding)
    time_R = torch.tensor([0.1, 0.1, 0.8], dtype=torch.float64)
    time_RD, table_R6D = conditioning.embed_time(time_R, torch.tensor([False, True, False]))
    assert table_R6D.shape == (3, 6, 12)
    assert torch.allclose(time_RD[1] - time_RD[0], conditioning.condition_embedding, rtol=0, atol=1e-12)
    assert not torch.allclose(table_R6D[0], table_R6D[1])
    alone_1D, _ = conditioning.embed_time(time_R[2:], torch.tensor([False]))
    assert torch.allclose(alone_1D[0], time_RD[2], rtol=0, atol=1e-12)
