"""Write a checkpoint of random weights in the shape of a real model, with a tokenizer and a chat template.

    tools/make_checkpoint.py edge --shape-from glm-edge-1.5b-chat --output /tmp
    tools/make_checkpoint.py tiny --shape-from debug:glm4
    tools/make_checkpoint.py mine --shape-from path/to/config.json --layers 4 --dtype f16 --shard-size 256MiB

Families: llama, mistral, qwen2, qwen3, glm, glm4. Memory stays below some 100 MiB whatever the size. Every tensor is
drawn anew from (seed, its number), norms around 1, biases not zero. Token ids that end an answer are those of the
tokenizer written here, not of the model whose shape is borrowed.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from pathlib import Path

from checkpoint_shapes import FAMILIES, Kind, load_config, tensor_shapes
from checkpoint_tokenizer import write_tokenizer
from checkpoint_writer import ITEM_BYTES, Filling, write_weights
from openautoglm.errors import ConfigError
from openautoglm.units import format_bytes, parse_bytes

DEFAULT_DEVIATION = 0.02
CONFIG_DTYPES = {"bf16": "bfloat16", "f16": "float16", "f32": "float32"}


def parse_arguments(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("name", help="name of the directory to make")
    parser.add_argument("--shape-from", required=True, metavar="SOURCE", help="config, debug:<model_type> or fixture")
    parser.add_argument("--output", type=Path, default=Path(), metavar="DIR", help="where to make it (here)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scale", type=float, default=1.0, help="factor on the standard deviation of weights")
    parser.add_argument("--dtype", choices=sorted(ITEM_BYTES), default="bf16")
    parser.add_argument("--shard-size", default="1GiB", metavar="SIZE", help="largest shard (1GiB)")
    parser.add_argument("--layers", type=int, metavar="N", help="so many layers instead of the model's")
    return parser.parse_args(arguments)


def make_checkpoint(options: argparse.Namespace) -> Path:
    """Write the checkpoint beside its final place, then move it there: what has the name is complete."""
    target: Path = options.output / options.name
    if target.exists():
        sys.exit(f"{target} exists: remove it, or choose another name")
    config = load_config(options.shape_from, options.layers)
    partial = target.with_name(f"{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        _write(partial, config, options)
        partial.rename(target)
    except BaseException:
        shutil.rmtree(partial)
        raise
    return target


def _write(directory: Path, config: dict[str, object], options: argparse.Namespace) -> None:
    vocab_size, deviation = config["vocab_size"], config.get("initializer_range", DEFAULT_DEVIATION)
    if not isinstance(vocab_size, int) or not isinstance(deviation, int | float):
        sys.exit("config: vocab_size must be an integer and initializer_range a number")
    ends = write_tokenizer(directory, vocab_size)
    tokens = {"bos_token_id": None, "eos_token_id": ends, "pad_token_id": ends[0]}
    family = FAMILIES[str(config["model_type"])]
    config = {**config, **tokens, "architectures": [family.architecture], "dtype": CONFIG_DTYPES[options.dtype]}
    (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    generation = {"eos_token_id": ends, "pad_token_id": ends[0]}
    (directory / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")
    shapes = tensor_shapes(config)
    filling = Filling(seed=options.seed, deviation=deviation * options.scale, dtype=options.dtype)
    num_matrices = sum(shape.kind is Kind.MATRIX for shape in shapes)
    print(f"{len(shapes)} tensors, {num_matrices} of them matrices", file=sys.stderr)
    for path in write_weights(directory, shapes, filling, parse_bytes(options.shard_size)):
        print(f"{path.name}: {format_bytes(path.stat().st_size)}", file=sys.stderr)


def main() -> None:
    options = parse_arguments(sys.argv[1:])
    started = time.monotonic()
    try:
        target = make_checkpoint(options)
    except ConfigError as error:
        sys.exit(str(error))
    print(f"{time.monotonic() - started:.1f} s", file=sys.stderr)
    print(target)


if __name__ == "__main__":
    main()
