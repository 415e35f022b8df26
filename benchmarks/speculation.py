"""Does prompt lookup pay, and does it cost nothing where it does not? Decodes texts of three kinds with and without.

    PYTHONPATH=benchmarks python benchmarks/speculation.py MODEL [--rounds 5] [--tokens 128] [--threads 2]

Kinds: `edit` (the prompt is code, and the answer may be the same code again, as in editing), `repeat` (a list that goes
on), `fresh` (prose with nothing to look up). What a model says decides what there is to look up: random weights fall
into loops, of which lookup makes the most; a trained model shows what is to be had of real text. Modes are interleaved
round by round; the answers of all modes are compared token by token. Prints tokens per second of decoding, medians
over rounds, and the ratio of each mode to `off`.
"""

from __future__ import annotations

import argparse
import statistics
import time

from openautoglm.engine.assemble import EngineOptions, OpenedEngine, open_engine, prepare
from openautoglm.engine.client import GenerationRequest
from openautoglm.engine.speculation import PromptLookup
from openautoglm.spec.formats import NumberFormat
from openautoglm.spec.goal import Goal
from openautoglm.spec.reuse import Speculation
from openautoglm.spec.sampling import SamplingParams

FUNCTION = """def first_{0}(values):
    if not values:
        raise ValueError("values is empty")
    for value in values:
        if value is not None:
            return value
    raise ValueError("values holds nothing")


"""
PROMPTS = {
    "edit": "".join(FUNCTION.format(name) for name in ("int", "text", "int")) + "def first_text(values):\n",
    "repeat": "".join(f"    assert count({number}) == {number}\n" for number in range(10, 24)),
    "fresh": "The quick brown fox went to the market and met an old friend, who told a story of",
}


def decode(opened: OpenedEngine, mode: Speculation, prompt: str, num_tokens: int, batch: int) -> tuple[float, object]:
    """Return tokens per second after the first token of each choice, and all tokens."""
    engine = opened.engine
    engine.pool.drop_cached()
    engine.lookup = PromptLookup(engine.scheduler, mode)
    sampling = SamplingParams(max_tokens=num_tokens, temperature=0.0, seed=1, ignore_eos=True)
    tokens = tuple(opened.tokenizer.encode(prompt))
    for number in range(batch):
        engine.add(GenerationRequest(request_id=str(number), prompt_tokens=tokens[number % 2 :], sampling=sampling))
    found: dict[str, list[int]] = {str(number): [] for number in range(batch)}
    begin, num_before = 0.0, 0
    while engine.has_work:
        for event in engine.step():
            found[event.request_id].extend(event.tokens)
        if not begin and all(found.values()):
            begin, num_before = time.perf_counter(), sum(map(len, found.values()))
    return (sum(map(len, found.values())) - num_before) / (time.perf_counter() - begin), found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--quant", choices=("bf16", "int8", "int4", "nf4"))
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4])
    arguments = parser.parse_args()
    goal = Goal(
        context_tokens=1024,
        concurrency=max(arguments.batches),
        num_threads=arguments.threads,
        quant=None if arguments.quant is None else NumberFormat(arguments.quant),
    )
    opened = open_engine(prepare(EngineOptions(model=arguments.model, goal=goal), to_run=True))
    print("| kind | batch | off, tokens/s | auto | prompt-lookup | accepted of drafted (auto) |")
    print("|---|---|---|---|---|---|")
    try:
        for kind, prompt in PROMPTS.items():
            for batch in arguments.batches:
                print(row(opened, kind, prompt, batch, arguments.rounds, arguments.tokens), flush=True)
    finally:
        opened.engine.close()


def row(opened: OpenedEngine, kind: str, prompt: str, batch: int, rounds: int, num_tokens: int) -> str:
    """Return a line of the table."""
    speeds: dict[Speculation, list[float]] = {mode: [] for mode in Speculation}
    accepted = ""
    answers = []
    for _ in range(rounds):
        for mode in Speculation:
            speed, answer = decode(opened, mode, prompt, num_tokens, batch)
            speeds[mode].append(speed)
            answers.append(answer)
            status = opened.engine.status().speculation
            if mode is Speculation.AUTO and status is not None:
                accepted = f"{status.accepted_tokens} of {status.draft_tokens}"
    if any(answer != answers[0] for answer in answers):
        raise SystemExit(f"{kind}, batch {batch}: answers differ between modes")
    off = statistics.median(speeds[Speculation.OFF])
    ratios = [statistics.median(speeds[mode]) / off for mode in (Speculation.AUTO, Speculation.PROMPT_LOOKUP)]
    return f"| {kind} | {batch} | {off:.1f} | {ratios[0]:.2f}x | {ratios[1]:.2f}x | {accepted} |"


if __name__ == "__main__":
    main()
