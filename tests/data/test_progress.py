import os
import pty
import sys

from data import progress
from data.progress import Progress


def test_off_a_terminal_there_is_a_line_now_and_then(monkeypatch, capsys):
    now = iter([0.0, 1.0, 20.0, 21.0, 31.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(now))
    with Progress("reading", 8, "shard") as shown:
        for note in ("", "12 samples", "", ""):
            shown.advance(note)
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.splitlines() == [
        "reading: 2 of 8 shards, 0.1 shards/s, 60 s left, 12 samples",
        "reading: 4 of 8 shards, 0.1 shards/s, 31 s left",
    ]


def test_an_unknown_total_is_not_foretold(monkeypatch, capsys):
    now = iter([0.0, 20.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(now))
    Progress("reading", None, "clip").advance(by=5)
    assert capsys.readouterr().err == "reading: 5 clips, 0.2 clips/s\n"


def test_on_a_terminal_there_is_a_bar(monkeypatch):
    main, terminal = pty.openpty()
    with os.fdopen(terminal, "w") as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        with Progress("reading", 2, "shard") as shown:
            shown.advance("note")
    said = b""
    try:
        while chunk := os.read(main, 1 << 16):
            said += chunk
    except OSError:  # how a terminal ends
        os.close(main)
    assert b"reading" in said
    assert b"1/2" in said
