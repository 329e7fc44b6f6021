"""The end of `make demo`: a summary in words and a page of pictures."""

import html
import json
from pathlib import Path
from typing import Any

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


def write_page(folder: Path, timings: dict[str, dict[str, Any]]) -> str:
    """Write `index.html` beside the results; returns the summary to print."""
    rows = summary_rows(folder, timings)
    width = max(len(name) for name, _ in rows)
    (folder / "index.html").write_text(_page(folder, rows), encoding="utf-8")
    lines = [f"  {name.ljust(width)}  {value}" for name, value in rows]
    return "\n".join(["", "Tessera demo", *lines, f"  {'pictures'.ljust(width)}  {folder / 'index.html'}"])


def summary_rows(folder: Path, timings: dict[str, dict[str, Any]]) -> list[tuple[str, str]]:
    """(name, value) of everything worth knowing, read from the files the phases left."""
    quality = json.loads((folder / "codec" / "metrics.json").read_text())
    caption = json.loads((folder / "dit" / "captions.json").read_text())
    metrics = read_metrics(folder / "dit")
    training = [row for row in metrics if "loss" in row]
    heldout = [row for row in metrics if "heldout/loss" in row]
    interval = f"95 % interval {caption['low']:+.4f} to {caption['high']:+.4f}"
    speed = sorted(row["tokens_per_s"] for row in training)[len(training) // 2]
    seconds = {name: float(row["seconds"]) for name, row in timings.items()}
    if SETUP_SECONDS.is_file():
        seconds = {"set-up": float(SETUP_SECONDS.read_text()), **seconds}
    return [
        *[(f"PSNR {name}", f"{value:.2f} dB") for name, value in quality["heldout_psnr"].items()],
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


def _page(folder: Path, rows: list[tuple[str, str]]) -> str:
    table = "".join(f"<tr><td>{html.escape(name)}</td><td>{html.escape(value)}</td></tr>" for name, value in rows)
    along = sorted((folder / "dit" / "samples").glob("*.png"))
    videos = sorted((folder / "videos").rglob("*.png"))
    return "\n".join(
        [
            f"<!doctype html><meta charset=utf-8><title>Tessera demo</title><style>{_STYLE}</style>",
            "<h1>Tessera demo</h1>",
            f"<table>{table}</table>",
            "<h2>The codec: held-out originals beside their reconstructions</h2>",
            *[_picture(folder, path) for path in sorted((folder / "codec").glob("*.png"))],
            "<h2>The same prompts and seeds as training goes on</h2>",
            *[_picture(folder, path) for path in along],
            "<h2>Videos</h2>",
            *[_picture(folder, path) for path in videos],
            f"<p><small>{html.escape(ATTRIBUTION)}</small></p>",
        ]
    )


def _picture(folder: Path, path: Path) -> str:
    name = html.escape(str(path.relative_to(folder)))
    moving = path.with_suffix(".gif")
    extra = f'<p><img src="{moving.relative_to(folder)}" alt="{name}"></p>' if moving.is_file() else ""
    return f'<p><small>{name}</small><br><img src="{name}" alt="{name}"></p>{extra}'
