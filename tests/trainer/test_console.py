"""Lines carry the time and say what is a warning; what is true only now stays on a terminal and out of logs."""

import io
import logging
import os
import pty
import re

import pytest

from trainer.console import Columns, Console

LOG = logging.getLogger("test_console")


@pytest.fixture
def root():
    """The root logger with nothing but one plain handler, whose stream a test sets."""
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    for handler in before:
        root.removeHandler(handler)
    plain = logging.StreamHandler(io.StringIO())
    root.addHandler(plain)
    root.setLevel(logging.INFO)
    yield plain
    root.removeHandler(plain)
    for handler in before:
        root.addHandler(handler)
    root.setLevel(level)


def speak(console):
    LOG.info("step 1")
    console.passing("step 2, loss 0.5")
    LOG.warning("step 2: slow")
    console.remove()
    LOG.info("afterwards")


def test_a_log_has_plain_lines_and_nothing_that_is_written_over(root):
    speak(Console.install())
    lines = root.stream.getvalue().splitlines()
    assert re.fullmatch(r"\d\d:\d\d:\d\d  step 1", lines[0])
    assert re.fullmatch(r"\d\d:\d\d:\d\d  warning: step 2: slow", lines[1])
    assert lines[2:] == ["afterwards"]


def test_a_terminal_shows_the_step_between_lines_and_clears_it(root):
    master, slave = pty.openpty()
    with os.fdopen(slave, "w") as terminal:
        root.setStream(terminal)
        speak(Console.install())
        terminal.flush()
        shown = ""
        while "afterwards\r\n" not in shown:  # a terminal hands on what it has by then
            shown += os.read(master, 10_000).decode()
        root.setStream(io.StringIO())
    os.close(master)
    assert "\r\x1b[Kstep 2, loss 0.5\r\x1b[K" in shown
    assert re.search(r"\x1b\[33mwarning: step 2: slow\x1b\[0m\r\n", shown)
    assert shown.endswith("\r\x1b[Kafterwards\r\n")


def test_nothing_is_installed_where_nothing_prints(root):
    logging.getLogger().removeHandler(root)
    assert Console.install() is None
    logging.getLogger().addHandler(root)


@pytest.mark.parametrize("wide", [80, 40])
def test_columns_never_wrap_on_a_terminal_and_a_file_has_all_of_them(root, monkeypatch, wide):
    monkeypatch.setattr("shutil.get_terminal_size", lambda: os.terminal_size((wide, 24)))
    line = Columns(["step 1/9", "loss 0.5000", *(f"more {number}" for number in range(9)), "left 3 min"])
    record = logging.makeLogRecord({"msg": line, "levelno": logging.INFO})
    console = Console(io.StringIO())
    assert console.format(record).endswith(f"  {line}")
    console.is_terminal = True
    shown = console.format(record).removeprefix("\r\x1b[K")
    assert len(shown) < wide
    assert shown[10:].startswith("step 1/9") and shown.endswith("  left 3 min")
    assert ("more 3" in shown) == (wide == 80)
