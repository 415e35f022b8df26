"""Train the demo model: a small GLM-4-architecture language model on the text that ships with Python.

    python tools/train_demo.py --minutes 80 --output build/demo      # train, then measure
    python tools/train_demo.py --evaluate-only --output build/demo   # measure a checkpoint on the held-out files

The run is bounded by wall-clock minutes (or steps): the learning rate falls to zero at the end of the budget.
Every few minutes the checkpoint and the training state are written; `--resume` continues from them.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from tokenizers import Tokenizer
from torch import Tensor

from demo_batches import Corpus, Mixer, load_corpus
from demo_checkpoint import measure, read_checkpoint, write_checkpoint
from demo_muon import Muon
from demo_network import Network, Shape
from demo_tokenizer import train_tokenizer

STATE_NAME = "training_state.pt"
LOG_EVERY_STEPS = 20
MUON_RATE = 0.02
ADAM_RATE = 3e-3
WARMUP_FRACTION = 0.01
DECAY_FRACTION = 0.6


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """A part of the run: where it starts (share of the budget), its batches, and the share of conversations."""

    start: float
    rows: int
    tokens: int
    chat_share: float


# Short windows are cheaper per token; the last ones teach the positions up to the model's limit. Conversations weigh
# more once the learning rate falls: that is when answers are remembered.
STAGES = (
    Stage(start=0.0, rows=16, tokens=256, chat_share=0.13),
    Stage(start=0.6, rows=8, tokens=512, chat_share=0.30),
    Stage(start=0.9, rows=2, tokens=2048, chat_share=0.30),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """The end of the run: wall-clock seconds, or steps when given."""

    seconds: float
    steps: int | None

    def progress(self, elapsed_seconds: float, step: int) -> float:
        """The share of the budget that is used, from 0 to 1."""
        used = step / self.steps if self.steps is not None else elapsed_seconds / self.seconds
        return min(used, 1.0)


@dataclass(slots=True)
class Counters:
    """What the run has done so far; kept in the training state."""

    step: int = 0
    num_tokens: int = 0
    elapsed_seconds: float = 0.0


def rate_factor(progress: float) -> float:
    """Trapezoid: a short rise, a plateau, and a straight fall to zero at the end of the budget."""
    rise = progress / WARMUP_FRACTION if progress < WARMUP_FRACTION else 1.0
    return min(rise + 0.02, 1.0, (1.0 - progress) / DECAY_FRACTION)


def current_stage(progress: float) -> Stage:
    """The stage at this point of the run."""
    return [stage for stage in STAGES if progress >= stage.start][-1]


class Trainer:
    """Network, its two optimisers, the data and the counters."""

    def __init__(self, tokenizer: Tokenizer, corpus: Corpus, budget: Budget, options: argparse.Namespace) -> None:
        torch.manual_seed(options.seed)
        self.tokenizer = tokenizer
        self.corpus = corpus
        self.budget = budget
        self.output: Path = options.output
        self.save_seconds = 60.0 * options.save_minutes
        self.counters = Counters()
        self.network = Network(Shape(), compute_dtype=torch.bfloat16)
        self.loss: Callable[[Tensor, Tensor], Tensor] = self.network.loss
        if options.compile:
            self.loss = cast("Callable[[Tensor, Tensor], Tensor]", torch.compile(self.network.loss, dynamic=False))
        matrices = [
            parameter
            for name, parameter in self.network.named_parameters()
            if parameter.ndim == 2 and "embed_tokens" not in name
        ]
        chosen = {id(parameter) for parameter in matrices}
        others = [parameter for parameter in self.network.parameters() if id(parameter) not in chosen]
        self.muon = Muon(matrices, momentum=0.95, weight_decay=0.04, num_steps=5, dtype=torch.bfloat16)
        self.adam = torch.optim.AdamW(others, lr=ADAM_RATE, betas=(0.9, 0.95), weight_decay=0.0)
        self.seed: int = options.seed

    def save(self) -> None:
        """Write the checkpoint and what `--resume` needs."""
        write_checkpoint(self.network, self.tokenizer, self.output)
        counters = self.counters
        state = {
            "network": self.network.state_dict(),
            "muon": self.muon.state(),
            "adam": self.adam.state_dict(),
            "counters": [counters.step, counters.num_tokens, counters.elapsed_seconds],
        }
        partial = self.output / f"{STATE_NAME}.partial"
        torch.save(state, partial)
        partial.rename(self.output / STATE_NAME)

    def resume(self) -> None:
        """Continue a run that was cut; the data order starts anew with a seed that depends on the step."""
        state = torch.load(self.output / STATE_NAME, weights_only=True)
        self.network.load_state_dict(state["network"])
        self.muon.load_state(state["muon"])
        self.adam.load_state_dict(state["adam"])
        step, num_tokens, elapsed_seconds = state["counters"]
        self.counters = Counters(int(step), int(num_tokens), float(elapsed_seconds))

    def step(self, mixer: Mixer, progress: float) -> float:
        """One update; returns the loss in nats per token."""
        stage = current_stage(progress)
        inputs, targets = mixer.batch(stage.rows, stage.tokens, chat_share=stage.chat_share)
        factor = rate_factor(progress)
        self.network.zero_grad(set_to_none=True)
        loss = self.loss(inputs, targets)
        torch.autograd.backward(loss)
        for group in self.adam.param_groups:
            group["lr"] = ADAM_RATE * factor
        self.adam.step()
        self.muon.step(MUON_RATE * factor)
        self.counters.step += 1
        self.counters.num_tokens += stage.rows * stage.tokens
        return float(loss.detach())

    def run(self) -> None:
        """Train until the budget is used; the final weights are written before this returns."""
        mixer = Mixer(self.tokenizer, self.corpus, seed=self.seed + self.counters.step)
        print(
            f"tokens per pass: library {mixer.library.stream.num_tokens:,}, tests {mixer.tests.stream.num_tokens:,}, "
            f"conversations {mixer.chat.stream.num_tokens:,}",
            flush=True,
        )
        started = time.monotonic() - self.counters.elapsed_seconds
        saved = started
        losses: list[float] = []
        while True:
            self.counters.elapsed_seconds = time.monotonic() - started
            progress = self.budget.progress(self.counters.elapsed_seconds, self.counters.step)
            if progress >= 1.0:
                break
            losses.append(self.step(mixer, progress))
            if not math.isfinite(losses[-1]):
                raise FloatingPointError(f"the loss is {losses[-1]} at step {self.counters.step}; lower the rates")
            if self.counters.step % LOG_EVERY_STEPS == 0:
                self.report(losses, progress)
                losses.clear()
            if time.monotonic() - saved > self.save_seconds:
                self.save()
                saved = time.monotonic()
        self.save()

    def report(self, losses: list[float], progress: float) -> None:
        """Print one line of the loss curve: the mean loss since the last line, and the counters."""
        counters = self.counters
        print(
            f"step {counters.step} progress {progress:.3f} loss {sum(losses) / len(losses):.4f} "
            f"tokens {counters.num_tokens:,} seconds {counters.elapsed_seconds:.0f} "
            f"rate {counters.num_tokens / max(counters.elapsed_seconds, 1e-9):.0f} tok/s",
            flush=True,
        )


def evaluate(directory: Path, corpus: Corpus) -> None:
    """Print the held-out figures of the checkpoint in `directory`."""
    network, tokenizer = read_checkpoint(directory, compute_dtype=torch.bfloat16)
    result = measure(network, tokenizer, corpus.held_out)
    print(
        f"held-out: {result.bits_per_byte:.4f} bits per byte, {result.nats_per_token:.4f} nats per token "
        f"({result.num_documents} files, {result.num_bytes:,} bytes, {result.num_tokens:,} tokens)",
        flush=True,
    )


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train or measure the demo model.")
    parser.add_argument("--output", type=Path, required=True, help="directory of the checkpoint")
    parser.add_argument("--minutes", type=float, default=80.0, help="wall-clock budget of the training loop")
    parser.add_argument("--steps", type=int, default=None, help="budget in steps instead of minutes")
    parser.add_argument("--save-minutes", type=float, default=4.0, help="time between intermediate checkpoints")
    parser.add_argument("--threads", type=int, default=1, help="processor threads")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True, help="use torch.compile")
    parser.add_argument("--resume", action="store_true", help="continue from the training state in --output")
    parser.add_argument("--evaluate-only", action="store_true", help="measure the checkpoint in --output and stop")
    options = parser.parse_args(arguments)
    if options.minutes <= 0 or (options.steps is not None and options.steps <= 0):
        parser.error("--minutes and --steps must be positive")
    return options


def main(arguments: list[str]) -> int:
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    corpus = load_corpus(seed=options.seed)
    if not options.evaluate_only:
        if options.resume:
            tokenizer = Tokenizer.from_file(str(options.output / "tokenizer.json"))
        else:
            texts = [document.text for document in corpus.library]
            tokenizer = train_tokenizer([*texts, *(text for talk in corpus.conversations[:4000] for _, text in talk)])
        budget = Budget(seconds=60.0 * options.minutes, steps=options.steps)
        trainer = Trainer(tokenizer, corpus, budget, options)
        if options.resume:
            trainer.resume()
        trainer.run()
    evaluate(options.output, corpus)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
