"""What the program and its workers say to each other, and the loop that all workers share. Standard library only:
it is imported in every peer's environment.

A worker gets one `Job` as JSON, loads its engine, measures, and prints one `Outcome` as JSON. Token ids are random, and
the prompts of a batch differ, so that no cached prefix helps. Times are whole steps as the engine's caller sees them,
greedy, without tokenizing.
"""

from __future__ import annotations

import json
import os
import random
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

WARM_TOKENS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What to load and what to measure. `options` are the engine's own, strings as on a command line."""

    model: str
    vocab_size: int
    num_threads: int
    prefill_tokens: int
    decode_prompt_tokens: int
    decode_new_tokens: int
    decode_batches: tuple[int, ...]
    repetitions: int
    options: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """This process in bytes: proportional and resident now, file pages included, and the largest resident ever."""

    pss_bytes: int
    resident_bytes: int
    peak_resident_bytes: int

    @property
    def peak_pss_bytes(self) -> int:
        """The peak, less what is shared with other processes: reading PSS all along would disturb what is timed."""
        return self.peak_resident_bytes - (self.resident_bytes - self.pss_bytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """Seconds measured: loading, each repetition of the prompt up to its first token, each decoding step by batch.

    `load_seconds` run up to the first token of a prompt of WARM_TOKENS: an engine that maps its file loads it then.
    """

    versions: Mapping[str, str]
    load_seconds: float
    prefill_seconds: tuple[float, ...]
    decode_step_seconds: Mapping[int, tuple[float, ...]]
    memory: Memory


class Session(Protocol):
    """A loaded engine. Sequences of earlier calls are forgotten at each call."""

    def prefill(self, prompt: list[int]) -> float:
        """Return the seconds from a prompt to its first token."""

    def decode(self, prompts: list[list[int]], num_steps: int) -> list[float]:
        """Read the prompts, then return the seconds of steps that each add one token to every sequence."""


def random_prompts(job: Job, num_prompts: int, num_tokens: int, seed: int) -> list[list[int]]:
    """Return prompts of random token ids; equal arguments give equal prompts in every environment."""
    generator = random.Random(seed)
    return [[generator.randrange(job.vocab_size) for _ in range(num_tokens)] for _ in range(num_prompts)]


def measure_memory() -> Memory:
    """Read this process's memory (proc(5)); the kernel counts in units of 1024 bytes."""

    def fields(name: str) -> dict[str, int]:
        lines = (line.split() for line in (Path("/proc/self") / name).read_text().splitlines())
        return {parts[0].rstrip(":"): int(parts[1]) * 1024 for parts in lines if len(parts) == 3 and parts[2] == "kB"}

    rollup = fields("smaps_rollup")
    return Memory(pss_bytes=rollup["Pss"], resident_bytes=rollup["Rss"], peak_resident_bytes=fields("status")["VmHWM"])


def measure(job: Job, load: Callable[[Job], Session], versions: Mapping[str, str]) -> Outcome:
    """Load an engine and take every figure; the first run of each kind warms up and does not count."""
    started = time.perf_counter()
    session = load(job)
    session.prefill(random_prompts(job, 1, WARM_TOKENS, 0)[0])
    load_seconds = time.perf_counter() - started
    prefill = [
        session.prefill(random_prompts(job, 1, job.prefill_tokens, 1 + index)[0])
        for index in range(job.repetitions + 1)
    ]
    decode = {}
    for batch in job.decode_batches:
        prompts = random_prompts(job, batch, job.decode_prompt_tokens, 100 + batch)
        # The first token comes with the prompt.
        decode[batch] = tuple(session.decode(prompts, job.decode_new_tokens - 1))
    return Outcome(
        versions=versions,
        load_seconds=load_seconds,
        prefill_seconds=tuple(prefill[1:]),
        decode_step_seconds=decode,
        memory=measure_memory(),
    )


def serve_job(load: Callable[[Job], Session], versions: Mapping[str, str]) -> None:
    """Run the job of the command line; stdout belongs to the answer, what engines print there goes to stderr."""
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)
        outcome = measure(job_from_json(sys.argv[1]), load, versions)
        answers.write(json.dumps(asdict(outcome)))
        answers.flush()
        # Some engines abort in their destructors at exit, after all has been measured.
        os._exit(0)


def job_from_json(text: str) -> Job:
    """Return the job that `json.dumps(asdict(job))` made."""
    fields = json.loads(text)
    return Job(**{**fields, "decode_batches": tuple(fields["decode_batches"])})


def outcome_from_json(text: str) -> Outcome:
    """Return the outcome that a worker printed."""
    fields = json.loads(text)
    steps = {int(batch): tuple(seconds) for batch, seconds in fields["decode_step_seconds"].items()}
    return Outcome(
        versions=fields["versions"],
        load_seconds=fields["load_seconds"],
        prefill_seconds=tuple(fields["prefill_seconds"]),
        decode_step_seconds=steps,
        memory=Memory(**fields["memory"]),
    )
