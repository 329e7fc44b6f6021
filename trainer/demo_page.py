"""The end of `make demo`: a summary in words and a page of pictures."""

import html
import json
from operator import itemgetter
from pathlib import Path
from typing import Any
from urllib.parse import quote

from trainer.metrics import read_metrics

ATTRIBUTION = (
    "Big Buck Bunny (c) copyright 2008, Blender Foundation, www.bigbuckbunny.org, CC-BY 3.0; other footage as "
    "listed in clips/ATTRIBUTION.txt"
)
SETUP_SECONDS = Path(".venv/setup_seconds")
_STYLE = """
body {font: 15px/1.5 system-ui, sans-serif; max-width: 1100px; margin: 2em auto; padding: 0 1em; color: #222}
img {max-width: 100%; border: 1px solid #ddd} table {border-collapse: collapse} td, th {padding: .2em 1em .2em 0;
text-align: left} .num {text-align: right} small {color: #777} h2 {margin-top: 2em}
"""


def write_page(folder: Path, seconds: dict[str, float]) -> str:
    """Write `index.html` beside the results; returns the summary to print. `seconds` are those of each phase."""
    rows = summary_rows(folder, seconds)
    width = max(len(name) for name, _ in rows)
    (folder / "index.html").write_text(_page(folder, rows), encoding="utf-8")
    lines = [f"  {name.ljust(width)}  {value}" for name, value in rows]
    return "\n".join(["", "Tessera demo", *lines, f"  {'pictures'.ljust(width)}  {folder / 'index.html'}"])


def summary_rows(folder: Path, seconds: dict[str, float]) -> list[tuple[str, str]]:
    """(name, value) of everything worth knowing, read from the files the phases left."""
    quality = _read_json(folder, "codec/metrics.json")
    caption = _read_json(folder, "dit/captions.json")
    training = _rows_with(folder, "loss")
    heldout = _rows_with(folder, "heldout/loss")
    interval = f"95 % interval {caption['low']:+.4f} to {caption['high']:+.4f}"
    speed = sorted(row["tokens_per_s"] for row in training)[len(training) // 2]
    if SETUP_SECONDS.is_file():
        seconds = {"set-up": float(SETUP_SECONDS.read_text()), **seconds}
    return [
        *[
            (f"PSNR {name}", f"{value:.2f} dB")
            for name, value in sorted(quality["heldout_psnr"].items(), key=itemgetter(1))
        ],
        ("training loss", f"{training[0]['loss']:.3f} -> {training[-1]['loss']:.3f}"),
        ("held-out loss", f"{heldout[0]['heldout/loss']:.3f} -> {heldout[-1]['heldout/loss']:.3f}"),
        ("of the zero predictor's", f"{heldout[-1]['heldout/ratio_to_zero']:.3f}"),
        ("another shot's caption", f"{caption['mean']:+.4f} held-out loss, {interval}"),
        ("speed", f"{speed:,.0f} tokens/s (median)"),
        ("time", ", ".join(f"{name} {value:.0f} s" for name, value in seconds.items())),
        ("total", f"{sum(seconds.values()) / 60:.1f} min"),
        ("codec", str(folder / "codec")),
        ("shards", str(folder / "latents")),
        ("run", str(folder / "dit")),
        ("videos", str(folder / "videos")),
    ]


def _read_json(folder: Path, name: str) -> dict[str, Any]:
    try:
        return json.loads((folder / name).read_bytes())
    except (OSError, ValueError) as error:
        raise ValueError(_missing(folder / name, str(error), folder / name)) from error


def _rows_with(folder: Path, key: str) -> list[dict[str, Any]]:
    """Rows of the DiT's `metrics.jsonl` that have `key`; at least one."""
    rows = [row for row in read_metrics(folder / "dit") if key in row]
    if not rows:
        # What makes the record is training, and a finished run is not trained again.
        raise ValueError(_missing(folder / "dit" / "metrics.jsonl", f"no row has {key!r}", folder / "dit"))
    return rows


def _missing(path: Path, what: str, delete: Path) -> str:
    return f"{path} cannot be summed up ({what}): delete {delete}, if it is there, and `make demo` makes it anew"


def _page(folder: Path, rows: list[tuple[str, str]]) -> str:
    table = "".join(f"<tr><td>{html.escape(name)}</td><td>{html.escape(value)}</td></tr>" for name, value in rows)
    return "\n".join(
        [
            f"<!doctype html><meta charset=utf-8><title>Tessera demo</title><style>{_STYLE}</style>",
            "<h1>Tessera demo</h1>",
            f"<table>{table}</table>",
            "<h2>The codec: held-out originals beside their reconstructions</h2>",
            *_pictures(folder, "codec", "*.png"),
            "<h2>The same prompts and seeds as training goes on</h2>",
            *_pictures(folder, "dit/samples", "*.png"),
            "<h2>Videos</h2>",
            *_pictures(folder, "videos", "**/*.png"),
            f"<p><small>{html.escape(ATTRIBUTION)}</small></p>",
        ]
    )


def _pictures(folder: Path, place: str, pattern: str) -> list[str]:
    found = sorted((folder / place).glob(pattern))
    return [_picture(folder, path) for path in found] or [f"<p>There is no picture in {place}/.</p>"]


def _picture(folder: Path, path: Path) -> str:
    name = html.escape(path.relative_to(folder).as_posix())
    shown = [file for file in (path, path.with_suffix(".gif")) if file.is_file()]
    images = "".join(f'<br><img src="{_link(folder, file)}" alt="{name}">' for file in shown)
    return f"<p><small>{name}</small>{images}</p>"


def _link(folder: Path, path: Path) -> str:
    """Relative to the page, so that the folder can be moved; names may hold what URLs and HTML give a meaning."""
    return html.escape(quote(path.relative_to(folder).as_posix()))
