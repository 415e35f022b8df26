"""`Screen`: a terminal that is painted again and again, and left as it was found however the program ends.

Plain ANSI sequences (ECMA-48, xterm's alternate screen): whatever was on the terminal is there again afterwards.
"""

from __future__ import annotations

import os
import select
import shutil
import signal
import sys
import termios
import time
import tty
from collections.abc import Sequence
from types import FrameType, TracebackType
from typing import Any

_ENTER = "\x1b[?1049h\x1b[?25l"
_LEAVE = "\x1b[?25h\x1b[?1049l"
_HOME, _CLEAR_LINE, _CLEAR_BELOW = "\x1b[H", "\x1b[2K", "\x1b[J"
_TERMINATED_EXIT_CODE = 128 + signal.SIGTERM
_QUIT_KEYS = b"qQ\x04"


class Screen:
    """A context manager around the painting; standard output must be a terminal."""

    def __init__(self) -> None:
        self._before: list[Any] | None = None
        self._signals: dict[signal.Signals, Any] = {}

    @property
    def width(self) -> int:
        """Columns, now: windows change their size."""
        return shutil.get_terminal_size().columns

    def __enter__(self) -> Screen:
        """Take the terminal: another page of it, no cursor, keys at once and unseen. Signals that end us are errors."""
        for number, handler in ((signal.SIGTERM, _end), (signal.SIGHUP, _end), (signal.SIGTSTP, self._suspend)):
            self._signals[number] = signal.signal(number, handler)
        if sys.stdin.isatty():
            self._before = termios.tcgetattr(sys.stdin)
        self._take()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give it back."""
        try:
            self._give_back()
        finally:
            for number, handler in self._signals.items():
                signal.signal(number, handler)

    def _take(self) -> None:
        if self._before is not None:
            tty.setcbreak(sys.stdin)
        sys.stdout.write(_ENTER)
        sys.stdout.flush()

    def _give_back(self) -> None:
        try:
            sys.stdout.write(_LEAVE)
            sys.stdout.flush()
        finally:
            if self._before is not None:
                termios.tcsetattr(sys.stdin, termios.TCSADRAIN, self._before)

    def _suspend(self, number: int, _frame: FrameType | None) -> None:
        """Ctrl-Z: the shell has its terminal until we go on."""
        self._give_back()
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
        signal.signal(number, self._suspend)
        self._take()

    def paint(self, lines: Sequence[str]) -> None:
        """Show the lines that the window has room for; the last row tells of those that it has not."""
        height = max(2, shutil.get_terminal_size().lines)
        shown = list(lines)
        if len(shown) > height:
            shown = [*shown[: height - 1], f"({len(lines) - height + 1} more lines: enlarge the window)"[: self.width]]
        # Lines are cleared before they are written: behind one as wide as the window its last letter would go too.
        text = f"\n{_CLEAR_LINE}".join(shown)
        sys.stdout.write(f"{_HOME}{_CLEAR_LINE}{text}{_CLEAR_BELOW if len(shown) < height else ''}")
        sys.stdout.flush()

    def wait(self, seconds: float) -> bool:
        """Wait; return whether a key was pressed that quits."""
        if self._before is None:
            time.sleep(seconds)
            return False
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            if select.select([sys.stdin], [], [], left)[0]:
                keys = os.read(sys.stdin.fileno(), 64)
                if not keys or any(key in _QUIT_KEYS for key in keys):
                    return True
        return False


def _end(_number: int, _frame: FrameType | None) -> None:
    raise SystemExit(_TERMINATED_EXIT_CODE)
