"""How a command without a composed config ends: one sentence for a mistake, one line for Ctrl-C, none for `| head`."""

import functools
import os
import select
import sys
from collections.abc import Callable
from typing import ParamSpec

EXIT_MISTAKE, EXIT_STOPPED, EXIT_UNREAD = 2, 130, 141
P = ParamSpec("P")


def command(
    stopped: str = "stopped; nothing was written, and the same command starts again",
) -> Callable[[Callable[P, int]], Callable[P, int]]:
    """Of a `main` that returns an exit code: ValueError and OSError become 2, and Ctrl-C `stopped` and 130."""

    def decorate(main: Callable[P, int]) -> Callable[P, int]:
        @functools.wraps(main)
        def guarded(*args: P.args, **kwargs: P.kwargs) -> int:
            try:
                code = main(*args, **kwargs)
                if sys.stdout is not None:  # closed with `>&-`
                    sys.stdout.flush()
                return code
            except (ValueError, OSError) as error:
                if isinstance(error, BrokenPipeError) and _is_unread():
                    return EXIT_UNREAD
                print(f"error: {error}", file=sys.stderr)
                return EXIT_MISTAKE
            except KeyboardInterrupt:
                print(stopped, file=sys.stderr)
                return EXIT_STOPPED

        return guarded

    return decorate


def _is_unread() -> bool:
    """Whether nobody reads what is printed any more; the rest of it is then dropped."""
    watch = select.poll()
    watch.register(sys.stdout.fileno(), 0)
    if not any(event & select.POLLERR for _, event in watch.poll(0)):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return True
