"""The key: equal for equal weights and formats, another for any change of either."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

import openautoglm
from openautoglm.checkpoint import packed_key as packed_key_module
from openautoglm.checkpoint.index import Checkpoint
from openautoglm.checkpoint.packed_key import packed_key
from openautoglm.spec.weights import MatrixBinding, MatrixRole, TensorPart, VectorBinding, VectorRole, WeightMap

MATRICES = [(3, 64, 512, 64), (2, 64, 512, 0)]
TENSORS = {"a": (64, 512), "b": (64, 512), "norm": (512,)}
WHEN = (1_700_000_000_000_000_000, 1_700_000_000_000_000_000)


def part(name: str) -> TensorPart:
    return TensorPart(name=name, shape=TENSORS[name], row_begin=0, row_end=TENSORS[name][0])


WEIGHTS = WeightMap(
    matrices=(
        MatrixBinding(role=MatrixRole.EMBEDDING, layer=None, parts=(part("a"),)),
        MatrixBinding(role=MatrixRole.HEAD, layer=None, parts=(part("b"),)),
    ),
    vectors=(VectorBinding(role=VectorRole.FINAL_NORM, layer=None, parts=(part("norm"),)),),
)


def make(directory: Path, seed: int = 0, metadata: dict[str, str] | None = None) -> Path:
    directory.mkdir()
    generator = np.random.default_rng(seed)
    tensors = {name: generator.standard_normal(shape).astype(np.float32) for name, shape in TENSORS.items()}
    save_file(tensors, directory / "model.safetensors", metadata)
    (directory / "config.json").write_text('{"model_type": "glm4"}')
    os.utime(directory / "model.safetensors", ns=WHEN)
    return directory


def key(
    directory: Path, weights: WeightMap = WEIGHTS, matrices: list[tuple[int, int, int, int]] | None = None
) -> bytes:
    with Checkpoint.open(directory) as checkpoint:
        return packed_key(checkpoint, weights, matrices or MATRICES)


def test_it_does_not_depend_on_the_place(tmp_path: Path) -> None:
    first = make(tmp_path / "first")
    before = key(first)
    assert len(before) == 32
    assert key(first) == before
    shutil.copytree(first, tmp_path / "copy")
    assert key(tmp_path / "copy") == before
    assert key(first.rename(tmp_path / "moved")) == before


def touch(directory: Path) -> None:
    os.utime(directory / "model.safetensors", ns=(WHEN[0], WHEN[1] + 1))


def edit_config(directory: Path) -> None:
    (directory / "config.json").write_text('{"model_type": "glm4" }')


def remove_config(directory: Path) -> None:
    (directory / "config.json").unlink()


def change_last_byte(directory: Path) -> None:
    """Change one byte and hide it: size and time stay as they were."""
    path = directory / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=WHEN)


@pytest.mark.parametrize("change", [touch, edit_config, remove_config, change_last_byte])
def test_it_changes_with_the_files(tmp_path: Path, change: Callable[[Path], None]) -> None:
    directory = make(tmp_path / "model")
    before = key(directory)
    change(directory)
    assert key(directory) != before


def test_other_weights_of_the_same_size_and_time_have_another_key(tmp_path: Path) -> None:
    assert key(make(tmp_path / "one", seed=0)) != key(make(tmp_path / "other", seed=1))


def test_it_changes_with_the_header(tmp_path: Path) -> None:
    plain = key(make(tmp_path / "plain"))
    assert key(make(tmp_path / "one", metadata={"format": "pt"})) != plain


def test_it_changes_with_formats_map_and_versions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = make(tmp_path / "model")
    keys = {key(directory)}
    keys.add(key(directory, matrices=[(3, 64, 512, 32), MATRICES[1]]))
    keys.add(key(directory, matrices=[(4, 64, 512, 64), MATRICES[1]]))
    keys.add(key(directory, matrices=MATRICES[::-1]))
    keys.add(key(directory, replace(WEIGHTS, matrices=WEIGHTS.matrices[::-1])))
    halved = replace(WEIGHTS.matrices[0], parts=(replace(part("a"), row_end=32), replace(part("a"), row_begin=32)))
    keys.add(key(directory, replace(WEIGHTS, matrices=(halved, WEIGHTS.matrices[1]))))
    keys.add(key(directory, replace(WEIGHTS, vectors=())))
    with monkeypatch.context() as patch:
        patch.setattr(packed_key_module, "PACKED_LAYOUT_VERSION", 999)
        keys.add(key(directory))
    monkeypatch.setattr(openautoglm, "__version__", "999")
    keys.add(key(directory))
    assert len(keys) == 9


def test_the_hub_cache_is_known_by_its_blobs(tmp_path: Path) -> None:
    made = make(tmp_path / "made")
    snapshot, blobs = tmp_path / "snapshots" / "commit", tmp_path / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    (snapshot / "config.json").write_text('{"model_type": "glm4"}')
    shutil.copy2(made / "model.safetensors", blobs / ("a" * 64))
    shutil.copy2(made / "model.safetensors", blobs / ("b" * 64))
    link = snapshot / "model.safetensors"
    link.symlink_to(Path("../../blobs") / ("a" * 64))
    before = key(snapshot)
    os.utime(blobs / ("a" * 64))
    assert key(snapshot) == before
    link.unlink()
    link.symlink_to(Path("../../blobs") / ("b" * 64))
    assert key(snapshot) != before
