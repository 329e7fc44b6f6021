"""The path between data and noise."""

import torch

from diffusion.flow import interpolate, velocity_target


def test_the_ends_of_the_path_are_data_and_noise_frame_by_frame() -> None:
    x0, noise = torch.randn(2, 3, 4, 5, 6).double().unbind()
    x = interpolate(x0, noise, torch.tensor([0.0, 1.0, 0.0, 1.0]))
    assert torch.equal(x[:, ::2], x0[:, ::2])
    assert torch.equal(x[:, 1::2], noise[:, 1::2])


def test_the_target_is_the_derivative_of_the_path() -> None:
    x0, noise = torch.randn(2, 3, 4, 5, 6).double().unbind()
    time_T = torch.rand(4).double()
    _, derivative = torch.func.jvp(lambda t: interpolate(x0, noise, t), (time_T,), (torch.ones_like(time_T),))
    torch.testing.assert_close(derivative, velocity_target(x0, noise))


def test_following_the_target_from_any_level_leads_to_the_data() -> None:
    x0, noise = torch.randn(2, 3, 4, 5, 6).double().unbind()
    time_T = torch.rand(4).double()
    x = interpolate(x0, noise, time_T)
    torch.testing.assert_close(x - time_T[None, :, None, None] * velocity_target(x0, noise), x0)
