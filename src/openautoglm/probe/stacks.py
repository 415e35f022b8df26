"""A sampling profiler of this process's Python threads: names of functions and how often they were seen, no values.

Stacks are told as https://github.com/brendangregg/FlameGraph reads them: thread and functions, outermost first,
separated by semicolons. Native code shows as the function that called it.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections import Counter
from concurrent.futures import Future
from dataclasses import dataclass
from types import CodeType, FrameType

from openautoglm.errors import OverloadedError

MAX_SECONDS = 60.0
MAX_RATE_HZ = 200
_MAX_DEPTH = 96
_MAX_STACKS = 2000
_MAX_TEXT_BYTES = 1 << 20
_MORE = "(more stacks)"

_Key = tuple[int, tuple[CodeType, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class StackProfile:
    """What one process was doing: samples by stack. Each of `num_looks` looks took one sample of every thread."""

    process: str
    pid: int
    seconds: float
    num_looks: int
    stacks: dict[str, int]


class Profiler:
    """Samples when asked, one profile at a time, in a thread of its own that no shutdown waits for.

    A look costs some ten microseconds a thread. Memory is bounded: what comes beyond 2,000 stacks is counted as one.
    """

    def __init__(self, process: str) -> None:
        self._process = process
        self._busy = threading.Lock()

    def start(self, *, seconds: float, rate_hz: int) -> Future[StackProfile]:
        """Sample `rate_hz` times a second for `seconds`; raise `OverloadedError` while another profile is taken."""
        if not self._busy.acquire(blocking=False):
            raise OverloadedError("a profile is being taken: try again when it is done", retry_after_seconds=seconds)
        future: Future[StackProfile] = Future()

        def work() -> None:
            try:
                profile = self._sample(min(seconds, MAX_SECONDS), min(rate_hz, MAX_RATE_HZ))
            except BaseException as error:  # noqa: BLE001  whoever waits raises it
                self._busy.release()
                future.set_exception(error)
            else:
                self._busy.release()
                future.set_result(profile)

        threading.Thread(target=work, name="profiler", daemon=True).start()
        return future

    def _sample(self, seconds: float, rate_hz: int) -> StackProfile:
        counts: Counter[_Key] = Counter()
        names: dict[CodeType, str] = {}
        num_looks = num_more = 0
        begin = time.monotonic()
        while (now := time.monotonic()) - begin < seconds:
            num_looks += 1
            for thread, frame in sys._current_frames().items():
                if thread == threading.get_ident():
                    continue
                key = (thread, _functions(frame, names))
                if key in counts or len(counts) < _MAX_STACKS:
                    counts[key] += 1
                else:
                    num_more += 1
            time.sleep(max(0.0, begin + num_looks / rate_hz - now))
        threads = {thread.ident: thread.name for thread in threading.enumerate()}
        return StackProfile(
            process=self._process,
            pid=os.getpid(),
            seconds=time.monotonic() - begin,
            num_looks=num_looks,
            stacks=_told(counts, num_more, names, threads),
        )


def _functions(frame: FrameType | None, names: dict[CodeType, str]) -> tuple[CodeType, ...]:
    """Return the functions of a stack, innermost first, of at most `_MAX_DEPTH`; learn their names."""
    codes: list[CodeType] = []
    while frame is not None and len(codes) < _MAX_DEPTH:
        code = frame.f_code
        if code not in names:
            module = str(frame.f_globals.get("__name__", "?"))
            names[code] = f"{module}:{code.co_qualname}".replace(";", ",").replace("\n", " ")
        codes.append(code)
        frame = frame.f_back
    return tuple(codes)


def _told(
    counts: Counter[_Key], num_more: int, names: dict[CodeType, str], threads: dict[int | None, str]
) -> dict[str, int]:
    stacks: Counter[str] = Counter()
    num_bytes = 0
    for (thread, codes), number in counts.most_common():
        text = ";".join([threads.get(thread, "ended").replace(";", ","), *(names[code] for code in reversed(codes))])
        if text not in stacks:
            num_bytes += len(text)
        if num_bytes > _MAX_TEXT_BYTES:
            num_more += number
        else:
            stacks[text] += number
    if num_more:
        stacks[_MORE] = num_more
    return dict(stacks)


def collapsed_text(profiles: list[StackProfile]) -> str:
    """Return profiles as flame graph tools read them: a line a stack, the process outermost, its samples last."""
    return "".join(
        f"{profile.process};{stack} {number}\n" for profile in profiles for stack, number in profile.stacks.items()
    )


def speedscope(profiles: list[StackProfile]) -> dict[str, object]:
    """Return profiles in the file format of https://www.speedscope.app, one for each process."""
    frames: dict[str, int] = {}
    told = []
    for profile in profiles:
        samples = [[frames.setdefault(name, len(frames)) for name in stack.split(";")] for stack in profile.stacks]
        weights = list(profile.stacks.values())
        told.append(
            {
                "type": "sampled",
                "name": f"{profile.process} ({profile.pid})",
                "unit": "none",
                "startValue": 0,
                "endValue": sum(weights),
                "samples": samples,
                "weights": weights,
            }
        )
    return {
        "$schema": "https://www.speedscope.app/file-format-schema.json",
        "shared": {"frames": [{"name": name} for name in frames]},
        "profiles": told,
    }
