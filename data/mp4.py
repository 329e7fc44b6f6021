"""Frames to the bytes of an mp4."""

from fractions import Fraction
from io import BytesIO

import av
import numpy as np
import torch
from torch import Tensor


def encode_mp4(frames_T3HW: Tensor, *, fps: float, crf: int = 16) -> bytes:
    """H.264 in 4:2:0, which every player shows; `frames_T3HW` uint8, lower `crf` is nearer to the original.

    Raises ValueError for odd sizes, which 4:2:0 cannot hold, and for clips without frames.
    """
    assert frames_T3HW.dtype == torch.uint8 and frames_T3HW.shape[1] == 3, (frames_T3HW.dtype, frames_T3HW.shape)
    frames, _, height, width = frames_T3HW.shape
    if not frames or height % 2 or width % 2:
        raise ValueError(f"mp4 of {frames} frames of {width} x {height} pixels: it takes frames, and even sizes only")
    rate = Fraction(fps).limit_denominator(1001)
    if rate <= 0:
        raise ValueError(f"mp4 at fps={fps}: the rate must be above 0")
    file = BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=rate, options={"crf": str(crf)})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for picture_HW3 in frames_T3HW.permute(0, 2, 3, 1).numpy():
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture_HW3), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return file.getvalue()
