"""What a run prints: lines with the time, and on a terminal one more below them that is written over at every step."""

import logging
import shutil
import time
from typing import TextIO

_CLEAR = "\r\x1b[K"
_COLOURS = {logging.WARNING: "\x1b[33m", logging.ERROR: "\x1b[31m"}
_PLAIN = "\x1b[0m"


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
            room = shutil.get_terminal_size().columns - 1
            self.stream.write(_CLEAR + text[:room])
            self.flush()

    def format(self, record: logging.LogRecord) -> str:
        """`02:13:45  words`, and `02:13:45  warning: words`; colours on a terminal only."""
        at = time.strftime("%H:%M:%S", time.localtime(record.created))
        level = f"{record.levelname.lower()}: " if record.levelno >= logging.WARNING else ""
        text = f"{level}{super().format(record)}"
        if not self.is_terminal:
            return f"{at}  {text}"
        colour = _COLOURS.get(record.levelno)
        return f"{_CLEAR}{at}  {colour}{text}{_PLAIN}" if colour else f"{_CLEAR}{at}  {text}"
