"""A conversation in a terminal, typed into a real one."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

COMMAND = [sys.executable, "-m", "openautoglm", "run", "demo", "--temperature", "0", "--quiet", "--quant", "int8"]
# Terminals are told of pasting in escape sequences.
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


@dataclass
class Terminal:
    """A process and what it has written to its terminal."""

    process: subprocess.Popen[bytes]
    master: int

    def read_until(self, mark: str, seconds: float = 60.0) -> str:
        seen, deadline = "", time.monotonic() + seconds
        while mark not in seen:
            left = deadline - time.monotonic()
            assert left > 0, f"no {mark!r} in {seen!r}"
            if select.select([self.master], [], [], left)[0]:
                seen = _ESCAPES.sub("", seen + os.read(self.master, 4096).decode(errors="replace"))
        return seen

    def read_beyond(self, mark: str, *, num_characters: int) -> None:
        """Read until that much text has come after the mark."""
        seen, deadline = "", time.monotonic() + 60.0
        while len(seen.partition(mark)[2]) < num_characters:
            assert time.monotonic() < deadline, seen
            if select.select([self.master], [], [], 1.0)[0]:
                text = os.read(self.master, 4096).decode(errors="replace").replace("\r", "")
                seen = _ESCAPES.sub("", seen + text)

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def ask(self, text: str) -> str:
        """Type a line and return what stands between it and the next prompt."""
        self.type(text + "\n")
        return self.read_until("\n> ").split("\n", 1)[1].removesuffix("\n> ").strip()


@contextmanager
def terminal(*arguments: str) -> Iterator[Terminal]:
    master, slave = pty.openpty()
    process = subprocess.Popen([*COMMAND, *arguments], stdin=slave, stdout=slave, stderr=slave, start_new_session=True)
    os.close(slave)
    try:
        opened = Terminal(process, master)
        opened.read_until("> ")
        yield opened
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        os.close(master)


def test_the_conversation_is_remembered_until_it_is_cleared():
    with terminal("--context", "128", "--concurrency", "1", "--max-tokens", "20") as chat:
        first = chat.ask("What does os.path.join do?")
        assert len(first) > 1
        # What does not fit is said and forgotten: the conversation goes on, nothing is lost.
        refused = chat.ask("What does os.path.join do? " * 20)
        assert "context" in refused
        assert "/clear forgets the conversation" in refused
        chat.ask("/clear")
        assert chat.ask("What does os.path.join do?") == first
        chat.type("/bye\n")
        assert chat.process.wait(timeout=30) == 0


def test_an_interrupt_ends_the_answer_and_the_next_one_the_program():
    with terminal("--raw", "--context", "2048", "--concurrency", "1") as chat:
        chat.type("import os\n")
        # The terminal echoes the line before the program reads it: only the answer's own text shows that it runs.
        chat.read_beyond("import os\n", num_characters=20)
        chat.process.send_signal(signal.SIGINT)
        assert "(stopped)" in chat.read_until("\n> ")
        # readline shows its prompt a moment before it listens to signals: a person's finger is slower.
        time.sleep(0.5)
        chat.process.send_signal(signal.SIGINT)
        assert "interrupted" in chat.read_until("interrupted")
        assert chat.process.wait(timeout=30) == 130


def test_the_end_of_input_ends_it():
    with terminal("--context", "128", "--concurrency", "1") as chat:
        chat.type("\x04")
        assert chat.process.wait(timeout=30) == 0
