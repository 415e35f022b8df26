"""Times cold processes up to their first token: `openautoglm run` beside llama.cpp, interleaved.

    PYTHONPATH=benchmarks python benchmarks/first_token.py [--shape tinyllama-1.1b] [--quant int4] [--rounds 5]

A process is timed from its start to the first byte of its answer, with its files in the page cache and, for
openautoglm, the prepacked cache present: a first start that does not count writes it. openautoglm renders the chat
template, tokenises, plans and prints the plan on the way; llama.cpp only loads, and computes as many random tokens.
Needs what `python -m peers --prepare` makes.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

from openautoglm.probe.cpu import probe_cpu
from peers.artifacts import artifact, worker_variables
from peers.environments import ENVIRONMENTS, interpreter
from peers.protocol import WARM_TOKENS, Job
from peers.shapes import DEFAULT_SHAPE, SOURCES, prepare_shape

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "openautoglm-peers"
GGUF = {"int4": "gguf-Q4_0", "int8": "gguf-Q8_0"}
LLAMA = """
import sys
from peers.protocol import WARM_TOKENS, job_from_json, random_prompts
from peers.workers.llama_worker import LlamaSession
job = job_from_json(sys.argv[1])
LlamaSession(job).prefill(random_prompts(job, 1, WARM_TOKENS, 0)[0])
print("token", flush=True)
"""


def first_byte_seconds(command: list[str], variables: dict[str, str]) -> float:
    """Return the seconds from a process's start to the first byte on its stdout; raise if it gives none."""
    # A file takes any number of log lines; a pipe that nobody reads would stop the process.
    with tempfile.TemporaryFile() as log:
        begin = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, env=variables)
        assert process.stdout is not None
        first = process.stdout.read(1)
        seconds = time.perf_counter() - begin
        process.communicate()
        log.seek(0)
        if not first:
            raise SystemExit(f"{command[:4]} answered nothing: {log.read().decode(errors='replace')[-500:]}")
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SOURCES, default=DEFAULT_SHAPE)
    parser.add_argument("--quant", choices=sorted(GGUF), default="int4")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    num_threads = probe_cpu().num_cores
    shape = prepare_shape(arguments.shape, CACHE)
    llama = interpreter(ENVIRONMENTS["llama-cpp"], CACHE)
    job = Job(
        model=str(artifact(GGUF[arguments.quant], shape, CACHE, num_threads)),
        vocab_size=int(str(shape.config()["vocab_size"])),
        num_threads=num_threads,
        prefill_tokens=256,
        decode_prompt_tokens=WARM_TOKENS,
        decode_new_tokens=1,
        decode_batches=(1,),
        repetitions=1,
        options={},
    )
    ours = [sys.executable, "-m", "openautoglm", "run", str(shape.checkpoint), "Why?", "--quant", arguments.quant]
    ours += ["--max-tokens", "4", "--context", "512"]
    commands = {"openautoglm": ours, "llama.cpp": [str(llama), "-c", LLAMA, json.dumps(asdict(job))]}
    with tempfile.TemporaryDirectory(dir=CACHE) as home:
        variables = worker_variables(num_threads) | {"XDG_CACHE_HOME": home}
        # An installed package has its bytecode; compiling sources in every process would add a fifth.
        variables.pop("PYTHONDONTWRITEBYTECODE", None)
        for command in commands.values():
            first_byte_seconds(command, variables)
        taken: dict[str, list[float]] = {name: [] for name in commands}
        for _ in range(arguments.rounds):
            for name, command in commands.items():
                taken[name].append(first_byte_seconds(command, variables))
    for name, seconds in taken.items():
        print(
            f"{name:<12} {' '.join(f'{value:.2f}' for value in seconds)} s, median {statistics.median(seconds):.2f} s"
        )
    ratios = [mine / theirs for mine, theirs in zip(taken["openautoglm"], taken["llama.cpp"], strict=True)]
    print(
        f"openautoglm takes {statistics.median(ratios):.2f} of llama.cpp's time, {max(ratios):.2f} in its worst round"
    )


if __name__ == "__main__":
    main()
