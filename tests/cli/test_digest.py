"""`openautoglm digest`: every part of the document reaches the model, nothing overflows, wrong use is said early."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from openautoglm.cli.summarise import CHINESE, ENGLISH, Summariser, instructions_for
from openautoglm.errors import ConfigError, EngineError
from openautoglm.llm import LLM, Completion
from openautoglm.spec.sampling import SamplingParams

COMMAND = [sys.executable, "-m", "openautoglm", "digest"]
SMALL = ["--quant", "int8", "--context", "512", "--concurrency", "2", "--max-tokens", "24"]
DOCUMENT = "".join(f"Paragraph {index} tells of memory, of blocks, and of tokens. It ends.\n\n" for index in range(120))
CONTEXT, SUMMARY = 384, 32


def digest(*arguments: str, **kwargs: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, timeout=120, check=False, **kwargs)


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM("demo", context=CONTEXT, concurrency=4, quant="int8", memory="300MiB", cache="off") as llm:
        yield llm


class Recording:
    """The real model, and what it was asked."""

    def __init__(self, llm: LLM) -> None:
        self._llm = llm
        self.plan, self.tokenizer, self.render_chat = llm.plan, llm.tokenizer, llm.render_chat
        self.prompts: list[tuple[int, ...]] = []
        self.answers: list[str] = []

    def generate(self, prompts: list[tuple[int, ...]], sampling: SamplingParams) -> list[Completion]:
        assert len(prompts) <= self.plan.concurrency
        assert all(len(prompt) + (sampling.max_tokens or 0) <= CONTEXT for prompt in prompts)
        self.prompts += prompts
        completions = self._llm.generate(prompts, sampling)
        self.answers += [completion.text.strip() for completion in completions]
        return completions


def test_every_part_reaches_the_model_and_every_summary_the_next_level(llm: LLM) -> None:
    recording, news = Recording(llm), []
    summariser = Summariser(
        recording,  # type: ignore[arg-type]
        SamplingParams(temperature=0),
        ENGLISH,
        summary_tokens=SUMMARY,
        on_progress=lambda *told: news.append(told),
    )
    summary = summariser.summarise(DOCUMENT)
    texts = [llm.tokenizer.decode(prompt) for prompt in recording.prompts]
    parts = [text for text in texts if ENGLISH.part in text]
    merges = [text for text in texts if ENGLISH.merge in text]
    assert len(parts) + len(merges) == len(texts)
    assert len(merges) > 1
    seen = "".join(parts)
    assert all(f"Paragraph {index} tells" in seen for index in range(120))
    # What one level said, the next one reads; the last answer is the summary.
    read = "".join(merges)
    assert all(answer in read for answer in recording.answers[: len(parts)])
    assert summary == recording.answers[-1]
    assert news[-1] == (max(level for level, _, _ in news), 1, 1)
    assert (1, len(parts), len(parts)) in news


class Scripted(Recording):
    """Says what it is told to, in order."""

    def __init__(self, llm: LLM, script: Sequence[str]) -> None:
        super().__init__(llm)
        self._script = iter(script)

    def generate(self, prompts: list[tuple[int, ...]], sampling: SamplingParams) -> list[Completion]:
        real = self._llm.generate(prompts, replace(sampling, max_tokens=1))
        return [replace(one, choices=(replace(one.choices[0], text=next(self._script)),)) for one in real]


def scripted(llm: LLM, script: Sequence[str]) -> Summariser:
    model = Scripted(llm, script)
    return Summariser(model, SamplingParams(), ENGLISH, summary_tokens=SUMMARY)  # type: ignore[arg-type]


def test_summaries_that_are_too_long_to_be_merged_end_it(llm: LLM) -> None:
    with pytest.raises(EngineError, match="too long to be merged"):
        scripted(llm, ["memory and blocks " * 60] * 100).summarise(DOCUMENT)


def test_an_empty_merge_keeps_the_order(llm: LLM) -> None:
    assert scripted(llm, ["", "cd"])._merged([["a", "b"], ["alone"], ["c", "d"]], 2) == ["alone", "cd"]


def test_a_context_without_room_is_refused(llm: LLM) -> None:
    with pytest.raises(ConfigError, match="raise --context"):
        Summariser(llm, SamplingParams(), ENGLISH, summary_tokens=100)


def test_instructions_speak_the_language_of_the_text() -> None:
    assert instructions_for("模型的记忆是有限的，token 也是。") is CHINESE
    assert instructions_for("A model's memory is finite: 记忆.") is ENGLISH
    assert instructions_for("12345") is ENGLISH


def test_the_summary_goes_to_stdout_alone(tmp_path: Path) -> None:
    file = tmp_path / "document.txt"
    file.write_text(DOCUMENT)
    done = digest(str(file), *SMALL)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    assert "headroom" in done.stderr
    assert "summaries merged" in done.stderr
    piped = digest("-", *SMALL, "--quiet", input=DOCUMENT)
    assert piped.stdout == done.stdout
    assert not piped.stderr


@pytest.mark.parametrize(
    ("data", "arguments", "code", "words"),
    [
        (b"", [], 2, "no text"),
        (b" \n", [], 2, "no text"),
        ("中文".encode("gb18030"), [], 2, "iconv"),
        (b"a" * (8 * 1024 * 1024 + 1), [], 2, "larger than 8.00 MiB"),
        (b"text", ["--context", "128", "--max-tokens", "60"], 2, "raise --context"),
        (b"text", ["--temperature", "nan"], 2, "temperature"),
        (b"text", ["--memory", "10MiB"], 3, "MiB"),
        (b"text", ["--model", "/nonexistent"], 1, "/nonexistent"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_wrong_use_says_what_was_wrong(
    tmp_path: Path, data: bytes, arguments: list[str], code: int, words: str
) -> None:
    file = tmp_path / "document.txt"
    file.write_bytes(data)
    done = digest(str(file), "--quiet", *arguments)
    assert done.returncode == code, done.stderr
    assert words in done.stderr
    assert not done.stdout
    assert "Traceback" not in done.stderr


def test_interrupt_ends_cleanly(tmp_path: Path) -> None:
    file = tmp_path / "document.txt"
    file.write_text(DOCUMENT * 40)
    process = subprocess.Popen([*COMMAND, str(file), *SMALL], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        if " of " in line and "parts" in line:
            break
    begin = time.monotonic()
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=30)
    assert time.monotonic() - begin < 10
    assert process.returncode == 130, errors
    assert not output
    assert "Traceback" not in errors
