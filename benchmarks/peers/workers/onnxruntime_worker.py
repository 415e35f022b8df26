"""ONNX Runtime GenAI: a generator per measurement; a step is `generate_next_token`, its greedy search included."""

from __future__ import annotations

import json
import time
from importlib.metadata import version

import numpy as np
import onnxruntime_genai

from peers.protocol import Job, Session, serve_job


class OnnxRuntimeSession(Session):
    """A model directory as the model builder writes it."""

    def __init__(self, job: Job) -> None:
        config = onnxruntime_genai.Config(job.model)
        options = {"intra_op_num_threads": job.num_threads, "inter_op_num_threads": 1}
        config.overlay(json.dumps({"model": {"decoder": {"session_options": options}}}))
        self._model = onnxruntime_genai.Model(config)

    def prefill(self, prompt: list[int]) -> float:
        return self._start([prompt], 1)[1]

    def decode(self, prompts: list[list[int]], num_steps: int) -> list[float]:
        generator, _ = self._start(prompts, num_steps + 1)
        return [_next_token_seconds(generator) for _ in range(num_steps)]

    def _start(self, prompts: list[list[int]], num_new: int) -> tuple[onnxruntime_genai.Generator, float]:
        """Return a generator that has drawn its first tokens, and the seconds that this took."""
        parameters = onnxruntime_genai.GeneratorParams(self._model)
        length = len(prompts[0]) + num_new
        # Random weights may draw an end token: a least length keeps every sequence going.
        parameters.set_search_options(
            batch_size=len(prompts), max_length=length, min_length=length, do_sample=False, num_beams=1
        )
        generator = onnxruntime_genai.Generator(self._model, parameters)
        tokens = np.array(prompts, dtype=np.int32)
        started = time.perf_counter()
        generator.append_tokens(tokens if len(prompts) > 1 else tokens[0])
        generator.generate_next_token()
        return generator, time.perf_counter() - started


def _next_token_seconds(generator: onnxruntime_genai.Generator) -> float:
    if generator.is_done():
        raise SystemExit("ONNX Runtime ended a sequence early: the figures would be too good")
    started = time.perf_counter()
    generator.generate_next_token()
    return time.perf_counter() - started


def main() -> None:
    names = ("onnxruntime", "onnxruntime-genai")
    serve_job(OnnxRuntimeSession, {name: version(name) for name in names})


if __name__ == "__main__":
    main()
