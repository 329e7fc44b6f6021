"""Reads that a storage may never answer, given up after a while."""

import errno
import queue
import threading
from collections.abc import Callable
from typing import TypeVar

READ_TIMEOUT_S = 120.0
"""Of manifests, wherever they are opened; the default of `data.read_timeout_s`."""
T = TypeVar("T")


class DeadlineError(TimeoutError):
    """Nothing came in time; the storage itself said nothing."""


def within(timeout_s: float, read: Callable[[], T]) -> T:
    """What `read` returns or raises. DeadlineError where that takes longer: nothing ends a thread that waits for a
    storage, so it is left behind, and the process can end without it.
    """
    answer: queue.SimpleQueue[tuple[T | None, Exception | None]] = queue.SimpleQueue()

    def work() -> None:
        try:
            answer.put((read(), None))
        except Exception as error:  # noqa: BLE001 - raised where it is waited for
            answer.put((None, error))

    threading.Thread(target=work, name="read", daemon=True).start()
    try:
        found, error = answer.get(timeout=timeout_s)
    except queue.Empty:
        raise DeadlineError(errno.ETIMEDOUT, f"nothing came within {timeout_s:g} s") from None
    if error is not None:
        raise error
    return found  # type: ignore[return-value]  # of `read`
