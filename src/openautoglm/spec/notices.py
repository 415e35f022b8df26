"""Every fallback and downgrade there is, by code: logged, told in the answers it touches, and refused by --strict.

A code is part of the API: it keeps its meaning, and whatever does less than was asked gets one here before it is
built. What a user asked for by name (`--no-cache`, `OPENAUTOGLM_ISA`) is no fallback; what cannot be done at all is an
error, not a notice.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType

from openautoglm.errors import DowngradeError
from openautoglm.log import get_logger

_log = get_logger(__name__)


class NoticeCode(StrEnum):
    """What was done instead of what was asked; the text in `NOTICE_MEANINGS` says it for users."""

    ACCELERATOR_UNUSED = "accelerator_unused"
    BF16_WIDENED = "bf16_widened"
    SCALAR_KERNELS = "scalar_kernels"
    INSTRUCTION_SET_LOWERED = "instruction_set_lowered"
    HUGE_PAGES_OFF = "huge_pages_off"
    MAX_RUNNING_LOWERED = "max_running_lowered"
    GENERATION_CONFIG_IGNORED = "generation_config_ignored"
    PACKED_CACHE_UNUSED = "packed_cache_unused"
    PACKED_CACHE_DAMAGED = "packed_cache_damaged"
    PACKED_CACHE_NOT_WRITTEN = "packed_cache_not_written"
    DISK_READS_BUFFERED = "disk_reads_buffered"
    SPILL_BUFFERED = "spill_buffered"
    PROMPT_TRUNCATED = "prompt_truncated"
    FIELDS_IGNORED = "fields_ignored"
    TOOLS_AS_TEXT = "tools_as_text"
    TOOLS_NOT_STRICT = "tools_not_strict"
    TOOL_CALL_AS_TEXT = "tool_call_as_text"


NOTICE_MEANINGS = MappingProxyType(
    {
        NoticeCode.ACCELERATOR_UNUSED: "an accelerator is here, and the processor does the work",
        NoticeCode.BF16_WIDENED: "bf16 products are computed in fp32, as the processor has no bf16 arithmetic",
        NoticeCode.SCALAR_KERNELS: "the portable kernels run, which are for correctness and not for speed",
        NoticeCode.INSTRUCTION_SET_LOWERED: "the processor has a better instruction set than the one that can be used",
        NoticeCode.HUGE_PAGES_OFF: "weights and caches lie in small pages, as the system gives no huge ones",
        NoticeCode.MAX_RUNNING_LOWERED: "fewer sequences run at once than --max-running says",
        NoticeCode.GENERATION_CONFIG_IGNORED: "the checkpoint asks for sampling that this package does not have",
        NoticeCode.PACKED_CACHE_UNUSED: "packed weights of an earlier load could not be read, so all were packed again",
        NoticeCode.PACKED_CACHE_DAMAGED: "packed weights of an earlier load were damaged, removed, and packed again",
        NoticeCode.PACKED_CACHE_NOT_WRITTEN: "packed weights could not be kept, so the next start packs them again",
        NoticeCode.DISK_READS_BUFFERED: "weights on disk are read through the page cache, which slows each step",
        NoticeCode.SPILL_BUFFERED: "spilled KV cache goes through the page cache, as its disk has no direct I/O",
        NoticeCode.PROMPT_TRUNCATED: "tokens were cut out of the prompt, as the request allowed",
        NoticeCode.FIELDS_IGNORED: "fields of the request mean nothing here and had no effect",
        NoticeCode.TOOLS_AS_TEXT: "tools were described in the system message, as the chat template takes none",
        NoticeCode.TOOLS_NOT_STRICT: "a strict schema of a tool is not enforced where the model may choose to call it",
        NoticeCode.TOOL_CALL_AS_TEXT: "what began as a tool call is content, as it was malformed, cut, or one too many",
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice:
    """One fallback or downgrade that happened, with what it was in this case."""

    code: NoticeCode
    message: str

    def as_dict(self) -> dict[str, object]:
        """Return it as answers carry it."""
        return {"code": self.code.value, "message": self.message}


class Notices:
    """What was done differently than asked while something went on; with `strict`, the first such thing is an error."""

    def __init__(self, *, strict: bool = False) -> None:
        self._strict = strict
        self._taken: list[Notice] = []

    def add(self, code: NoticeCode, message: str) -> None:
        """Take a notice and log it, once; raise `DowngradeError` instead if this is strict."""
        if self._strict:
            raise DowngradeError(f"{message} ({code.value}, which --strict does not allow)", code=code.value)
        notice = Notice(code=code, message=message)
        if notice not in self._taken:
            self._taken.append(notice)
            _log.warning("%s: %s", code.value, message)

    def taken(self) -> tuple[Notice, ...]:
        """Return the notices so far, in order."""
        return tuple(self._taken)
