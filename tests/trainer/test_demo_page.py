"""The demo's last words, from files as the phases write them."""

import html
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest
import torch

import trainer.demo_page
from trainer.codec_quality import Quality, to_json
from trainer.demo_page import write_page
from trainer.media import SheetBlock, SheetRow, write_moving_sheet, write_sheet
from trainer.metrics import Metrics

SECONDS = {"clips": 40.4, "dit": 280.0}
CAPTIONS = {"step": 3, "samples": 22, "sources": 12, "mean": 0.01234, "low": 0.001, "high": 0.0236}


class Page(HTMLParser):
    """Images, table and balance of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.images: list[dict[str, str | None]] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "img":
            self.images.append(dict(attrs))
        assert tag != "script"

    def handle_data(self, data: str) -> None:
        self.words += [data.strip()] if data.strip() else []


def draw(path: Path, *, moving: bool = False) -> None:
    frames = torch.arange(3, dtype=torch.uint8)[:, None, None, None].expand(3, 3, 16, 16).contiguous() * 60
    blocks = [SheetBlock(heading="a prompt", rows=[SheetRow(label="seed 0", frames_T3HW=frames)])]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_sheet(path, blocks, title="a sheet")
    if moving:
        write_moving_sheet(path.with_suffix(".gif"), blocks, title="a sheet", fps=8)


@pytest.fixture
def demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A finished demo's folder."""
    folder = tmp_path / "demo"
    (folder / "codec").mkdir(parents=True)
    quality = {
        name: Quality(psnr_db=db, ssim=0.5, psnr_db_of_clip={}) for name, db in (("PCA", 22.98), ("codec", 24.3))
    }
    (folder / "codec" / "metrics.json").write_text(json.dumps(to_json(quality)))
    metrics = Metrics(folder / "dit", speaks=True, resume_step=0, config_yaml="name: x\n")
    metrics.write(0, {"heldout/loss": 2.0, "heldout/ratio_to_zero": 1.0})
    for step, speed in ((1, 10.0), (2, 3000.0), (3, 2000.0)):
        metrics.write(step, {"loss": 2.0 - 0.25 * step, "tokens_per_s": speed})
    metrics.write(3, {"heldout/loss": 1.31, "heldout/ratio_to_zero": 0.655})
    metrics.close()
    (folder / "dit" / "captions.json").write_text(json.dumps(CAPTIONS))
    draw(folder / "codec" / "reconstructions.png")
    for step in (20, 3):
        draw(folder / "dit" / "samples" / f"step_{step:08d}.png")
    draw(folder / "videos" / "sheet.png", moving=True)
    draw(folder / "videos" / "image" / "sheet.png")
    (tmp_path / "setup_seconds").write_text("61.2\n")
    monkeypatch.setattr(trainer.demo_page, "SETUP_SECONDS", tmp_path / "setup_seconds")
    return folder


def sources(folder: Path) -> list[str]:
    return [str(image["src"]) for image in Page((folder / "index.html").read_text(encoding="utf-8")).images]


def test_the_summary_says_what_the_files_say(demo: Path) -> None:
    said = write_page(demo, SECONDS)
    lines = dict(re.split(r"\s{2,}", line.strip(), maxsplit=1) for line in said.split("\n") if line.startswith("  "))
    assert lines == {
        "PSNR PCA": "22.98 dB",
        "PSNR codec": "24.30 dB",
        "training loss": "1.750 -> 1.250",
        "held-out loss": "2.000 -> 1.310",
        "of the zero predictor's": "0.655",
        "another shot's caption": "+0.0123 held-out loss, 95 % interval +0.0010 to +0.0236",
        "speed": "2,000 tokens/s (median)",
        "time": "set-up 61 s, clips 40 s, dit 280 s",
        "total": "6.4 min",
        **{name: str(demo / place) for name, place in (("codec", "codec"), ("shards", "latents"), ("run", "dit"))},
        "videos": str(demo / "videos"),
        "pictures": str(demo / "index.html"),
    }
    words = Page((demo / "index.html").read_text(encoding="utf-8")).words
    for name, value in lines.items():
        assert name == "pictures" or words[words.index(name) + 1] == value


def test_a_set_up_of_another_day_is_not_counted(demo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer.demo_page, "SETUP_SECONDS", demo / "none")
    said = write_page(demo, SECONDS)
    assert "set-up" not in said
    assert "5.3 min" in said


def test_every_picture_is_shown_in_order_by_a_path_that_moves_with_the_folder(demo: Path) -> None:
    write_page(demo, SECONDS)
    moved = demo.rename(demo.with_name("elsewhere"))
    shown = sources(moved)
    assert shown == [
        "codec/reconstructions.png",
        "dit/samples/step_00000003.png",
        "dit/samples/step_00000020.png",
        "videos/image/sheet.png",
        "videos/sheet.png",
        "videos/sheet.gif",
    ]
    assert all((moved / path).is_file() for path in shown)
    assert {moved / path for path in shown} == {*moved.rglob("*.png"), *moved.rglob("*.gif")}


def test_names_that_mean_something_in_html_or_urls_are_only_names(demo: Path) -> None:
    name = "\"><script>alert('1')</script> 50% & #2?"
    for place in (demo / "videos").rglob("*"):
        if place.is_file():
            place.unlink()
    draw(demo / "videos" / name.replace("/", "%") / "a'b.png", moving=True)
    write_page(demo, SECONDS)
    text = (demo / "index.html").read_text(encoding="utf-8")
    assert "<script" not in text
    last = Page(text).images[-2:]
    for image, suffix in zip(last, ("png", "gif"), strict=True):
        path = unquote(str(image["src"]))
        assert path.endswith(f"a'b.{suffix}")
        assert (demo / path).is_file()
        assert not re.search(r"""[\s<>"'?#&]""", html.unescape(str(image["src"])))
        assert image["alt"] == path.replace(".gif", ".png")


def test_the_film_is_attributed_once(demo: Path) -> None:
    write_page(demo, SECONDS)
    text = (demo / "index.html").read_text(encoding="utf-8")
    assert text.count("www.bigbuckbunny.org, CC-BY 3.0") == 1
    assert text.startswith("<!doctype html><meta charset=utf-8>")


@pytest.mark.parametrize(
    ("lost", "sentence"),
    [
        (
            "codec/metrics.json",
            r"codec/metrics\.json cannot be summed up \(.*No such file.*\): delete \S+demo/codec/metrics\.json,",
        ),
        ("dit/captions.json", r"dit/captions\.json cannot be summed up \(.*No such file"),
        (
            "dit/metrics.jsonl",
            r"metrics\.jsonl .* \(no row has 'loss'\): delete \S+/demo/dit, if it is there",
        ),
    ],
)
def test_a_missing_file_is_named_with_the_way_out(demo: Path, lost: str, sentence: str) -> None:
    (demo / lost).unlink()
    with pytest.raises(ValueError, match=sentence):
        write_page(demo, SECONDS)
    assert not (demo / "index.html").exists()


def test_a_torn_file_or_an_unevaluated_run_is_named(demo: Path) -> None:
    rows = (demo / "dit" / "metrics.jsonl").read_text().splitlines()
    (demo / "dit" / "metrics.jsonl").write_text("\n".join(row for row in rows if "heldout" not in row))
    with pytest.raises(ValueError, match="no row has 'heldout/loss'"):
        write_page(demo, SECONDS)
    (demo / "dit" / "captions.json").write_text('{"mean": 0.')
    with pytest.raises(ValueError, match=r"captions\.json cannot be summed up"):
        write_page(demo, SECONDS)


def test_a_section_without_pictures_says_so(demo: Path) -> None:
    for path in (demo / "dit" / "samples").iterdir():
        path.unlink()
    write_page(demo, SECONDS)
    assert "There is no picture in dit/samples/." in Page((demo / "index.html").read_text()).words
    assert len(sources(demo)) == 4
