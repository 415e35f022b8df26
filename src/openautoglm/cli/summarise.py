"""Summarising a document of any length with a model of a bounded context: its parts first, then their summaries.

document | part | part | part | part | part |      split at boundaries, each within the context
            s1     s2     s3     s4     s5         summaries, in batches
           |  s1 s2 s3  |  s4 s5  |                as many as fit the context
                 t1          t2                    and so on, until one is left
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from openautoglm.errors import ConfigError, EngineError
from openautoglm.text.split import MIN_TOKENS, split_text

if TYPE_CHECKING:
    from openautoglm.llm import LLM, Message
    from openautoglm.spec.sampling import SamplingParams

# What a rendered prompt may have more than its parts counted apart.
_SLACK_TOKENS = 16
# A level of summaries must become fewer: each is at most this part of what a prompt has room for.
_SUMMARY_SHARE = 4
_SEPARATOR = "\n\n"
_CJK_SHARE = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Instructions:
    """What stands before a part of the document, and before summaries that are to become one."""

    part: str
    merge: str


ENGLISH = Instructions(
    part="Summarise this part of a document in a few sentences. Keep names, numbers and conclusions.",
    merge="These are summaries of consecutive parts of one document. Write one summary of the whole from them.",
)
CHINESE = Instructions(
    part="用几句话概括下面这一部分文档，保留名称、数字和结论。",
    merge="下面是同一份文档各部分的摘要，按顺序排列。请据此写出整份文档的摘要。",
)


def instructions_for(text: str) -> Instructions:
    """Return the instructions in the language of a text."""
    letters = [character for character in text[:20_000] if character.isalpha()]
    wide = sum("\u3400" <= character <= "\u9fff" for character in letters)
    return CHINESE if wide > _CJK_SHARE * len(letters) else ENGLISH


class Summariser:
    """Summarises with one loaded model; `on_progress` hears of each batch: the level, summaries done, of how many."""

    def __init__(
        self,
        llm: LLM,
        sampling: SamplingParams,
        instructions: Instructions,
        *,
        summary_tokens: int,
        overlap_tokens: int = 0,
        on_progress: Callable[[int, int, int], None] = lambda _level, _done, _total: None,
    ) -> None:
        """Raise `ConfigError` if the context leaves no room for a part and its summary."""
        self._llm = llm
        self._sampling = replace(sampling, max_tokens=summary_tokens, n=1)
        self._instructions = instructions
        self._overlap_tokens = overlap_tokens
        self._on_progress = on_progress
        context_tokens = llm.plan.context_tokens
        longest = max(len(self._prompt(instruction, "")) for instruction in (instructions.part, instructions.merge))
        self._room_tokens = context_tokens - summary_tokens - longest - _SLACK_TOKENS
        least = max(MIN_TOKENS, _SUMMARY_SHARE * (summary_tokens + _SLACK_TOKENS), 2 * overlap_tokens)
        if self._room_tokens < least:
            raise ConfigError(
                f"a context of {context_tokens} tokens leaves {max(0, self._room_tokens)} for a part beside the "
                f"instruction and a summary of {summary_tokens}, and {least} are needed: raise --context, or lower "
                "--max-tokens or --overlap"
            )

    def summarise(self, text: str) -> str:
        """Return the summary of a document; raise `EngineError` if the model said nothing, or too much to be merged."""
        pieces = split_text(
            text, self._llm.tokenizer, max_tokens=self._room_tokens, overlap_tokens=self._overlap_tokens
        )
        parts = [text[piece.overlap_begin : piece.end] for piece in pieces]
        answers, level = self._answers(self._instructions.part, parts, 1), 1
        summaries = [answer for answer in answers if answer]
        while len(summaries) > 1:
            level += 1
            groups = self._groups(summaries)
            if len(groups) == len(summaries):
                raise EngineError(
                    "the model's summaries are too long to be merged: raise --context, or lower --max-tokens"
                )
            summaries = self._merged(groups, level)
        if not summaries:
            raise EngineError("the model's summaries are all empty: try another model, or another --instruction")
        return summaries[0]

    def _merged(self, groups: Sequence[Sequence[str]], level: int) -> list[str]:
        """Return a summary for each group, in order, without empty ones; what stands alone stays as it is."""
        texts = [_SEPARATOR.join(group) for group in groups if len(group) > 1]
        merged = iter(self._answers(self._instructions.merge, texts, level))
        return [text for group in groups if (text := group[0] if len(group) == 1 else next(merged))]

    def _groups(self, summaries: Sequence[str]) -> list[list[str]]:
        """Put as many summaries together as fit a prompt, in their order."""
        groups: list[list[str]] = [[]]
        for summary in summaries:
            candidate = _SEPARATOR.join([*groups[-1], summary])
            if groups[-1] and len(self._llm.tokenizer.encode(candidate)) > self._room_tokens:
                groups.append([])
            groups[-1].append(summary)
        return groups

    def _answers(self, instruction: str, texts: Sequence[str], level: int) -> list[str]:
        """Return the model's answers in order, empty ones too; as many run at once as the plan has room for."""
        answers: list[str] = []
        batch = max(1, self._llm.plan.concurrency)
        self._on_progress(level, 0, len(texts))
        for first in range(0, len(texts), batch):
            prompts = [self._prompt(instruction, text) for text in texts[first : first + batch]]
            answers += [completion.text.strip() for completion in self._llm.generate(prompts, self._sampling)]
            self._on_progress(level, min(first + batch, len(texts)), len(texts))
        return answers

    def _prompt(self, instruction: str, text: str) -> tuple[int, ...]:
        messages: list[Message] = [{"role": "user", "content": f"{instruction}{_SEPARATOR}{text}"}]
        return self._llm.render_chat(messages)
