"""Calls in processes of their own, several at a time: what each gives, in order or on the way, and who of them died."""

import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import islice
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerProcess
from typing import Any, Generic, TypeVar

About = TypeVar("About")
Item = TypeVar("Item")
Result = TypeVar("Result")

_WAITING_PER_PROCESS = 2
_BYTES_WORTH_A_PROCESS = 512 << 20
_GIVEN, _FAILED, _DONE = "given", "failed", "done"


class Died(ChildProcessError):
    """A process ended before its call did, as one does where memory runs out."""


def default_workers(num_bytes: int) -> int:
    """Processes for reading so many bytes: all processors for much, none beside this one for little."""
    return min(len(os.sched_getaffinity(0)), 1 + num_bytes // _BYTES_WORTH_A_PROCESS)


def in_processes(function: Callable[[Item], Result], items: Iterable[Item], workers: int) -> Iterator[Result]:
    """`function` of each item, in order, the same for any number of processes; with one there is none beside this.

    It must be importable. Few items wait at a time, so that memory does not grow with their number. An error ends all.
    """
    if workers == 1:
        yield from map(function, items)
        return
    rest, results, given = enumerate(items), dict[int, Result](), 0
    plain = function.func if isinstance(function, partial) else function
    with Crew[int](workers, preload=plain.__module__) as crew:
        while True:
            room = min(workers, workers * _WAITING_PER_PROCESS - len(results)) - len(crew)
            for number, item in islice(rest, max(0, room)):
                crew.start(number, _alone, function, item)
            if not len(crew):
                return
            for number, result in crew.hear():
                if isinstance(result, Died):
                    raise result
                results[number] = result
            while given in results:
                yield results.pop(given)
                given += 1


def _alone(function: Callable[[Item], Result], item: Item) -> Iterator[Result]:
    yield function(item)


class Crew(Generic[About]):
    """Processes with one call each. Use as a context manager, which ends those that are still at work."""

    def __init__(self, size: int, *, preload: str) -> None:
        """`preload` is a module that all of them need: it is imported once."""
        self._size = size
        # Not forked from here: threads of the libraries that are loaded would be lost half-way.
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload([preload])
        self._at_work: dict[Connection, tuple[About, ForkServerProcess]] = {}

    def __len__(self) -> int:
        return len(self._at_work)

    @property
    def has_room(self) -> bool:
        return len(self) < self._size

    def start(self, about: About, function: Callable[..., Iterator[Any]], *given: Any, **named: Any) -> None:
        """Have a call made, of which `hear` gives all that it yields. The function must be importable."""
        with _interrupts_later():
            ours, theirs = self._context.Pipe(duplex=False)
            process = self._context.Process(target=_serve, args=(theirs, partial(function, *given, **named)))
            process.start()
            theirs.close()
            self._at_work[ours] = about, process

    def hear(self, timeout_s: float | None = None) -> Iterator[tuple[About, Any]]:
        """What has come: whose it is, and what was yielded, or Died. Raises the error of one that failed."""
        for ready in wait(list(self._at_work), timeout_s):
            assert isinstance(ready, Connection)
            about, process = self._at_work[ready]
            try:
                kind, value = ready.recv()
            except EOFError:
                process.join()
                value = Died(f"a process ended with exit code {process.exitcode} at its work: give it more memory")
                kind = _GIVEN
                self._leave(ready)
            if kind == _FAILED:
                raise value
            if kind == _DONE:
                self._leave(ready)
            else:
                yield about, value

    def _leave(self, connection: Connection) -> None:
        _, process = self._at_work.pop(connection)
        process.kill()
        process.join()
        connection.close()

    def __enter__(self) -> "Crew[About]":
        return self

    def __exit__(self, *error: object) -> None:
        while self._at_work:
            self._leave(next(iter(self._at_work)))


def _serve(connection: Connection, call: Callable[[], Iterator[Any]]) -> None:
    """What a process does. Interrupts are the parent's, and nothing goes on without it: another run may have begun."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    try:
        for value in call():
            connection.send((_GIVEN, value))
    except (OSError, ValueError) as error:
        connection.send((_FAILED, error))
    except Exception:  # noqa: BLE001 - raised where it is heard
        connection.send((_FAILED, RuntimeError(traceback.format_exc())))
    else:
        connection.send((_DONE, None))


def _leave_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


@contextmanager
def _interrupts_later() -> Iterator[None]:
    """Ctrl-C waits until a process is started: it and its server inherit this, and half-started ones would complain."""
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
