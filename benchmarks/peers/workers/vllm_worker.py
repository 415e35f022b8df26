"""vLLM's CPU build: its engine in this process, stepped by hand. Job options are arguments of the engine, as JSON."""

from __future__ import annotations

import json
import os
import time
from importlib.metadata import version

from peers.protocol import Job, Session, serve_job

STEP_TOKENS = 512
BLOCK_TOKENS = 128


class VllmSession(Session):
    """An engine without prefix cache; it is imported late, as the environment decides how it starts."""

    def __init__(self, job: Job) -> None:
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        # A limit, in whole GiB; what is taken is the number of blocks below.
        os.environ["VLLM_CPU_KVCACHE_SPACE"] = "4"
        os.environ["OMP_NUM_THREADS"] = str(job.num_threads)
        import vllm

        self._sampling = vllm.SamplingParams
        arguments = {name: json.loads(value) for name, value in job.options.items()}
        rows = max(job.decode_batches)
        self._ahead_steps = 1 + rows * job.decode_prompt_tokens // STEP_TOKENS
        row_tokens = job.decode_prompt_tokens + job.decode_new_tokens + self._ahead_steps + 1
        blocks = rows * -(-row_tokens // BLOCK_TOKENS)
        engine = vllm.LLM(
            model=job.model,
            max_model_len=max(job.prefill_tokens + 1, row_tokens),
            block_size=BLOCK_TOKENS,
            num_gpu_blocks_override=max(blocks, -(-job.prefill_tokens // BLOCK_TOKENS) + 1) + 1,
            max_num_seqs=rows,
            max_num_batched_tokens=max(STEP_TOKENS, job.prefill_tokens),
            enable_prefix_caching=False,
            skip_tokenizer_init=True,
            seed=0,
            **arguments,
        )
        self._engine = engine.llm_engine
        self._next_id = 0

    def prefill(self, prompt: list[int]) -> float:
        self._add(prompt, 1)
        return self._run_out()

    def decode(self, prompts: list[list[int]], num_steps: int) -> list[float]:
        names = [self._add(prompt, num_steps + self._ahead_steps + 1) for prompt in prompts]
        lengths = dict.fromkeys(names, 0)
        while min(lengths.values()) == 0:
            self._step(lengths)
        seconds = []
        for _ in range(num_steps):
            before = sum(lengths.values())
            seconds.append(self._step(lengths))
            if sum(lengths.values()) != before + len(prompts):
                raise SystemExit("vLLM left a sequence out of a step: the figures would be too good")
        self._engine.abort_request(names)
        self._run_out()
        return seconds

    def _add(self, prompt: list[int], num_new: int) -> str:
        self._next_id += 1
        sampling = self._sampling(temperature=0.0, max_tokens=num_new, ignore_eos=True, detokenize=False)
        name = str(self._next_id)
        self._engine.add_request(name, {"prompt_token_ids": prompt}, sampling)
        return name

    def _step(self, lengths: dict[str, int]) -> float:
        started = time.perf_counter()
        outputs = self._engine.step()
        seconds = time.perf_counter() - started
        lengths.update({output.request_id: len(output.outputs[0].token_ids) for output in outputs})
        return seconds

    def _run_out(self) -> float:
        seconds = 0.0
        while self._engine.has_unfinished_requests():
            seconds += self._step({})
        return seconds


def main() -> None:
    serve_job(VllmSession, {"vllm-cpu": version("vllm-cpu"), "torch": version("torch")})


if __name__ == "__main__":
    main()
