"""The `openautoglm` field of answers: what was done differently than asked, and what was cut."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from openautoglm.engine.record import RequestRecord
from openautoglm.errors import InvalidRequestError
from openautoglm.log import get_logger
from openautoglm.serve.schemas import Body
from openautoglm.serve.truncation import Cut
from openautoglm.spec.notices import Notice, NoticeCode

_log = get_logger(__name__)

# Fields that OpenAI's clients send about themselves: they ask for nothing that an answer could lack.
_ABOUT_THE_CLIENT = frozenset({"user", "metadata", "safety_identifier", "prompt_cache_key"})


@dataclass(slots=True, kw_only=True)
class Extension:
    """What one answer tells beside OpenAI's fields. `server` are the notices of the load, which every answer repeats.

    With `strict` a notice of the request's own is refused with 400 instead.
    """

    server: tuple[Notice, ...] = ()
    strict: bool = False
    _own: list[Notice] = field(default_factory=list)
    _cuts: list[dict[str, object]] = field(default_factory=list)
    _records: list[RequestRecord] = field(default_factory=list)
    _redacted: dict[str, dict[str, int]] = field(default_factory=dict)
    _late: bool = False

    def add(self, code: NoticeCode, message: str, *, param: str) -> None:
        """Take a notice of this request; raise `InvalidRequestError` naming `param` if the server is strict."""
        if self.strict:
            raise InvalidRequestError(f"{message}: this server is strict, and does not go on without it", param=param)
        self._own.append(Notice(code=code, message=message))
        # The message may name fields, which are the client's words.
        _log.info("an answer tells of %s", code.value)

    def add_late(self, code: NoticeCode, message: str) -> None:
        """Take a notice of the answer itself, which a strict server cannot refuse any more."""
        notice = Notice(code=code, message=message)
        if notice not in self._own:
            self._own.append(notice)
            self._late = True
            _log.info("an answer tells of %s", code.value)

    def take_late(self) -> bool:
        """Whether there were such notices since the last call."""
        late, self._late = self._late, False
        return late

    def ignored_fields(self, body: Body, known: Collection[str]) -> None:
        """Tell of the fields that this server knows nothing of; `known` are those with values that ask for nothing."""
        extra: Mapping[str, Any] = body.model_extra or {}
        names = [
            name
            for name, value in extra.items()
            if value is not None and name not in known and name not in _ABOUT_THE_CLIENT
        ]
        if names:
            shown = ", ".join(name[:40] for name in names[:8]) + (", …" if len(names) > 8 else "")
            self.add(NoticeCode.FIELDS_IGNORED, f"{shown} means nothing to this server", param=names[0][:40])

    def cut(self, prompt: int, cut: Cut) -> None:
        """Tell of tokens that were cut out of the prompt with this index."""
        message = f"{cut.num_tokens} of {cut.num_prompt_tokens} tokens were cut out of the prompt, from {cut.begin} on"
        self.add(NoticeCode.PROMPT_TRUNCATED, message, param="truncate")
        self._cuts.append(
            {
                "prompt": prompt,
                "side": cut.side,
                "dropped_tokens": cut.num_tokens,
                "begin": cut.begin,
                "end": cut.begin + cut.num_tokens,
                "prompt_tokens_before": cut.num_prompt_tokens,
            }
        )

    def touched(self, record: RequestRecord) -> None:
        """Tell where the time of a request went that the memory ladder touched."""
        self._records.append(record)

    def redacted(self, where: str, counts: Mapping[str, int]) -> None:
        """Tell how often private data was replaced in the "prompt" or the "answer", by kind."""
        if counts:
            self._redacted[where] = dict(Counter(self._redacted.get(where, {})) + Counter(counts))

    @property
    def redactions(self) -> Mapping[str, Mapping[str, int]]:
        """How often private data was replaced, by "prompt" or "answer" and kind."""
        return self._redacted

    def as_dict(self) -> dict[str, object]:
        """Return the field; empty when there is nothing to tell, and then the answer has none."""
        told: dict[str, object] = {}
        if self.server or self._own:
            told["notices"] = [notice.as_dict() for notice in (*self.server, *self._own)]
        if self._cuts:
            told["truncated"] = self._cuts
        if self._redacted:
            told["redacted"] = self._redacted
        if self._records:
            told["requests"] = self._records
        return told
