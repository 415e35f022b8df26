"""The executor around the decoder: limits, results, failures, memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from openautoglm.checkpoint.index import Checkpoint
from openautoglm.errors import CheckpointFormatError, ConfigError, EngineError, OutOfMemoryError, UnsupportedModelError
from openautoglm.executor.load import load_model
from openautoglm.executor.native import NativeExecutor
from openautoglm.executor.protocol import StepBatch
from openautoglm.families.debug import debug_config
from openautoglm.families.registry import describe, known_model_types, read_config, weight_map
from openautoglm.memory.kv import kv_block_bytes
from openautoglm.memory.weights import weight_bytes
from openautoglm.memory.workspace import workspace_bytes
from openautoglm.progress import Progress
from openautoglm.spec.arch import ArchSpec
from openautoglm.spec.formats import ActivationScale, ModelFormats, NumberFormat
from tests.executor.runner import Row, Runner, make_batch, make_samples
from tests.executor.tiny_models import load_checkpoint, make_plan, make_reference, save_checkpoint

F32 = ModelFormats.for_quantisation(NumberFormat.F32)
INT4 = ModelFormats.for_quantisation(NumberFormat.INT4)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(make_reference("glm4"), tmp_path_factory.mktemp("models") / "glm4")


@pytest.fixture
def executor(directory: Path) -> Iterator[NativeExecutor]:
    loaded = load_checkpoint(directory, make_plan(F32))
    yield loaded
    loaded.close()


def tokens_of(length: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(0, 160, length).tolist()


# ---- bytes ----


@pytest.mark.parametrize("model_type", ["glm", "glm4", "llama", "mistral", "phi3", "qwen2", "qwen3"])
@pytest.mark.parametrize(("quant", "kv"), [("f32", None), ("int8", None), ("nf4", NumberFormat.INT8)])
def test_memory_is_what_the_formulas_say(model_type: str, quant: str, kv: NumberFormat | None, tmp_path: Path) -> None:
    formats = ModelFormats.for_quantisation(NumberFormat(quant), kv=kv)
    directory = save_checkpoint(make_reference(model_type), tmp_path)
    spec = describe(read_config(directory))
    for num_threads, max_step_tokens, max_step_rows in ((1, 16, 1), (2, 100, 7), (3, 512, 64)):
        plan = make_plan(formats, num_threads=num_threads, max_step_tokens=max_step_tokens, max_step_rows=max_step_rows)
        loaded = load_checkpoint(directory, plan)
        assert loaded.workspace_bytes == workspace_bytes(
            spec, formats, max_step_tokens=max_step_tokens, max_step_rows=max_step_rows, num_threads=num_threads
        )
        assert 0 <= loaded.weight_bytes - weight_bytes(spec, formats).total < 4096
        assert loaded.layout().groups[0].block_bytes == kv_block_bytes(spec, formats.kv)
        assert loaded.kv_bytes == -(-plan.num_blocks * kv_block_bytes(spec, formats.kv) // 4096) * 4096
        loaded.close()


@pytest.mark.parametrize("model_type", known_model_types())
def test_every_known_shape_has_a_priced_workspace(model_type: str) -> None:
    spec = describe(debug_config(model_type))
    sizes = [
        workspace_bytes(spec, INT4, max_step_tokens=tokens, max_step_rows=4, num_threads=2) for tokens in (16, 32, 64)
    ]
    assert 0 < sizes[0] < sizes[1] < sizes[2]


def test_memory_of_the_process_grows_by_the_plan(directory: Path) -> None:
    def anonymous_bytes() -> int:
        text = Path("/proc/self/smaps_rollup").read_text()
        return next(int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith("Anonymous:"))

    load_checkpoint(directory, make_plan(F32)).close()  # whatever a first load takes once
    before = anonymous_bytes()
    loaded = load_checkpoint(directory, make_plan(F32, num_blocks=4096, max_step_tokens=1024))
    loaded.touch()
    planned = loaded.weight_bytes + loaded.kv_bytes + loaded.workspace_bytes
    assert planned > 100 << 20
    assert anonymous_bytes() - before < planned + (4 << 20)
    loaded.close()
    assert anonymous_bytes() - before < 8 << 20


# ---- results ----


def test_results_are_those_that_were_asked_for(executor: NativeExecutor) -> None:
    tokens = tokens_of(30)
    everything = Runner(executor=executor).run(tokens, [0, 1])
    row = Row(tokens=tokens, blocks=[0, 1])
    batch = make_batch([row], make_samples([29, 3, 29], num_logprobs=[-1, 2, 0]), logits=False)
    batch = replace(
        batch,
        logit_indices=np.array([5, 29, 5], dtype=np.int32),
        hidden_indices=np.array([29, 0], dtype=np.int32),
    )
    result = executor.submit(batch).result()
    assert result.logits is not None
    assert result.logits.tobytes() == everything[[5, 29, 5]].tobytes()
    assert result.tokens.tolist() == everything[[29, 3, 29]].argmax(axis=1)[:, None].tolist()
    assert result.num_tokens.tolist() == [1, 1, 1]
    assert result.top_tokens.shape == (3, 2)
    assert result.hidden is not None
    assert result.hidden.shape == (2, 96)
    nothing = executor.submit(make_batch([row], logits=False)).result()
    assert nothing.logits is None
    assert nothing.hidden is None
    assert nothing.tokens.shape == (0, 1)


def test_more_samples_than_a_chunk_of_logits(executor: NativeExecutor) -> None:
    tokens = tokens_of(60)
    expected = Runner(executor=executor).run(tokens, [0, 1, 2, 3]).argmax(axis=1)
    indices = [index % 60 for index in range(130)]
    batch = make_batch([Row(tokens=tokens, blocks=[0, 1, 2, 3])], make_samples(indices), logits=False)
    assert executor.submit(batch).result().tokens[:, 0].tolist() == expected[indices].tolist()


def test_embeddings_replace_the_lookup(executor: NativeExecutor, directory: Path) -> None:
    tokens = tokens_of(20)
    expected = Runner(executor=executor).run(tokens, [0, 1])
    table = load_file(directory / "model.safetensors")["model.embed_tokens.weight"].numpy()
    batch = make_batch([Row(tokens=[-7] * 20, blocks=[2, 3])])
    result = executor.submit(replace(batch, embeddings=np.ascontiguousarray(table[tokens]))).result()
    assert result.logits is not None
    assert result.logits.tobytes() == expected.tobytes()


def test_offset_norms_and_scaled_embeddings(directory: Path, tmp_path: Path) -> None:
    """Weights stored as w - 1 with offset 1, and a table stored at a quarter with scale 4, are the same model."""
    config = read_config(directory)
    spec = describe(config)
    expected = Runner(executor=load_checkpoint(directory, make_plan(F32))).run(tokens_of(20), [0, 1])
    tensors = load_file(directory / "model.safetensors")
    for name, value in tensors.items():
        tensors[name] = value - 1 if "norm" in name else value / 4 if "embed_tokens" in name else value
    save_file(tensors, tmp_path / "model.safetensors")

    def offset(given: ArchSpec) -> ArchSpec:
        norm = replace(given.final_norm, weight_offset=1.0)
        layers = tuple(replace(layer, norm=replace(layer.norm, weight_offset=1.0)) for layer in given.layers)
        return replace(given, layers=layers, final_norm=norm, embedding_scale=4.0)

    with Checkpoint.open(tmp_path) as checkpoint:
        shapes = {name: tensor.shape for name, tensor in checkpoint.tensors.items()}
        loaded = load_model(checkpoint, offset(spec), weight_map(spec, config, shapes), make_plan(F32))
    assert np.abs(Runner(executor=loaded).run(tokens_of(20), [0, 1]) - expected).max() < 1e-4 * expected.std()


def test_a_step_beats_once_per_layer(executor: NativeExecutor) -> None:
    counter = np.zeros(1, dtype=np.uint64)
    executor.set_heartbeat(counter)
    Runner(executor=executor).run(tokens_of(20), [0, 1], chunk=10)
    assert counter[0] == 6
    executor.set_heartbeat(None)
    Runner(executor=executor).run(tokens_of(4), [0])
    assert counter[0] == 6


def test_blocks_travel_between_executors(executor: NativeExecutor, directory: Path) -> None:
    tokens = tokens_of(40)
    expected = Runner(executor=executor).run(tokens, [4, 5, 6])
    other = load_checkpoint(directory, make_plan(F32, num_threads=1))
    other.import_blocks([9, 8], executor.export_blocks([4, 5]))
    row = Row(tokens=tokens[32:], blocks=[9, 8, 7], begin=32)
    assert Runner(executor=other).step([row])[0].tobytes() == expected[32:].tobytes()
    other.copy_blocks([(9, 1), (8, 2)])
    row = Row(tokens=tokens[32:], blocks=[1, 2, 3], begin=32)
    assert Runner(executor=other).step([row])[0].tobytes() == expected[32:].tobytes()
    other.close()


def test_trimming_keeps_live_blocks(executor: NativeExecutor) -> None:
    tokens = tokens_of(40)
    expected = Runner(executor=executor).run(tokens, [4, 5, 6])
    executor.trim([4, 5, 6])
    row = Row(tokens=tokens[32:], blocks=[4, 5, 6], begin=32)
    assert Runner(executor=executor).step([row])[0].tobytes() == expected[32:].tobytes()


# ---- failures ----


def broken(batch: StepBatch, **changes: object) -> StepBatch:
    return replace(batch, **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokens": np.array([1, 160], dtype=np.int32)}, "token 160 of row 0 is not in the vocabulary"),
        ({"tokens": np.array([1, -1], dtype=np.int32)}, "token -1"),
        ({"tokens": np.array([1, 2], dtype=np.int64)}, "tokens is not a contiguous array"),
        ({"positions": np.array([3, 5], dtype=np.int32)}, "not consecutive"),
        ({"positions": np.array([255, 256], dtype=np.int32)}, r"position 256 of row 0 is not in \[0, 256\)"),
        ({"positions": np.array([-1, 0], dtype=np.int32)}, "position -1"),
        ({"positions": np.zeros((3, 2), dtype=np.int32)}, "positions has the wrong shape"),
        ({"positions": np.array([31, 32], dtype=np.int32)}, "its table has only 2 blocks"),
        ({"row_offsets": np.array([0, 1], dtype=np.int32)}, "row offsets"),
        ({"row_offsets": np.array([], dtype=np.int32)}, "row_offsets"),
        ({"block_tables": (np.array([[64, 1]], dtype=np.int32),)}, "which is 64 of 64 blocks"),
        ({"block_tables": (np.array([[-1, 1]], dtype=np.int32),)}, "which is -1"),
        ({"block_tables": ()}, "one cache group"),
        ({"logit_indices": np.array([2], dtype=np.int32)}, "logit_indices holds 2"),
        ({"hidden_indices": np.array([-1], dtype=np.int32)}, "hidden_indices holds -1"),
        ({"embeddings": np.zeros((2, 95), dtype=np.float32)}, "embeddings has the wrong shape"),
        ({"adapter_slots": np.array([0], dtype=np.int32)}, "adapters"),
        ({"sample": make_samples([2])}, "token index"),
    ],
)
def test_bad_batches_are_refused_and_change_nothing(
    executor: NativeExecutor, changes: dict[str, object], message: str
) -> None:
    good = make_batch([Row(tokens=[1, 2], blocks=[0, 1])])
    before = executor.submit(good).result()
    with pytest.raises(EngineError, match=message):
        executor.submit(broken(good, **changes)).result()
    after = executor.submit(good).result()
    assert before.logits is not None
    assert after.logits is not None
    assert after.logits.tobytes() == before.logits.tobytes()


def test_steps_over_the_limits_are_refused(executor: NativeExecutor) -> None:
    with pytest.raises(EngineError, match="limit of 128 tokens in 16 rows"):
        executor.submit(make_batch([Row(tokens=[1] * 129, blocks=range(9))])).result()
    with pytest.raises(EngineError, match="limit of 128 tokens in 16 rows"):
        executor.submit(make_batch([Row(tokens=[1], blocks=[row]) for row in range(17)])).result()


def test_an_empty_step_is_no_step(executor: NativeExecutor) -> None:
    empty = np.zeros(0, dtype=np.int32)
    tables = (np.zeros((0, 0), dtype=np.int32),)
    batch = StepBatch(tokens=empty, positions=empty, row_offsets=np.zeros(1, dtype=np.int32), block_tables=tables)
    assert executor.submit(batch).result().tokens.shape == (0, 1)


def test_a_closed_executor_says_so(directory: Path) -> None:
    loaded = load_checkpoint(directory, make_plan(F32))
    loaded.close()
    loaded.close()
    with pytest.raises(EngineError, match="closed"):
        loaded.layout()


@pytest.mark.parametrize(
    ("model_type", "features"),
    [
        ("glm", ()),
        ("glm4", ()),
        ("llama", ()),
        ("mistral", ()),
        ("qwen2", ()),
        ("qwen3", ()),
        ("glm4v", ("vision tower", "multi-axis rotary positions")),
        ("glm4_moe", ("mixture of experts",)),
        ("glm4_moe_lite", ("multi-head latent attention", "mixture of experts")),
        ("gemma3_text", ("gelu_tanh activation",)),
        ("phi", ("ungated MLP", "MLP bias", "gelu_new activation", "parallel attention and MLP", "layer norm")),
    ],
)
def test_what_cannot_run_is_named(model_type: str, features: tuple[str, ...]) -> None:
    assert set(features) == set(NativeExecutor.supports(describe(debug_config(model_type)))) - {"output head bias"}


def test_an_unsupported_model_is_refused_before_anything_is_read(directory: Path) -> None:
    config = read_config(directory)
    spec = describe(config)
    with Checkpoint.open(directory) as checkpoint:
        shapes = {name: tensor.shape for name, tensor in checkpoint.tensors.items()}
        weights = weight_map(spec, config, shapes)
        with pytest.raises(UnsupportedModelError, match="output head bias") as caught:
            load_model(checkpoint, replace(spec, head_bias=True), weights, make_plan(F32))
    assert caught.value.features == ("output head bias",)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("model.layers.1.mlp.gate_up_proj.weight", float("nan")),
        ("model.layers.0.self_attn.k_proj.weight", float("inf")),
        ("model.embed_tokens.weight", float("-inf")),
        ("model.layers.2.post_mlp_layernorm.weight", float("nan")),
    ],
)
def test_weights_that_are_not_finite_are_refused(directory: Path, tmp_path: Path, name: str, value: float) -> None:
    tensors = load_file(directory / "model.safetensors")
    tensors[name] = tensors[name].clone()
    tensors[name].view(-1)[-1] = value
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_bytes((directory / "config.json").read_bytes())
    with pytest.raises(CheckpointFormatError, match=name.replace(".", r"\.")):
        load_checkpoint(tmp_path, make_plan(INT4))


def test_what_does_not_fit_is_named(directory: Path) -> None:
    with pytest.raises(OutOfMemoryError, match="KV pool of 1000000000000 blocks"):
        load_checkpoint(directory, make_plan(F32, num_blocks=10**12))
    with pytest.raises(OutOfMemoryError, match="workspace of steps of 1000000000000 tokens"):
        load_checkpoint(directory, make_plan(F32, max_step_tokens=10**12))


def test_instruction_sets_are_chosen_by_name(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAUTOGLM_ISA", "scalar")
    loaded = load_checkpoint(directory, make_plan(F32))
    assert loaded.instruction_set == "scalar"
    monkeypatch.setenv("OPENAUTOGLM_ISA", "z80")
    with pytest.raises(ConfigError, match="z80"):
        load_checkpoint(directory, make_plan(F32))


def test_fingerprints_tell_weights_and_formats_apart(directory: Path, tmp_path: Path) -> None:
    other = save_checkpoint(make_reference("glm4", seed=1), tmp_path)
    per_token = ModelFormats.for_quantisation(NumberFormat.INT4, activations=ActivationScale.TOKEN)
    prints = [
        load_checkpoint(path, make_plan(formats)).determinism()
        for path, formats in (
            (directory, INT4),
            (directory, INT4),
            (directory, per_token),
            (directory, replace(INT4, kv=NumberFormat.INT8)),
            (directory, replace(INT4, kv=NumberFormat.FP8)),
            (directory, F32),
            (other, INT4),
        )
    ]
    assert prints[0] == prints[1]
    assert len(set(prints)) == 6


def test_progress_ends_at_the_total(directory: Path) -> None:
    config = read_config(directory)
    spec = describe(config)
    news: list[Progress] = []
    with Checkpoint.open(directory) as checkpoint:
        shapes = {name: tensor.shape for name, tensor in checkpoint.tensors.items()}
        load_model(checkpoint, spec, weight_map(spec, config, shapes), make_plan(F32), progress=news.append)
        assert news[-1].done_bytes == news[-1].total_bytes == checkpoint.total_bytes
    assert [item.done_bytes for item in news] == sorted(item.done_bytes for item in news)
    assert {item.stage for item in news} == {"load"}


def test_slices_of_any_size_give_the_same_weights(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = Runner(executor=load_checkpoint(directory, make_plan(INT4))).run(tokens_of(20), [0, 1])
    for rows in (7, 33):
        monkeypatch.setattr(Checkpoint, "rows_per_slice", lambda *_, rows=rows: rows)
        assert Runner(executor=load_checkpoint(directory, make_plan(INT4))).run(tokens_of(20), [0, 1]).tobytes() == (
            expected.tobytes()
        )
