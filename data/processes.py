"""A function over many things in several processes: results in order, the same for any number of processes."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from itertools import islice
from multiprocessing import resource_tracker
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

_WAITING_PER_PROCESS = 2
_BYTES_WORTH_A_PROCESS = 512 << 20


def default_workers(num_bytes: int) -> int:
    """Processes for reading so many bytes: all processors for much, none beside this one for little."""
    return min(len(os.sched_getaffinity(0)), 1 + num_bytes // _BYTES_WORTH_A_PROCESS)


def in_processes(function: Callable[[Item], Result], items: Iterable[Item], workers: int) -> Iterator[Result]:
    """`function` of each item, in order. It must be importable; with one worker there is no other process.

    Few items wait at a time, so that memory does not grow with their number. An error ends all of it.
    """
    if workers == 1:
        yield from map(function, items)
        return
    # Not forked from here: threads of the libraries that are loaded would be lost half-way.
    context = multiprocessing.get_context("forkserver")
    plain = function.func if isinstance(function, partial) else function
    context.set_forkserver_preload([plain.__module__])
    rest = iter(items)
    waiting: list[Future[Result]] = []
    others = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_serve)
    is_done = False
    try:
        with _interrupts_later():
            waiting += [pool.submit(function, item) for item in islice(rest, workers * _WAITING_PER_PROCESS)]
        while waiting:
            result = waiting.pop(0).result()
            waiting += [pool.submit(function, item) for item in islice(rest, 1)]
            yield result
        is_done = True
    finally:
        if not is_done:
            # Nobody waits for what they are at, and those that have only begun to start would complain.
            for process in set(multiprocessing.active_children()) - others:
                process.kill()
        pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def _interrupts_later() -> Iterator[None]:
    """Ctrl-C waits until all processes are started: they inherit this, and half-started ones would complain."""
    resource_tracker.ensure_running()  # here, since starting it lets interrupts through
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    handler = signal.signal(signal.SIGINT, lambda number, _: came.append(number))
    # Blocked as well, which the processes inherit; of this one other threads may still take the signal.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        signal.signal(signal.SIGINT, handler)
    if came:
        raise KeyboardInterrupt


def _serve() -> None:
    """Interrupts are the parent's, and nothing goes on without it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_leave_with_parent, daemon=True).start()


def _leave_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
