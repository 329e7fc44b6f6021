"""Small real videos and images for tests, encoded by PyAV."""

from fractions import Fraction
from io import BytesIO

import av
import numpy as np

from data.clips import ClipSource


def picture(number: int, *, height: int, width: int) -> np.ndarray:
    """RGB frame whose red says `number` (8 steps of grey a frame) and whose green and blue are ramps."""
    image = np.zeros((height, width, 3), np.uint8)
    image[..., 0] = number * 8 % 256
    image[..., 1] = np.linspace(0, 255, width, dtype=np.uint8)[None, :]
    image[..., 2] = np.linspace(0, 255, height, dtype=np.uint8)[:, None]
    return image


def number_of(frame_3HW: np.ndarray) -> int:
    """The `number` of a picture after lossy coding."""
    return round(float(np.asarray(frame_3HW, dtype=np.float64)[0].mean()) / 8)


def video(
    *,
    frames: int = 24,
    fps: int = 24,
    height: int = 48,
    width: int = 64,
    times_ms: list[int] | None = None,
    container: str = "mp4",
    codec: str = "libx264",
) -> bytes:
    """A video of numbered pictures, at an even rate or at the given times."""
    buffer = BytesIO()
    with av.open(buffer, "w", format=container) as output:
        stream = output.add_stream(codec, rate=fps)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        if codec == "libx264":
            stream.options = {"crf": "12", "bf": "2"}
        if times_ms is not None:
            stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
        for n in range(frames):
            frame = av.VideoFrame.from_ndarray(picture(n, height=height, width=width), format="rgb24")
            frame.pts = n if times_ms is None else times_ms[n]
            frame.time_base = Fraction(1, fps) if times_ms is None else Fraction(1, 1000)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return buffer.getvalue()


def still(*, height: int = 50, width: int = 70, number: int = 5, extension: str = "png") -> bytes:
    """One image."""
    codec, pixels = {"png": ("png", "rgb24"), "jpg": ("mjpeg", "yuvj420p")}[extension]
    buffer = BytesIO()
    with av.open(buffer, "w", format="image2pipe") as output:
        stream = output.add_stream(codec, rate=1)
        stream.width, stream.height, stream.pix_fmt = width, height, pixels
        frame = av.VideoFrame.from_ndarray(picture(number, height=height, width=width), format="rgb24")
        output.mux(stream.encode(frame.reformat(format=pixels)))
        output.mux(stream.encode(None))
    return buffer.getvalue()


def source(key: str, media: bytes, extension: str = "mp4", **meta: object) -> ClipSource:
    """A clip with two captions, its own key as source."""
    captions = {"short": f"clip {key}", "descriptive": f"a longer line about clip {key}"}
    whole = {"captions": captions, "source": key, "start_s": 0.0, **meta}
    return ClipSource(key=key, media=media, extension=extension, meta=whole)
