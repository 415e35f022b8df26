"""OpenVINO GenAI: the continuous batching pipeline, which its `LLMPipeline` runs on CPUs too, stepped by hand.

Job options are the CPU plugin's properties.
"""

from __future__ import annotations

import time
from importlib.metadata import version

import numpy as np
import openvino
import openvino_genai

from peers.protocol import Job, Session, serve_job

STEP_TOKENS = 512
BLOCK_TOKENS = 32


class OpenVinoSession(Session):
    """A pipeline whose KV cache has room for the largest batch from the start."""

    def __init__(self, job: Job) -> None:
        rows = max(job.decode_batches)
        scheduler = openvino_genai.SchedulerConfig()
        scheduler.max_num_batched_tokens = max(STEP_TOKENS, job.prefill_tokens)
        scheduler.max_num_seqs = rows
        scheduler.enable_prefix_caching = False
        # Sequences whose prompts are read first decode while the others' prompts are still being read.
        ahead = 1 + rows * job.decode_prompt_tokens // STEP_TOKENS
        self._ahead_steps = ahead
        tokens_each = job.decode_prompt_tokens + job.decode_new_tokens + ahead
        blocks = rows * (-(-tokens_each // BLOCK_TOKENS) + 1)
        scheduler.num_kv_blocks = max(blocks, -(-job.prefill_tokens // BLOCK_TOKENS) + 2)
        properties = {"INFERENCE_NUM_THREADS": job.num_threads, "PERFORMANCE_HINT": "LATENCY", **job.options}
        self._pipeline = openvino_genai.ContinuousBatchingPipeline(job.model, scheduler, "CPU", properties)
        self._next_id = 0

    def prefill(self, prompt: list[int]) -> float:
        handle = self._add(prompt, 1)
        seconds = 0.0
        while self._pipeline.has_non_finished_requests():
            seconds += self._step()
        if len(handle.read_all()[0].generated_ids) != 1:
            raise SystemExit("OpenVINO did not answer the prompt with one token")
        return seconds

    def decode(self, prompts: list[list[int]], num_steps: int) -> list[float]:
        handles = [self._add(prompt, num_steps + self._ahead_steps + 1) for prompt in prompts]
        waiting = list(handles)
        while waiting:
            self._step()
            waiting = [handle for handle in waiting if not handle.can_read()]
        for handle in handles:
            handle.read()
        seconds = []
        for _ in range(num_steps):
            seconds.append(self._step())
            if not all(handle.can_read() and handle.read() for handle in handles):
                raise SystemExit("OpenVINO left a sequence out of a step: the figures would be too good")
        for handle in handles:
            handle.stop()
        while self._pipeline.has_non_finished_requests():
            self._step()
        return seconds

    def _add(self, prompt: list[int], max_new_tokens: int) -> openvino_genai.GenerationHandle:
        config = openvino_genai.GenerationConfig()
        config.max_new_tokens, config.ignore_eos, config.do_sample = max_new_tokens, True, False
        tokens = openvino.Tensor(np.array([prompt], dtype=np.int64))
        self._next_id += 1
        return self._pipeline.add_request(self._next_id, tokens, config)

    def _step(self) -> float:
        started = time.perf_counter()
        self._pipeline.step()
        return time.perf_counter() - started


def main() -> None:
    names = ("openvino", "openvino-genai")
    serve_job(OpenVinoSession, {name: version(name) for name in names})


if __name__ == "__main__":
    main()
