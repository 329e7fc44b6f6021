"""What a run prints: lines with the time, and on a terminal one more below them that is written over at every step."""

import logging
import shutil
import time
from collections.abc import Sequence
from typing import TextIO

_CLEAR = "\r\x1b[K"
_COLOURS = {logging.WARNING: "\x1b[33m", logging.ERROR: "\x1b[31m"}
_PLAIN = "\x1b[0m"


class Columns(str):
    """A line of columns, the last of which stays on a narrow terminal while those before it make room."""

    def __new__(cls, parts: Sequence[str]) -> "Columns":
        line = super().__new__(cls, "  ".join(parts))
        line.parts = tuple(parts)
        return line

    parts: tuple[str, ...]

    def within(self, room: int) -> str:
        """As many columns as there is room for."""
        *parts, last = self.parts
        while len("  ".join([*parts, last])) > room and len(parts) > 1:
            parts.pop()
        return "  ".join([*parts, last])


class Console(logging.StreamHandler[TextIO]):
    """Stands in for the plain handler of the root logger while a run goes on."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self.is_terminal = stream.isatty()
        self._replaced: list[logging.Handler] = []

    @staticmethod
    def install() -> "Console | None":
        """Take the place of the handler that prints; None where nothing prints."""
        root = logging.getLogger()
        plain = [handler for handler in root.handlers if type(handler) is logging.StreamHandler]
        if not plain:
            return None
        console = Console(plain[0].stream)
        console._replaced = list(plain)
        for handler in plain:
            root.removeHandler(handler)
        root.addHandler(console)
        return console

    def remove(self) -> None:
        """Give the place back."""
        root = logging.getLogger()
        self.passing("")
        root.removeHandler(self)
        for handler in self._replaced:
            root.addHandler(handler)

    def passing(self, text: str) -> None:
        """On a terminal, show what is true only now, until the next line; elsewhere nothing."""
        if self.is_terminal:
            self.stream.write(_CLEAR + text[: _room()])
            self.flush()

    def format(self, record: logging.LogRecord) -> str:
        """`02:13:45  words`, and `02:13:45  warning: words`; colours on a terminal only."""
        at = time.strftime("%H:%M:%S", time.localtime(record.created))
        level = f"{record.levelname.lower()}: " if record.levelno >= logging.WARNING else ""
        words = super().format(record)
        if self.is_terminal and isinstance(record.msg, Columns):
            words = record.msg.within(_room() - len(f"{at}  {level}"))
        text = f"{level}{words}"
        if not self.is_terminal:
            return f"{at}  {text}"
        colour = _COLOURS.get(record.levelno)
        return f"{_CLEAR}{at}  {colour}{text}{_PLAIN}" if colour else f"{_CLEAR}{at}  {text}"


def _room() -> int:
    """Columns of the terminal before a line breaks."""
    return shutil.get_terminal_size().columns - 1
