"""The site of docs/ builds without a warning, and its pages of settings name every field."""

import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from parallel.dims import ParallelDims
from trainer.config import DataConfig, TrainConfig

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    built = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "docs", str(built)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return built


def test_every_page_and_every_command_with_settings_is_on_the_site(site):
    pages = {page.stem for page in (ROOT / "docs").glob("*.md")}
    assert {page.stem for page in site.glob("*.html")} >= pages
    assert {"trainer.train", "trainer.sample"} <= {page.stem for page in (site / "settings").glob("*.html")}


def test_every_setting_is_told_with_its_meaning_and_default(site):
    page = (ROOT / "docs/settings/trainer.train.md").read_text()
    rows = {line.split("|")[1].strip(" `"): line for line in page.split("\n") if line.startswith("| `")}
    keys = [("data.", DataConfig), ("parallel.", ParallelDims), ("", TrainConfig)]
    flat = {prefix + field.name for prefix, kind in keys for field in fields(kind)}
    nested = {"data.mix", "data.online"} | {field.name for field in fields(TrainConfig)} - {"name", "folder", "seed"}
    assert flat - nested - {"dry_run", "allow_changes"} <= set(rows)
    assert rows["data.window"].split("|")[3].strip() == "`4096`"
    assert "order and packing never look further" in rows["data.window"]
    assert rows["data.codec"].split("|")[3].strip() == "required"
    assert "resampled to this rate" in rows["clip.fps"]
    assert rows["data.online.shards.dtype"].split("|")[3].strip() == "`float16`"
    assert rows["model.time_freq_dim"].split("|")[3].strip() == "`256`"
