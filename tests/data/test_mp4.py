"""mp4 bytes, read back by PyAV."""

from io import BytesIO

import av
import numpy as np
import pytest
import torch
from torch import Tensor

from data.mp4 import encode_mp4


def moving_picture(frames: int, height: int, width: int) -> Tensor:
    y, x, t = torch.meshgrid(*(torch.linspace(0, 3, n) for n in (height, width, frames)), indexing="ij")
    channels = [torch.sin(x + t), torch.cos(y - t), torch.sin(x * y / 3 + t)]
    return ((torch.stack(channels) + 1) * 127.5).round().to(torch.uint8).permute(3, 0, 1, 2).contiguous()


@pytest.mark.parametrize(
    ("frames", "size", "fps"), [(17, (64, 112), 8.0), (1, (32, 32), 24.0), (5, (48, 34), 30000 / 1001)]
)
def test_an_mp4_gives_back_frames_rate_and_pictures(frames: int, size: tuple[int, int], fps: float) -> None:
    original = moving_picture(frames, *size)
    with av.open(BytesIO(encode_mp4(original, fps=fps))) as container:
        stream = container.streams.video[0]
        assert float(stream.average_rate) == pytest.approx(fps)
        decoded = list(container.decode(stream))
        pictures = np.stack([frame.to_ndarray(format="rgb24") for frame in decoded])
    times = [float(frame.time) for frame in decoded]
    np.testing.assert_allclose(times, np.arange(frames) / fps, atol=1e-4)
    error = np.square(pictures.astype(float) - original.permute(0, 2, 3, 1).numpy()).mean()
    assert 10 * np.log10(255**2 / error) > 30


@pytest.mark.parametrize(("shape", "fps"), [((2, 3, 31, 32), 8.0), ((0, 3, 32, 32), 8.0), ((2, 3, 32, 32), 0.0)])
def test_what_an_mp4_cannot_hold_is_refused(shape: tuple[int, ...], fps: float) -> None:
    with pytest.raises(ValueError, match="mp4"):
        encode_mp4(torch.zeros(shape, dtype=torch.uint8), fps=fps)
