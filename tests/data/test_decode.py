import time
from fractions import Fraction
from io import BytesIO

import av
import numpy as np
import pytest
import torch

import data.decode
from data.decode import IMAGE_EXTENSIONS, VIDEO_EXTENSIONS, DecodeError, decode_first_frames, decoded_clip, native_rate
from data.lattice import ClipConfig
from tests.data.media import number_of, picture, still, video

CONFIG = ClipConfig(fps=8.0, max_frames=17)


OWN_RATE = ClipConfig(fps=None, max_frames=17)


def decode(media: bytes, config: ClipConfig = CONFIG, extension: str = "mp4") -> torch.Tensor:
    """All frames of a clip: uint8 `[T, 3, H, W]`."""
    with decoded_clip(media, config, extension=extension) as decoded:
        return torch.stack(list(decoded))


def numbers(media: bytes, config: ClipConfig = CONFIG, extension: str = "mp4") -> list[int]:
    return [number_of(frame.numpy()) for frame in decode(media, config, extension)]


@pytest.mark.parametrize("fps", [8, 10, 24, 25, 30])
def test_each_tick_shows_the_frame_on_screen_at_that_time(fps):
    expected = [int(tick * fps / 8 + 1e-6) for tick in range(8)]
    assert numbers(video(frames=fps, fps=fps)) == expected


@pytest.mark.parametrize("container", ["mp4", "matroska"])
def test_a_variable_frame_rate_is_followed_by_time(container):
    media = video(frames=6, times_ms=[0, 40, 80, 500, 540, 1000], container=container)
    # On screen at 0, 125, ... 1000 ms.
    assert numbers(media, extension="mp4" if container == "mp4" else "mkv") == [0, 2, 2, 2, 3, 4, 4, 4, 5]


def test_half_the_rate_takes_every_second_frame():
    assert numbers(video(frames=24, fps=24), ClipConfig(fps=12.0, max_frames=17)) == list(range(0, 24, 2))


@pytest.mark.parametrize("codec", [("mp4", "libx264"), ("avi", "mpeg4"), ("webm", "libvpx")])
def test_other_containers_and_codecs_decode(codec):
    assert decode(video(container=codec[0], codec=codec[1]), extension=codec[0]).shape == (8, 3, 48, 64)


def test_pixels_keep_their_place_and_colour():
    height, width = 96, 160
    decoded = decode(video(frames=3, fps=8, height=height, width=width))
    error = np.abs(
        decoded[1].numpy().astype(int) - picture(1, height=height, width=width).transpose(2, 0, 1).astype(int)
    )
    assert error.mean() < 3


@pytest.mark.parametrize("extension", ["png", "jpg"])
def test_an_image_is_a_clip_of_one_frame(extension):
    with decoded_clip(still(height=50, width=70, extension=extension), CONFIG, extension=extension) as decoded:
        [frame] = decoded
    assert frame.shape == (3, 48, 64)
    assert (decoded.native_height, decoded.native_width, decoded.fps) == (50, 70, 8.0)
    assert number_of(frame.numpy()) == 5
    # Full-range and limited-range sources end on the same scale: the ramps run from black to white, less the crop.
    assert frame[1].float().mean(0)[[0, -1]].tolist() == pytest.approx([11, 244], abs=8)


@pytest.mark.parametrize(("height", "width", "size"), [(33, 65, (32, 64)), (47, 79, (32, 64)), (48, 95, (48, 80))])
def test_odd_sizes_are_cropped_in_the_middle_and_not_scaled(height, width, size):
    frames = decode(still(height=height, width=width), extension="png")
    top, left = (height - size[0]) // 2, (width - size[1]) // 2
    whole = torch.from_numpy(picture(5, height=height, width=width)).permute(2, 0, 1)
    assert torch.equal(frames[0], whole[:, top : top + size[0], left : left + size[1]])


def test_the_comparison_mode_gives_the_middle_square():
    config = ClipConfig(fps=8.0, max_frames=17, square=32)
    frames = decode(still(height=64, width=128), config, extension="png")
    assert frames.shape == (1, 3, 32, 32)
    across, down = frames[0, 1, 16].float(), frames[0, 2, :, 16].float()
    assert across[[0, -1]].tolist() == pytest.approx([64, 191], abs=4)  # the middle half of the ramp
    assert down[[0, -1]].tolist() == pytest.approx([0, 255], abs=6)


@pytest.mark.parametrize("container", ["mp4", "matroska"])
@pytest.mark.parametrize("fps", [8, 15, 24, 25, 30, 60])
def test_an_even_rate_is_kept_as_it_is(container, fps):
    """Also where the container rounds time stamps to milliseconds: every frame comes once."""
    extension = "mp4" if container == "mp4" else "mkv"
    media = video(frames=31, fps=fps, container=container)
    with decoded_clip(media, OWN_RATE, extension=extension) as decoded:
        assert decoded.fps == pytest.approx(fps, rel=2e-3 if extension == "mkv" else 0)
        assert [number_of(frame.numpy()) for frame in decoded] == list(range(31))


def test_a_variable_rate_is_resampled_to_its_median():
    times = [0, 40, 80, 120, 160, 280, 320, 360, 400]
    with decoded_clip(video(frames=9, times_ms=times, container="matroska"), OWN_RATE, extension="mkv") as decoded:
        assert decoded.fps == 25.0
        assert [number_of(frame.numpy()) for frame in decoded] == [0, 1, 2, 3, 4, 4, 4, 5, 6, 7, 8]


def test_the_median_forgives_rounding_and_outliers_only():
    def rate(*times_ms):
        return native_rate([Fraction(t, 1000) for t in times_ms])

    assert rate(0, 42, 83, 125, 167, 208, 250) == pytest.approx(24)
    assert rate(0, 42, 83, 125, 9000, 9042, 9083, 9125) == pytest.approx(24, rel=1e-2)
    assert rate(0, 10, 30, 60, 90, 120) == pytest.approx(1000 / 30)
    assert rate(0, 0, 40, 40, 80) == 25.0
    assert rate(5) is None and rate(5, 5) is None
    assert native_rate([Fraction(n * 1001, 30000) for n in range(50)]) == 30000 / 1001


def test_a_single_picture_has_no_rate_of_its_own():
    for media, extension in ((still(), "png"), (video(frames=1), "mp4")):
        with decoded_clip(media, OWN_RATE, extension=extension) as decoded:
            assert (len(list(decoded)), decoded.fps) == (1, 1.0)


def test_pixels_that_are_not_square_are_made_square():
    buffer = BytesIO()
    with av.open(buffer, "w", format="mp4") as output:
        stream = output.add_stream("libx264", rate=8)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        stream.codec_context.sample_aspect_ratio = Fraction(2, 1)
        for _ in range(5):
            frame = av.VideoFrame.from_ndarray(picture(3, height=64, width=64), format="rgb24")
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    assert decode(buffer.getvalue()).shape == (5, 3, 64, 128)


def test_max_tokens_holds_for_the_longest_window_of_a_long_clip():
    config = ClipConfig(fps=8.0, max_frames=9, max_tokens=24)
    frames = decode(video(frames=96, height=96, width=96), config)
    assert frames.shape[0] == 32
    assert 8 < config.tokens(9, *frames.shape[2:]) <= 24


@pytest.mark.parametrize("fps", [8.0, None])
@pytest.mark.parametrize("container", ["mp4", "matroska"])
def test_a_clip_at_the_limit_keeps_its_size(container, fps):
    """13 frames of 48 x 64 have 48 tokens: so has a clip of 16 frames, which are cut to 13, but none of 17."""
    config = ClipConfig(fps=fps, max_frames=17, max_tokens=48)
    extension = "mp4" if container == "mp4" else "mkv"
    sizes = {n: decode(video(frames=n, fps=8, container=container), config, extension)[0].shape for n in (13, 16, 17)}
    assert sizes[13] == sizes[16] == (3, 48, 64)
    assert config.tokens(17, *sizes[17][1:]) <= 48


@pytest.mark.parametrize(
    "media",
    [
        ("mp4", b""),
        ("mp4", b"not a video" * 50),
        ("mp4", video()[:1500]),
        ("mkv", video(container="matroska")[:1200]),
    ],
    ids=["empty", "junk", "mp4", "mkv"],
)
def test_damaged_videos_are_refused_with_a_reason(media):
    with pytest.raises(DecodeError, match="cannot be decoded|no frames"):
        decode(media[1], extension=media[0])


@pytest.mark.parametrize(
    "media",
    [("mp4", video(container="matroska")), ("png", still(extension="jpg")), ("gif", video()), ("mkv", still())],
    ids=["mkv as mp4", "jpg as png", "mp4 as gif", "png as mkv"],
)
def test_an_extension_that_lies_is_refused(media):
    with pytest.raises(DecodeError, match=rf"cannot be decoded: damaged, or of another kind than \.{media[0]} "):
        decode(media[1], extension=media[0])
    with pytest.raises(DecodeError, match=r"unknown extension: \.txt is none of"):
        decode(media[1], extension="txt")


SDP = (
    b"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 50040 RTP/AVP 96\na=rtpmap:96 H264/90000\n"
)


@pytest.mark.parametrize("extension", VIDEO_EXTENSIONS + IMAGE_EXTENSIONS)
def test_bytes_never_make_the_decoder_open_files_or_sockets(tmp_path, monkeypatch, extension):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other.mp4").write_bytes(video())
    scripts = {
        "ffconcat": b"ffconcat version 1.0\nfile other.mp4\n",
        "hls": b"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nother.mp4\n#EXT-X-ENDLIST\n",
        "sdp": SDP,
    }
    for name, script in scripts.items():
        started = time.monotonic()
        with pytest.raises(DecodeError, match="cannot be decoded"):
            decode(script, extension=extension)
        assert time.monotonic() - started < 1.5, f"{name}: the decoder waited for something"


def test_a_gap_of_an_hour_is_a_broken_time_stamp():
    media = video(frames=3, times_ms=[0, 100, 3_600_000])
    with pytest.raises(DecodeError, match="broken time stamps: 3600.000 s follows 0.100 s"):
        decode(media)


def test_a_file_without_pictures_is_refused():
    buffer = BytesIO()
    with av.open(buffer, "w", format="avi") as output:
        stream = output.add_stream("pcm_s16le", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        frame.sample_rate = 8000
        output.mux(stream.encode(frame))
    with pytest.raises(DecodeError, match="no video stream"):
        decode(buffer.getvalue(), extension="avi")


def test_first_frames_cover_a_size_and_what_follows_is_not_decoded(monkeypatch):
    media = video(frames=96, fps=24, height=10, width=14)  # below any lattice cell
    assert decode_first_frames(media, (9, 48, 48), fps=8.0, extension="mp4").shape == (9, 3, 48, 48)
    assert decode_first_frames(media, (99, 48, 48), fps=8.0, extension="mp4").shape[0] == 32
    started = decode_first_frames(video(frames=24), (3, 24, 32), fps=8.0, extension="mp4")
    assert [number_of(frame.numpy()) for frame in started] == [0, 3, 6]
    decoded: list[av.VideoFrame] = []
    monkeypatch.setattr(data.decode, "checked", lambda frames: (decoded.append(frame) or frame for frame in frames))
    assert len(decode_first_frames(media, (2, 48, 48), fps=8.0, extension="mp4")) == 2
    assert len(decoded) == 5  # the second tick is known to be frame 3 when frame 4 is seen
