"""Videos and sheets, read back."""

from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from trainer.media import (
    LABEL_SIZE,
    TILE_HEIGHT,
    SheetBlock,
    SheetRow,
    _font,
    _wrap,
    to_frames,
    write_gif,
    write_moving_sheet,
    write_mp4,
    write_sheet,
)

RED, GREEN, BLUE = (200, 10, 10), (10, 200, 10), (10, 10, 200)


def plain_frames(*colours: tuple[int, int, int], size: tuple[int, int] = (TILE_HEIGHT, 64)) -> Tensor:
    return torch.tensor(colours, dtype=torch.uint8)[:, :, None, None].expand(-1, 3, *size).contiguous()


def column_colours(path: Path) -> set[tuple[int, int, int]]:
    return set(Image.open(path).convert("RGB").get_flattened_data())


def test_video_values_become_bytes_and_are_clamped() -> None:
    video_3THW = torch.tensor([-2.0, -1.0, 0.0, 1.0, 3.0]).expand(3, 5).reshape(3, 5, 1, 1)
    assert to_frames(video_3THW)[:, 0, 0, 0].tolist() == [0, 0, 128, 255, 255]
    frames = torch.randint(0, 256, (4, 3, 6, 8), dtype=torch.uint8)
    assert torch.equal(to_frames((frames.float() / 127.5 - 1).permute(1, 0, 2, 3)), frames)


def test_mp4_and_gif_hold_every_frame_at_its_rate(tmp_path: Path) -> None:
    frames = plain_frames(*[(8 * n, 255 - 8 * n, 100) for n in range(17)], size=(32, 48))
    write_mp4(tmp_path / "deep" / "clip.mp4", frames, fps=8)
    write_gif(tmp_path / "deep" / "clip.gif", frames, fps=8)
    with av.open(str(tmp_path / "deep" / "clip.mp4")) as container:
        assert sum(1 for _ in container.decode(video=0)) == 17
    with Image.open(tmp_path / "deep" / "clip.gif") as gif:
        assert (gif.n_frames, gif.size) == (17, (48, 32))
        assert gif.info["loop"] == 0
        length_ms = 0
        for n in range(gif.n_frames):
            gif.seek(n)
            length_ms += gif.info["duration"]
            assert np.abs(np.asarray(gif.convert("RGB"))[5, 5].astype(int) - frames[n, :, 5, 5].numpy()).max() <= 3
        # 125 ms a frame does not fit hundredths of a second, but the whole does.
        assert length_ms == pytest.approx(17 * 125, abs=10)
    assert sorted(path.name for path in (tmp_path / "deep").iterdir()) == ["clip.gif", "clip.mp4"]


def test_a_failure_leaves_the_old_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    path.write_bytes(b"old")
    with pytest.raises(ValueError, match="even sizes"):
        write_mp4(path, plain_frames(RED, size=(31, 32)), fps=8)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(ValueError, match="fps=0"):
        write_gif(tmp_path / "clip.gif", plain_frames(RED), fps=0)


def test_a_sheet_shows_the_first_and_last_frame_of_every_video(tmp_path: Path) -> None:
    shades = [(10 * n, 0, 0) for n in range(1, 18)]
    blocks = [
        SheetBlock(heading="one", rows=[SheetRow(label="a", frames_T3HW=plain_frames(*shades))]),
        SheetBlock(heading="two", rows=[SheetRow(label="b", frames_T3HW=plain_frames(GREEN))]),
        SheetBlock(heading="three", rows=[SheetRow(label="c", frames_T3HW=plain_frames(BLUE, size=(64, 128)))]),
    ]
    write_sheet(tmp_path / "sheet.png", blocks, title="Title")
    pixels = np.asarray(Image.open(tmp_path / "sheet.png"))
    counts = {
        tuple(colour): count for colour, count in zip(*np.unique(pixels.reshape(-1, 3), axis=0, return_counts=True))
    }
    for n in (1, 5, 9, 13, 17):
        assert counts[(10 * n, 0, 0)] == TILE_HEIGHT * 64
    assert (20, 0, 0) not in counts
    assert counts[GREEN] == TILE_HEIGHT * 64
    assert counts[BLUE] == TILE_HEIGHT * 2 * TILE_HEIGHT


def test_title_heading_label_and_footer_are_each_drawn(tmp_path: Path) -> None:
    def sheet(title: str = "", heading: str = "", label: str = "", footer: str | None = None) -> np.ndarray:
        rows = [SheetRow(label=label, frames_T3HW=plain_frames(RED))]
        write_sheet(tmp_path / "s.png", [SheetBlock(heading=heading, rows=rows)], title=title, footer=footer)
        return np.asarray(Image.open(tmp_path / "s.png"))

    bare = sheet()
    for words in ({"title": "Samples"}, {"heading": "a rabbit"}, {"label": "step 400"}):
        assert (sheet(**words) != bare).sum() > 100  # type: ignore[arg-type]
    attributed = sheet(footer="Big Buck Bunny (c) Blender Foundation, CC-BY 3.0")
    assert attributed.shape[0] > bare.shape[0]
    assert (attributed[bare.shape[0] - 20 :] < 200).any()


def test_long_words_and_prompts_wrap_inside_the_sheet() -> None:
    prompt = "a red squirrel looks at " + "wonder" * 30 + " and goes away"
    lines = _wrap(prompt, _font(LABEL_SIZE), 200)
    assert "".join(lines).replace(" ", "") == prompt.replace(" ", "")
    assert all(_font(LABEL_SIZE).getlength(line) <= 200 for line in lines)
    assert len(_wrap("a b c", _font(LABEL_SIZE), 200)) == 1
    assert _wrap("", _font(LABEL_SIZE), 200) == [""]


def test_a_moving_sheet_plays_all_videos_and_holds_the_shorter_ones(tmp_path: Path) -> None:
    rows = [
        SheetRow(label="source", frames_T3HW=plain_frames(RED, GREEN, RED, BLUE)),
        SheetRow(label="given", frames_T3HW=plain_frames(GREEN)),
    ]
    write_moving_sheet(tmp_path / "s.gif", [SheetBlock(heading="a rabbit", rows=rows)], title="Title", fps=10)
    with Image.open(tmp_path / "s.gif") as gif:
        assert gif.n_frames == 4
        for instant, colour in enumerate((RED, GREEN, RED, BLUE)):
            gif.seek(instant)
            pixels = np.asarray(gif.convert("RGB")).astype(int)
            near = {name: (np.abs(pixels - c).max(-1) < 12).sum() for name, c in (("now", colour), ("still", GREEN))}
            assert near["still"] >= 0.9 * TILE_HEIGHT * 64 * (2 if colour == GREEN else 1)
            assert near["now"] >= 0.9 * TILE_HEIGHT * 64
