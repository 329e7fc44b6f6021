"""Pictures of videos: mp4, GIF, and labelled sheets that stand still (PNG) or move (GIF).

Shapes: T frames, H x W pixels; frames are uint8 `[T, 3, H, W]`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from einops import rearrange
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from data.mp4 import encode_mp4

MARGIN = 24
GAP = 6
TILE_HEIGHT = 128
LABEL_WIDTH = 132
MIN_TEXT_WIDTH = 480
TITLE_SIZE, HEADING_SIZE, LABEL_SIZE, FOOTER_SIZE = 24, 17, 14, 12
PAPER, INK, FAINT, LINE = "#ffffff", "#1d1d1f", "#6e6e73", "#e3e3e6"


@dataclass(frozen=True, kw_only=True)
class SheetRow:
    """One video of a sheet and a few words beside it, such as "step 400" or "original"."""

    label: str
    frames_T3HW: Tensor


@dataclass(frozen=True, kw_only=True)
class SheetBlock:
    """Videos that belong together, under a heading such as their prompt."""

    heading: str
    rows: Sequence[SheetRow]


def to_frames(video_3THW: Tensor) -> Tensor:
    """Video in [-1, 1] to uint8 frames `[T, 3, H, W]`; what lies outside is clamped."""
    levels = ((video_3THW.detach().float().cpu().clamp(-1, 1) + 1) * 127.5).round()
    return rearrange(levels, "c t h w -> t c h w").to(torch.uint8).contiguous()


def write_mp4(path: Path, frames_T3HW: Tensor, *, fps: float) -> None:
    """Write an mp4 that any player shows."""
    data = encode_mp4(frames_T3HW, fps=fps)
    _write_whole(path, lambda scratch: scratch.write_bytes(data))


def write_gif(path: Path, frames_T3HW: Tensor, *, fps: float) -> None:
    """Write an endless GIF."""
    _write_gif(path, [_picture(frame_3HW) for frame_3HW in frames_T3HW], fps)


def write_sheet(
    path: Path, blocks: Sequence[SheetBlock], *, title: str, footer: str | None = None, frames_per_row: int = 5
) -> None:
    """Write a PNG: under each heading a row a video, `frames_per_row` frames spread over its length.

    `footer` is for what must stand by the pictures, such as an attribution.
    """
    rows = [row for block in blocks for row in block.rows]
    assert rows, "a sheet needs a picture"
    strips = {id(row): _strip(row.frames_T3HW, frames_per_row) for row in rows}
    content = max([LABEL_WIDTH + strip.width for strip in strips.values()] + [MIN_TEXT_WIDTH])

    def place(page: _Page, row: SheetRow) -> None:
        strip = strips[id(row)]
        page.paste(strip, MARGIN + LABEL_WIDTH)
        page.text(row.label, LABEL_SIZE, FAINT, width=LABEL_WIDTH - 2 * GAP, advance=False)
        page.down(strip.height + GAP)

    def layout(page: _Page) -> None:
        for block in blocks:
            _heading(page, block.heading)
            for row in block.rows:
                place(page, row)

    page = _compose(layout, title=title, footer=footer, content=content)
    _write_whole(path, lambda scratch: page.save(scratch, format="PNG", optimize=True))


def write_moving_sheet(
    path: Path, blocks: Sequence[SheetBlock], *, title: str, footer: str | None = None, fps: float
) -> None:
    """Write a GIF: under each heading its videos play side by side; shorter ones wait on their last frame."""
    rows = [row for block in blocks for row in block.rows]
    assert rows, "a sheet needs a picture"
    content = max(
        [sum(_tile_width(row.frames_T3HW) + GAP for row in block.rows) - GAP for block in blocks] + [MIN_TEXT_WIDTH]
    )

    def layout(page: _Page, instant: int) -> None:
        for block in blocks:
            _heading(page, block.heading)
            left, below = MARGIN, 0
            for row in block.rows:
                tile = _tile(row.frames_T3HW[min(instant, len(row.frames_T3HW) - 1)])
                page.paste(tile, left)
                lines = _wrap(row.label, _font(LABEL_SIZE), tile.width)
                page.lines(lines, LABEL_SIZE, FAINT, left=left, top=page.y + tile.height + 2)
                below = max(below, tile.height + 2 + len(lines) * _line_height(LABEL_SIZE))
                left += tile.width + GAP
            page.down(below + GAP)

    instants = range(max(len(row.frames_T3HW) for row in rows))
    pages = [
        _compose(lambda page, t=t: layout(page, t), title=title, footer=footer, content=content)  # type: ignore[misc]
        for t in instants
    ]
    _write_gif(path, pages, fps)


class _Page:
    """A sheet while it is laid out from top to bottom; without an image it only measures."""

    def __init__(self, width: int, image: Image.Image | None) -> None:
        self.width, self.image, self.y = width, image, MARGIN

    def down(self, pixels: int) -> None:
        self.y += pixels

    def paste(self, tile: Image.Image, left: int) -> None:
        if self.image is not None:
            self.image.paste(tile, (left, self.y))

    def lines(self, lines: list[str], size: int, colour: str, *, left: int, top: int) -> None:
        if self.image is not None:
            draw = ImageDraw.Draw(self.image)
            for number, line in enumerate(lines):
                draw.text((left, top + number * _line_height(size)), line, font=_font(size), fill=colour)

    def text(self, text: str, size: int, colour: str, *, width: int | None = None, advance: bool = True) -> None:
        lines = _wrap(text, _font(size), width or self.width - 2 * MARGIN)
        self.lines(lines, size, colour, left=MARGIN, top=self.y)
        if advance:
            self.down(len(lines) * _line_height(size))

    def rule(self) -> None:
        if self.image is not None:
            ends = [(MARGIN, self.y), (self.width - MARGIN, self.y)]
            ImageDraw.Draw(self.image).line(ends, fill=LINE, width=1)


def _compose(layout: Callable[[_Page], None], *, title: str, footer: str | None, content: int) -> Image.Image:
    """Lay out twice: once to learn the height, once to draw."""
    width = content + 2 * MARGIN
    measured = _Page(width, None)
    _fill(measured, layout, title, footer)
    drawn = _Page(width, Image.new("RGB", (width, measured.y), PAPER))
    _fill(drawn, layout, title, footer)
    assert drawn.image is not None
    return drawn.image


def _fill(page: _Page, layout: Callable[[_Page], None], title: str, footer: str | None) -> None:
    page.text(title, TITLE_SIZE, INK)
    page.down(GAP)
    layout(page)
    if footer:
        page.down(2 * GAP)
        page.text(footer, FOOTER_SIZE, FAINT)
    page.down(MARGIN - GAP)


def _heading(page: _Page, heading: str) -> None:
    page.down(GAP)
    page.rule()
    page.down(2 * GAP)
    page.text(heading, HEADING_SIZE, INK)
    page.down(GAP)


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=size)


def _line_height(size: int) -> int:
    return round(size * 1.4)


def _wrap(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> list[str]:
    """Break at spaces so that no line is wider than `width`; a word that is wider alone is broken inside."""
    lines, line = [], ""
    for word in text.split():
        if font.getlength(f"{line} {word}".strip()) <= width:
            line = f"{line} {word}".strip()
            continue
        lines += [line] if line else []
        while font.getlength(word) > width and len(word) > 1:
            cut = max(n for n in range(1, len(word)) if n == 1 or font.getlength(word[:n]) <= width)
            lines.append(word[:cut])
            word = word[cut:]
        line = word
    return [*lines, line] if line else lines or [""]


def _picture(frame_3HW: Tensor) -> Image.Image:
    return Image.fromarray(rearrange(frame_3HW, "c h w -> h w c").contiguous().numpy(), "RGB")


def _tile_width(frames_T3HW: Tensor) -> int:
    height, width = frames_T3HW.shape[2:]
    return round(TILE_HEIGHT * width / height)


def _tile(frame_3HW: Tensor) -> Image.Image:
    """A frame at the height all tiles have."""
    return _picture(frame_3HW).resize((_tile_width(frame_3HW[None]), TILE_HEIGHT), Image.Resampling.LANCZOS)


def _strip(frames_T3HW: Tensor, count: int) -> Image.Image:
    """Up to `count` frames side by side, the first and the last among them."""
    total = len(frames_T3HW)
    chosen = torch.linspace(0, total - 1, min(count, total)).round().long()
    tiles = [_tile(frames_T3HW[n]) for n in chosen]
    strip = Image.new("RGB", (sum(tile.width + GAP for tile in tiles) - GAP, TILE_HEIGHT), PAPER)
    left = 0
    for tile in tiles:
        strip.paste(tile, (left, 0))
        left += tile.width + GAP
    return strip


def _write_gif(path: Path, pictures: list[Image.Image], fps: float) -> None:
    if fps <= 0:
        raise ValueError(f"{path}: fps={fps} must be above 0")
    # A GIF counts hundredths of a second; rounding the running time keeps the whole at its true length.
    ticks = [round(100 * n / fps) for n in range(len(pictures) + 1)]
    durations = [10 * (after - before) for before, after in pairwise(ticks)]
    # Pillow dithers only towards a palette it is given.
    first, *rest = [
        picture.quantize(palette=picture.quantize(colors=256), dither=Image.Dither.FLOYDSTEINBERG)
        for picture in pictures
    ]
    _write_whole(
        path,
        lambda scratch: first.save(
            scratch, format="GIF", save_all=True, append_images=rest, duration=durations, loop=0
        ),
    )


def _write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Write beside `path` and rename, so that a reader never sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(path.name + ".partial")
    write(scratch)
    scratch.replace(path)
