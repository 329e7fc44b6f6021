"""How samples and tokens are spread over the buckets: a table with bars, and a picture."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from data.manifest import BucketSize

_BAR = 30
_FONT, _ROW, _WIDTH, _MARGIN = 16, 28, 1100, 24
_COLUMNS = {"samples": 260, "tokens": 680}
"""Where the two sets of bars begin, in pixels."""
_LONGEST_BAR = 300
_COLOURS = {"image": "#d97706", "video": "#2563eb"}
_INK, _PAPER = "#111827", "#ffffff"


@dataclass(frozen=True, kw_only=True)
class Distribution:
    """Buckets by name, in their order."""

    buckets: Mapping[str, BucketSize]

    @property
    def samples(self) -> int:
        return sum(size.samples for size in self.buckets.values())

    @property
    def tokens(self) -> int:
        return sum(size.tokens for size in self.buckets.values())

    def lines(self) -> list[str]:
        """A table with a bar for each bucket's share of the tokens."""
        lines = [f"{'bucket':<22}{'samples':>10}{'tokens':>14}{'shards':>8}  share of the tokens"]
        most = max((size.tokens for size in self.buckets.values()), default=1)
        for name, size in self.buckets.items():
            bar = "#" * max(1, round(_BAR * size.tokens / most))
            share = f"{size.tokens / self.tokens:6.1%}"
            lines.append(f"{name:<22}{size.samples:>10,}{size.tokens:>14,}{size.shards:>8,}  {share} {bar}")
        return lines

    def save_picture(self, path: Path, title: str) -> None:
        """A PNG: for each bucket its share of the samples, and of the tokens."""
        height = 2 * _MARGIN + _ROW * (len(self.buckets) + 3)
        image = Image.new("RGB", (_WIDTH, height), _PAPER)
        draw, font = ImageDraw.Draw(image), ImageFont.load_default(size=_FONT)
        draw.text((_MARGIN, _MARGIN), title, fill=_INK, font=font)
        total = {"samples": self.samples, "tokens": self.tokens}
        for what, left in _COLUMNS.items():
            draw.text((left, _MARGIN + _ROW), f"{total[what]:,} {what}", fill=_INK, font=font)
            counts = {name: size.samples if what == "samples" else size.tokens for name, size in self.buckets.items()}
            most = max(counts.values(), default=1)
            for number, (name, count) in enumerate(counts.items()):
                top = _MARGIN + _ROW * (number + 2)
                long = left + max(2, round(_LONGEST_BAR * count / most))
                draw.rectangle((left, top, long, top + _ROW - 8), fill=_COLOURS[name.partition("-")[0]])
                draw.text((long + 6, top), f"{count / total[what]:.1%}", fill=_INK, font=font)
        for number, name in enumerate(self.buckets):
            draw.text((_MARGIN, _MARGIN + _ROW * (number + 2)), name, fill=_INK, font=font)
        image.save(path, "PNG")
