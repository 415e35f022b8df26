"""llama.cpp through llama-cpp-python's binding of its C interface: one `llama_decode` per step, no sampling timed."""

from __future__ import annotations

import random
import time

import llama_cpp

from peers.protocol import Job, Session, serve_job

STEP_TOKENS = 512


class LlamaSession(Session):
    """A context with one KV cache per sequence."""

    def __init__(self, job: Job) -> None:
        llama_cpp.llama_backend_init()
        parameters = llama_cpp.llama_model_default_params()
        parameters.n_gpu_layers = 0
        self._model = llama_cpp.llama_model_load_from_file(job.model.encode(), parameters)
        if not self._model:
            raise SystemExit(f"llama.cpp did not load {job.model}")
        self._batch = llama_cpp.llama_batch_init(STEP_TOKENS, 0, 1)
        self._random, self._job = random.Random(7), job
        self._context: object | None = None
        self._limits = (0, 0)
        self._open(1, job.prefill_tokens)

    def prefill(self, prompt: list[int]) -> float:
        self._open(1, max(len(prompt), self._job.prefill_tokens))
        return self._read(0, prompt)

    def decode(self, prompts: list[list[int]], num_steps: int) -> list[float]:
        self._open(len(prompts), len(prompts[0]) + num_steps)
        for row, prompt in enumerate(prompts):
            self._read(row, prompt)
        seconds = []
        for position in range(len(prompts[0]), len(prompts[0]) + num_steps):
            step = [(self._random.randrange(self._job.vocab_size), position, row, True) for row in range(len(prompts))]
            seconds.append(self._step(step))
        return seconds

    def _open(self, num_rows: int, num_tokens: int) -> None:
        """Make an empty context for sequences of so many tokens; the cache takes what these need and no more."""
        row_tokens = -(-(num_tokens + 1) // 256) * 256
        if self._context is not None and self._limits == (num_rows, row_tokens):
            llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self._context), True)
            return
        if self._context is not None:
            llama_cpp.llama_free(self._context)
        context = llama_cpp.llama_context_default_params()
        context.n_ctx, context.n_seq_max = num_rows * row_tokens, num_rows
        context.n_batch = context.n_ubatch = STEP_TOKENS
        context.n_threads = context.n_threads_batch = self._job.num_threads
        self._context, self._limits = llama_cpp.llama_init_from_model(self._model, context), (num_rows, row_tokens)
        if not self._context:
            raise SystemExit(f"llama.cpp made no context of {context.n_ctx} tokens")

    def _read(self, row: int, prompt: list[int]) -> float:
        last = len(prompt) - 1
        tokens = [(token, position, row, position == last) for position, token in enumerate(prompt)]
        return sum(self._step(tokens[begin : begin + STEP_TOKENS]) for begin in range(0, len(tokens), STEP_TOKENS))

    def _step(self, tokens: list[tuple[int, int, int, bool]]) -> float:
        """Run (token, position, sequence, wants logits) through the model."""
        batch = self._batch
        batch.n_tokens = len(tokens)
        for index, (token, position, row, wants_logits) in enumerate(tokens):
            batch.token[index], batch.pos[index] = token, position
            batch.n_seq_id[index], batch.seq_id[index][0] = 1, row
            batch.logits[index] = wants_logits
        started = time.perf_counter()
        status = llama_cpp.llama_decode(self._context, batch)
        llama_cpp.llama_synchronize(self._context)
        seconds = time.perf_counter() - started
        if status != 0:
            raise SystemExit(f"llama_decode returned {status}")
        return seconds


def main() -> None:
    flags = llama_cpp.llama_print_system_info().decode().strip()
    serve_job(LlamaSession, {"llama-cpp-python": llama_cpp.__version__, "ggml": flags})


if __name__ == "__main__":
    main()
