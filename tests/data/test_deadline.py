"""What a read returns and raises comes out of its thread; a storage that does not answer is given up."""

import threading
import time
from pathlib import Path

import pytest

from data.deadline import within


def test_what_a_read_returns_or_raises_is_its_callers():
    assert within(5, lambda: b"abc") == b"abc"
    with pytest.raises(FileNotFoundError, match="nowhere"):
        within(5, lambda: Path("nowhere").read_bytes())


def test_a_storage_that_does_not_answer_is_given_up():
    held, started = threading.Event(), time.monotonic()
    with pytest.raises(TimeoutError, match=r"nothing came within 0\.1 s"):
        within(0.1, held.wait)
    assert time.monotonic() - started < 5
    held.set()
