"""What is said of how far it is."""

from pathlib import Path

import pytest

import data.ingest_progress
from data.ingest_part import PartRecord
from data.ingest_plan import IngestConfig, Plan, make_plan
from data.ingest_progress import IngestProgress
from data.listing import Columns, read_listing
from tests.data.films import put


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    for number in range(4):
        put(tmp_path, f"{number}.mp4", bytes(1 << 20), "x")
    return make_plan(read_listing(tmp_path, Columns()), IngestConfig(files_per_part=2))


def test_files_clips_rate_and_time_left(plan: Plan, monkeypatch: pytest.MonkeyPatch):
    now = 100.0
    monkeypatch.setattr(data.ingest_progress.time, "monotonic", lambda: now)
    standing = {0: PartRecord(hash=plan.parts[0].hash, files=2, files_used=2, clips=7)}
    progress = IngestProgress(plan, standing)
    assert progress.line() == "2 of 4 files, 7 clips, 0.0 MiB/s"
    now = 110.0
    progress.hear(plan.parts[1], 1, 3)
    assert progress.line() == "3 of 4 files, 10 clips, 0.1 MiB/s, 10 s left"


def test_a_plain_line_every_ten_seconds(plan: Plan, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    now = 0.0
    monkeypatch.setattr(data.ingest_progress.time, "monotonic", lambda: now)
    with IngestProgress(plan, {}) as progress:
        for at in (3.0, 9.0, 11.0, 15.0, 22.0):
            now = at
            progress.show()
    assert len(capsys.readouterr().err.splitlines()) == 2


def test_a_live_line_on_a_terminal(plan: Plan, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with IngestProgress(plan, {}) as progress:
        progress.hear(plan.parts[0], 1, 2)
        progress.show()
    assert "1 of 4 files, 2 clips" in capsys.readouterr().err
