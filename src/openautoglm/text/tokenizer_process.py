"""The child that tries an unknown tokenizer.json, as its parent sees it: begun early, asked when it is needed."""

from __future__ import annotations

import json
import os
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from openautoglm.checkpoint.files import read_small_file
from openautoglm.errors import TokenizerError
from openautoglm.text.children import child_command, child_environment, describe_exit
from openautoglm.units import MIB

MAX_TOKENIZER_BYTES = 64 * MIB
_CHECK_SECONDS = 180.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerFacts:
    """What the child learnt of a tokenizer.json. `vocab_size` is the largest id and one."""

    vocab_size: int
    longest_token_bytes: int


class TokenizerCheck:
    """The tokenizer.json of `directory`, read whole, and the child that parses these bytes. Close it.

    The child runs from the beginning, so that the caller can do something else meanwhile. Raises `TokenizerError` where
    there is no such file, or `CheckpointFormatError` for a file that is too large or no file.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.data = _read_file(directory)
        self._deadline = time.monotonic() + _CHECK_SECONDS
        self._facts: TokenizerFacts | None = None
        # A file in memory, and not the file itself, which could change before it is read again here.
        descriptor = os.memfd_create("tokenizer.json")
        with os.fdopen(descriptor, "wb") as file:
            file.write(self.data)
            file.seek(0)
            self._process = subprocess.Popen(
                child_command("tokenizer_check.py"),
                stdin=file,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=child_environment(),
            )

    def facts(self) -> TokenizerFacts:
        """Wait for the child and return what it learnt; raise `TokenizerError` for a file that it could not use."""
        if self._facts is None:
            self._facts = self._ask()
        return self._facts

    def _ask(self) -> TokenizerFacts:
        path = self.directory / "tokenizer.json"
        try:
            answer, complaints = self._process.communicate(timeout=max(0.0, self._deadline - time.monotonic()))
        except subprocess.TimeoutExpired as error:
            raise TokenizerError(f"{path} could not be parsed within {_CHECK_SECONDS:g} s") from error
        code = self._process.returncode
        if code != 0:
            lines = complaints.decode("utf-8", "replace").strip().splitlines()
            reason = lines[-1][:500] if code > 0 and lines else describe_exit(code)
            raise TokenizerError(f"{path} is not a usable tokenizer: {reason}")
        facts = json.loads(answer)
        return TokenizerFacts(
            vocab_size=int(facts["vocab_size"]), longest_token_bytes=int(facts["longest_token_bytes"])
        )

    def close(self) -> None:
        """End the child and let the file's bytes go; safe to call twice."""
        self.data = b""
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        for stream in (self._process.stdout, self._process.stderr):
            if stream is not None:
                stream.close()

    def __enter__(self) -> TokenizerCheck:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it."""
        self.close()


def _read_file(directory: Path) -> bytes:
    path = directory / "tokenizer.json"
    if not path.exists():
        others = [name for name in ("tokenizer.model", "vocab.json", "vocab.txt") if (directory / name).is_file()]
        found = f" (it has {', '.join(others)}, a format that is not read here)" if others else ""
        raise TokenizerError(
            f"{directory} has no tokenizer.json{found}: convert once with transformers, "
            "AutoTokenizer.from_pretrained(directory).save_pretrained(directory), or add the model's tokenizer.json"
        )
    return read_small_file(path, max_bytes=MAX_TOKENIZER_BYTES)
