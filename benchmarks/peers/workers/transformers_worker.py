"""transformers on PyTorch: eager forward passes with a dynamic cache; the head runs for the last token only.

Job option `dtype`: bfloat16 or float32.
"""

from __future__ import annotations

import time

import torch
import transformers

from peers.protocol import Job, Session, serve_job


class TransformersSession(Session):
    """A model with scaled-dot-product attention, the library's default."""

    def __init__(self, job: Job) -> None:
        torch.set_num_threads(job.num_threads)
        torch.set_grad_enabled(False)
        dtype = {"bfloat16": torch.bfloat16, "float32": torch.float32}[job.options["dtype"]]
        self._model = transformers.AutoModelForCausalLM.from_pretrained(job.model, dtype=dtype)
        self._cache: transformers.Cache | None = None

    def prefill(self, prompt: list[int]) -> float:
        self._cache = transformers.DynamicCache(config=self._model.config)
        return self._step(torch.tensor([prompt]))[1]

    def decode(self, prompts: list[list[int]], num_steps: int) -> list[float]:
        self._cache = transformers.DynamicCache(config=self._model.config)
        tokens, _ = self._step(torch.tensor(prompts))
        seconds = []
        for _ in range(num_steps):
            tokens, step_seconds = self._step(tokens)
            seconds.append(step_seconds)
        self._cache = None
        return seconds

    def _step(self, tokens: torch.Tensor) -> tuple[torch.Tensor, float]:
        """Read tokens [B, T]; return the greedy next ones [B, 1] and the seconds."""
        started = time.perf_counter()
        output = self._model(input_ids=tokens, past_key_values=self._cache, use_cache=True, logits_to_keep=1)
        following = output.logits[:, -1:].argmax(dim=-1)
        return following, time.perf_counter() - started


def main() -> None:
    serve_job(TransformersSession, {"transformers": transformers.__version__, "torch": torch.__version__})


if __name__ == "__main__":
    main()
