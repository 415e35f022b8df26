"""Loading: stream a checkpoint slice by slice into packed weights, then set aside KV pool and workspace."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import numpy as np

import openautoglm
from openautoglm.checkpoint.index import Checkpoint
from openautoglm.checkpoint.packed import PackedCache
from openautoglm.errors import CheckpointFormatError, ConfigError, OutOfMemoryError, UnsupportedModelError
from openautoglm.executor.description import (
    FORMAT_NUMBERS,
    MatrixKey,
    VectorKey,
    describe_decoder,
    matrix_format,
)
from openautoglm.executor.native import NativeExecutor, NativeModel
from openautoglm.executor.packed import LOAD_STAGE, PackedLoad, PackedRecord, worth_caching
from openautoglm.executor.protocol import Float32
from openautoglm.executor.slices import Rows, binding_bytes, matrix_slices, read_vector
from openautoglm.executor.supports import unsupported_features
from openautoglm.memory.kv import kv_block_bytes
from openautoglm.memory.ledger import Ledger, Reservation
from openautoglm.native import _core
from openautoglm.progress import Progress, ProgressCallback
from openautoglm.spec.arch import ArchSpec
from openautoglm.spec.formats import ModelFormats
from openautoglm.spec.plan import Plan
from openautoglm.spec.weights import MatrixBinding, MatrixRole, WeightMap
from openautoglm.units import MIB, format_bytes

KV_SLAB_BYTES = 8 * MIB
ISA_VARIABLE = "OPENAUTOGLM_ISA"

_SAMPLE_STRIDE_BYTES = 61
_GROUP_NAMES = {
    MatrixRole.QKV: "attention",
    MatrixRole.ATTENTION_OUTPUT: "attention",
    MatrixRole.GATE_UP: "MLP",
    MatrixRole.DOWN: "MLP",
    MatrixRole.HEAD: "head",
    MatrixRole.EMBEDDING: "embeddings",
}


def load_model(
    checkpoint: Checkpoint,
    spec: ArchSpec,
    weights: WeightMap,
    plan: Plan,
    *,
    progress: ProgressCallback | None = None,
    cache: PackedCache | None = None,
    ledger: Ledger | None = None,
    most_kv_bytes: int = 0,
) -> NativeExecutor:
    """Load a checkpoint as `plan` says and return the executor, ready for its first step.

    Peak bytes: weights, KV pool and workspace of the plan, and at most two slices of 64 MiB; `ledger` is charged for
    each before its bytes are taken, until the executor is closed. The checkpoint stays open; the page cache keeps none
    of it. `OPENAUTOGLM_ISA` chooses the kernels, by default the best. `cache` keeps the packed weights for the next
    load: by bytes the same as packing them again, and it never makes a load fail. A plan with layers on disk keeps them
    in a file of the cache, which it needs then. The KV pool can grow to `most_kv_bytes`, if that is more than the
    plan's: addresses are reserved for them, no memory.

    Raises `UnsupportedModelError` naming the features, `CheckpointFormatError` naming the tensor whose values cannot be
    packed, `OutOfMemoryError` naming what did not fit, `ConfigError` for an instruction set that cannot run here or a
    directory that cannot hold weights.
    """
    features = unsupported_features(spec)
    if features:
        raise UnsupportedModelError(f"this model cannot run here: it has {', '.join(features)}", features=features)
    with ExitStack() as charges, _named_allocation("the load's own bookkeeping"):

        def charge(name: str, num_bytes: int) -> Reservation | None:
            return None if ledger is None else charges.enter_context(ledger.reserve(name, num_bytes))

        with _named_allocation(f"{plan.num_threads} threads"):
            pool = _core.ThreadPool(plan.num_threads)
        charge("weights", plan.breakdown.weight_bytes)
        if plan.breakdown.ring_bytes:
            charge("ring of weights on disk", plan.breakdown.ring_bytes)
        loader = _Loader(checkpoint, spec, weights, plan, pool, progress)
        loader.load(cache)
        kv_charge = charge("KV pool", plan.breakdown.kv_bytes)
        kv = _kv_pool(spec, plan, most_kv_bytes)
        workspace_charge = charge("workspace", plan.breakdown.workspace_bytes)
        decoder = _decoder(spec, plan, loader, pool, kv)
        model = NativeModel(
            decoder=decoder,
            store=loader.store,
            kv=kv,
            num_layers=spec.num_layers,
            max_step_rows=plan.max_step_rows,
            vocab_size=spec.vocab_size,
            hidden_size=spec.hidden_size,
            weight_bytes=loader.store.allocated_bytes + sum(vector.nbytes for vector in loader.vectors.values()),
            direct_reads=loader.direct_reads,
            fingerprint=_fingerprint(loader.weights_digest(), spec, plan.formats, decoder.instruction_set),
            weight_groups=loader.group_bytes(),
            packed_file=loader.packed_file,
        )
        return NativeExecutor(model, charges=charges.pop_all(), kv_charge=kv_charge, workspace_charge=workspace_charge)


def _kv_pool(spec: ArchSpec, plan: Plan, most_bytes: int) -> _core.KvPool:
    block_bytes = kv_block_bytes(spec, plan.formats.kv)
    max_blocks = most_bytes // block_bytes
    if max_blocks > plan.num_blocks:
        with suppress(MemoryError):  # addresses are limited too (ulimit -v): then the pool never outgrows the plan
            return _core.KvPool(plan.num_blocks, block_bytes, KV_SLAB_BYTES, max_blocks)
    with _named_allocation(f"a KV pool of {plan.num_blocks} blocks, {format_bytes(plan.num_blocks * block_bytes)}"):
        return _core.KvPool(plan.num_blocks, block_bytes, KV_SLAB_BYTES)


def _decoder(spec: ArchSpec, plan: Plan, loader: _Loader, pool: _core.ThreadPool, kv: _core.KvPool) -> _core.Decoder:
    config = describe_decoder(
        spec,
        plan.formats,
        matrices=loader.matrices,
        vectors=loader.vectors,
        max_step_tokens=plan.max_step_tokens,
        max_step_rows=plan.max_step_rows,
    )
    with _named_allocation(f"the workspace of steps of {plan.max_step_tokens} tokens"):
        return _core.Decoder(pool, loader.store, kv, config, chosen_instruction_set())


class _Loader:
    """Packs the matrices of a weight map into one store and reads its vectors."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        spec: ArchSpec,
        weights: WeightMap,
        plan: Plan,
        pool: _core.ThreadPool,
        progress: ProgressCallback | None,
    ) -> None:
        self._checkpoint = checkpoint
        self._weights = weights
        self._plan = plan
        self._pool = pool
        self._progress = progress
        self._digest = hashlib.blake2b(digest_size=16)
        self._total_bytes = sum(binding_bytes(checkpoint, matrix) for matrix in weights.matrices)
        self._total_bytes += sum(binding_bytes(checkpoint, vector) for vector in weights.vectors)
        self._done_bytes = 0
        self._restored_digest: bytes | None = None
        self.packed_file: Path | None = None
        self.matrices: dict[MatrixKey, int] = {}
        self.vectors: dict[VectorKey, Float32] = {}
        self.direct_reads: bool | None = None
        disk_layers = set() if plan.offload is None else set(plan.offload.layers)
        self._on_disk = [matrix.layer in disk_layers for matrix in weights.matrices]
        self._shapes = []
        for index, matrix in enumerate(weights.matrices):
            weight_format = matrix_format(matrix.role, spec, plan.formats)
            number = FORMAT_NUMBERS[weight_format.number]
            self._shapes.append((number, matrix.num_outputs, matrix.num_inputs, weight_format.group))
            self.matrices[matrix.role, matrix.layer] = index
        with _named_allocation(f"{len(self._shapes)} weight matrices of {plan_name(plan.formats)}"):
            self.store = _core.WeightStore(pool, self._shapes, self._on_disk, plan.breakdown.ring_bytes)

    def load(self, cache: PackedCache | None) -> None:
        """Restore everything from the cache, or read and pack it in the map's order and record it there."""
        offload = self._plan.offload
        if offload is not None:
            if cache is None:
                raise ConfigError("layers that stay on disk need a directory: give a cache to load with")
            cache = replace(cache, required=True)
        elif not worth_caching(cache, self._plan.formats, self._total_bytes):
            self._read_and_pack(None)
            return
        packed = PackedLoad(cache, self._checkpoint, self._weights, self._shapes, self._pool, self.store, self._on_disk)
        self._restore_or_record(packed)
        if offload is not None:
            self.direct_reads = packed.open_stream(offload.num_readers)

    def _restore_or_record(self, packed: PackedLoad) -> None:
        restored = packed.restore(self._plan, self._progress)
        if restored is not None:
            self.packed_file = packed.path
            for vector, values in zip(self._weights.vectors, restored.vectors, strict=True):
                self.vectors[vector.role, vector.layer] = values
            self._restored_digest = restored.weights_digest
            return
        with packed.record() as record:
            self._read_and_pack(record)
            if record is not None:
                vectors = [self.vectors[vector.role, vector.layer] for vector in self._weights.vectors]
                if packed.publish(record, vectors, self.weights_digest(), self._news(), self._progress):
                    self.packed_file = packed.path

    def _read_and_pack(self, record: PackedRecord | None) -> None:
        for vector in self._weights.vectors:
            with _named_allocation(f"the vector {vector.role} of layer {vector.layer}"):
                values = read_vector(self._checkpoint, vector)
            if not np.isfinite(values).all():
                raise CheckpointFormatError(
                    f"tensor {vector.parts[0].name} holds a value that is not finite: the checkpoint is damaged; "
                    "download it again"
                )
            self.vectors[vector.role, vector.layer] = values
            self._note(values, binding_bytes(self._checkpoint, vector))
        for index, matrix in enumerate(self._weights.matrices):
            staged = self.store.stage(index).data if self._on_disk[index] else None
            self._pack(index, matrix)
            if record is not None:
                record.add(index, staged, self._report)

    def group_bytes(self) -> dict[str, int]:
        """Return the bytes of the matrices in memory and of the vectors by the names that plans give them."""
        names = dict(_GROUP_NAMES)
        if (MatrixRole.HEAD, None) not in self.matrices:
            names[MatrixRole.EMBEDDING] = "head and embeddings"
        groups = dict.fromkeys(names.values(), 0)
        for (role, _), index in self.matrices.items():
            groups[names[role]] += 0 if self._on_disk[index] else self.store.matrix_bytes(index)
        return {**groups, "norms and biases": sum(vector.nbytes for vector in self.vectors.values())}

    def weights_digest(self) -> bytes:
        """Return a digest of names, shapes and a regular sample of the bytes of all that was read, now or then."""
        return self._digest.digest() if self._restored_digest is None else self._restored_digest

    def _pack(self, index: int, matrix: MatrixBinding) -> None:
        with _named_allocation(f"a slice of {matrix.parts[0].name}"):
            for piece in matrix_slices(self._checkpoint, matrix):
                bad_row = self.store.pack_rows(index, piece.row_begin, piece.row_step, piece.rows)
                if bad_row >= 0:
                    row = piece.row_begin + (bad_row - piece.row_begin) // piece.row_step
                    raise CheckpointFormatError(
                        f"tensor {piece.name} holds a value, in row {row} of the {matrix.role} matrix, that is not "
                        "finite or too large for the plan's number format: download the checkpoint again, or choose "
                        "another format"
                    )
                self._note(piece.rows, piece.source_bytes)
        if self.store.rows_packed(index) != matrix.num_outputs:
            raise CheckpointFormatError(
                f"the {matrix.role} matrix of layer {matrix.layer} got {self.store.rows_packed(index)} of its "
                f"{matrix.num_outputs} rows: config.json and tensors do not belong together"
            )
        for part in matrix.parts:
            self._checkpoint.release(part.name)

    def _note(self, rows: Rows, source_bytes: int) -> None:
        """Count what was read, and take a sample of it into the digest."""
        self._digest.update(repr((rows.shape, str(rows.dtype))).encode())
        self._digest.update(np.ascontiguousarray(rows).reshape(-1).view(np.uint8)[::_SAMPLE_STRIDE_BYTES].tobytes())
        self._done_bytes += source_bytes
        self._report()

    def _news(self) -> Progress:
        return Progress(stage=LOAD_STAGE, done_bytes=self._done_bytes, total_bytes=self._total_bytes)

    def _report(self) -> None:
        if self._progress is not None:
            self._progress(self._news())


def plan_name(formats: ModelFormats) -> str:
    """Return the formats of a plan as one short text, for messages and fingerprints."""
    return (
        f"layers {formats.layers}, head {formats.head}, embedding {formats.embedding}, kv {formats.kv}, "
        f"activations {formats.activations}, attention {formats.attention}"
    )


def chosen_instruction_set() -> str:
    """Return the set that `OPENAUTOGLM_ISA` names, "" for the best; raise `ConfigError` if it cannot run here."""
    name = os.environ.get(ISA_VARIABLE, "")
    available = _core.available_isas()
    if name and name not in available:
        raise ConfigError(f"{ISA_VARIABLE}={name!r} cannot run here: choose one of {', '.join(available)}, or unset it")
    return name


def _fingerprint(weights: bytes, spec: ArchSpec, formats: ModelFormats, instruction_set: str) -> str:
    text = f"{openautoglm.__version__}|{plan_name(formats)}|{instruction_set}|{spec!r}"
    return "oag-" + hashlib.blake2b(weights + text.encode(), digest_size=12).hexdigest()


@contextmanager
def _named_allocation(name: str) -> Iterator[None]:
    """Turn a failed allocation into an `OutOfMemoryError` that says what it was for."""
    try:
        yield
    except MemoryError as error:
        raise OutOfMemoryError(f"no memory for {name}: free memory, or plan with a smaller --memory") from error
