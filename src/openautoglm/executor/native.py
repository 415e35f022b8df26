"""The native executor: runs steps on this machine's processor."""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from openautoglm.errors import EngineError, OutOfMemoryError, StepRefusedError, WeightReadError
from openautoglm.executor.protocol import CacheGroup, ExecutorLayout, StepBatch, StepHandle, StepResult, UInt64
from openautoglm.executor.supports import unsupported_features
from openautoglm.log import get_logger
from openautoglm.memory.ledger import Reservation
from openautoglm.native import _core
from openautoglm.spec.arch import ArchSpec
from openautoglm.spec.plan import BLOCK_TOKENS, Component, Part
from openautoglm.units import round_up

_LOGGER = get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class _FinishedStep:
    """A step that has run: its result, or why it failed."""

    outcome: StepResult | EngineError | OutOfMemoryError

    def result(self) -> StepResult:
        """Return the result; raise `OutOfMemoryError` or `EngineError` if the step failed."""
        if isinstance(self.outcome, StepResult):
            return self.outcome
        raise self.outcome


@dataclass(frozen=True, slots=True, kw_only=True)
class NativeModel:
    """What a load made: the native objects and the facts about them.

    `weight_groups` are bytes by the names that plans give them; `packed_file` is where packed weights stand, if any do.
    `direct_reads`: weights on disk are read past the page cache; None where none are on disk.
    """

    decoder: _core.Decoder
    store: _core.WeightStore
    kv: _core.KvPool
    num_layers: int
    max_step_rows: int
    vocab_size: int
    hidden_size: int
    weight_bytes: int
    direct_reads: bool | None
    fingerprint: str
    weight_groups: Mapping[str, int]
    packed_file: Path | None


class NativeExecutor:
    """Runs steps with the native decoder; made by `load.load_model`.

    `submit` runs the step on the calling thread and the pool's workers, without the interpreter lock, and returns a
    finished handle. One thread at a time may call; the object holds the memory of weights, KV pool and workspace, and
    what the ledger was charged for them, until `close`: `charges` hold that, and `kv_charge` and `workspace_charge`
    are those of them that change with the sizes (None where nothing is charged).
    """

    def __init__(
        self,
        model: NativeModel,
        *,
        charges: ExitStack,
        kv_charge: Reservation | None = None,
        workspace_charge: Reservation | None = None,
    ) -> None:
        self._model: NativeModel | None = model
        self._charges = charges
        self._kv_charge = kv_charge
        self._workspace_charge = workspace_charge

    @staticmethod
    def supports(spec: ArchSpec) -> tuple[str, ...]:
        """Return why `spec` cannot run here, one feature each; empty when it can."""
        return unsupported_features(spec)

    def layout(self) -> ExecutorLayout:
        """Return the limits that the engine schedules within; all layers share one block table."""
        model = self._open()
        group = CacheGroup(
            layers=tuple(range(model.num_layers)), block_tokens=BLOCK_TOKENS, block_bytes=model.kv.block_bytes
        )
        return ExecutorLayout(
            groups=(group,),
            num_blocks=model.kv.num_blocks,
            max_blocks=model.kv.max_blocks,
            max_step_tokens=model.decoder.max_step_tokens,
            max_step_rows=model.max_step_rows,
            vocab_size=model.vocab_size,
            hidden_size=model.hidden_size,
        )

    def submit(self, batch: StepBatch) -> StepHandle:
        """Run a step and return its handle; failures are raised by the handle's `result`.

        Peak bytes: the result's arrays, num_logits * vocabulary floats above all; everything else is set aside at load.
        """
        return _FinishedStep(outcome=self._run(batch))

    def _run(self, batch: StepBatch) -> StepResult | EngineError | OutOfMemoryError:
        model = self._open()
        if batch.adapter_slots is not None and bool((batch.adapter_slots >= 0).any()):
            return EngineError("the step asks for adapters, which this executor does not run: send slot -1")
        try:
            tokens, num_tokens, logprobs, top_tokens, top_logprobs, logits, hidden = model.decoder.step(batch)
        except MemoryError:
            return OutOfMemoryError(
                f"no memory for the results of a step of {batch.tokens.size} tokens: ask for fewer logits or tokens"
            )
        except _core.WeightStreamError as error:
            _LOGGER.error("a step of %d tokens is lost and its requests end: %s", batch.tokens.size, error)
            return WeightReadError(f"{error}: the request ends; load the model again if it does not pass")
        except (ValueError, TypeError) as error:
            return StepRefusedError(f"the step breaks the executor's rules: {error}")
        return StepResult(
            tokens=tokens,
            num_tokens=num_tokens,
            logprobs=logprobs,
            top_tokens=top_tokens,
            top_logprobs=top_logprobs,
            logits=logits,
            hidden=hidden,
        )

    def copy_blocks(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Copy whole KV blocks (source, destination) of every layer, in order; raise `IndexError` for unknown ones."""
        kv = self._open().kv
        for source, destination in pairs:
            kv.copy(source, destination)

    def export_blocks(self, blocks: Sequence[int]) -> bytes:
        """Return the bytes of blocks, in order. Peak bytes: twice the blocks."""
        return self._open().kv.export_blocks(list(blocks))

    def import_blocks(self, blocks: Sequence[int], data: bytes) -> None:
        """Restore bytes taken by `export_blocks`; raise `ValueError` if they are not as many as the blocks take."""
        self._open().kv.import_blocks(list(blocks), data)

    def resize_blocks(self, num_blocks: int) -> int:
        """Have `num_blocks` KV blocks from the next step on; return the bytes given back to the system.

        Raises `ValueError` outside 1 to `max_blocks`, and `OutOfMemoryError`, changing nothing, for refused growth.
        """
        kv = self._open().kv
        if not 1 <= num_blocks <= kv.max_blocks:
            raise ValueError(f"the KV pool can have 1 to {kv.max_blocks} blocks, not {num_blocks}")
        growth_bytes = round_up(num_blocks * kv.block_bytes, mmap.PAGESIZE) - kv.allocated_bytes
        with _charged(self._kv_charge, growth_bytes, f"a KV pool of {num_blocks} blocks"):
            return kv.resize(num_blocks)

    def limit_step_tokens(self, num_tokens: int) -> int:
        """Refuse larger steps from now on and give back the workspace that only they need; return the bytes.

        Raises `ValueError` outside 1 to the tokens at load, and `OutOfMemoryError` where the ledger refuses growth.
        """
        decoder = self._open().decoder
        old_bytes = decoder.workspace_bytes_of(decoder.max_step_tokens)
        growth_bytes = decoder.workspace_bytes_of(num_tokens) - old_bytes
        with _charged(self._workspace_charge, growth_bytes, f"the workspace of steps of {num_tokens} tokens"):
            return decoder.limit_step_tokens(num_tokens)

    def trim(self, live_blocks: Sequence[int]) -> int:
        """Give memory of slabs that hold none of `live_blocks` back to the system; return the bytes given."""
        return self._open().kv.release_unused(list(live_blocks))

    def touch(self) -> None:
        """Take all memory of the KV pool from the system now, so that no later step can fail for it."""
        self._open().kv.touch()

    def set_heartbeat(self, counter: UInt64 | None) -> None:
        """Let steps advance `counter` (one uint64, for example in shared memory) once per layer; None stops that."""
        decoder = self._open().decoder
        if counter is None:
            decoder.clear_heartbeat()
        else:
            decoder.set_heartbeat(np.ascontiguousarray(counter))

    def weight_read_bandwidth(self) -> float:
        """Measure at how many bytes per second all threads together can read the weights, where they are now."""
        return self._open().decoder.weight_read_bandwidth()

    @property
    def weight_bytes(self) -> int:
        """Bytes that the weights take: packed matrices, norms and biases."""
        return self._open().weight_bytes

    @property
    def ring_bytes(self) -> int:
        """Bytes of memory that weights on disk are read into; 0 where none are on disk."""
        return self._open().store.ring_bytes

    @property
    def streamed_bytes(self) -> int:
        """Bytes of weights that were read from disk so far, ahead of steps too."""
        return self._open().store.streamed_bytes

    @property
    def stream_waits(self) -> int:
        """How often a step had to wait for a matrix on disk."""
        return self._open().store.stream_waits

    @property
    def direct_reads(self) -> bool | None:
        """Whether weights on disk are read past the page cache; None where none are on disk."""
        return self._open().direct_reads

    @property
    def kv_bytes(self) -> int:
        """Bytes of the KV pool when all of it has been written."""
        return self._open().kv.allocated_bytes

    @property
    def untouched_bytes(self) -> int:
        """Bytes of KV pool and workspace that are set aside and have not been written yet."""
        model = self._open()
        untouched_kv = model.kv.allocated_bytes - model.kv.resident_bytes
        return untouched_kv + self.workspace_bytes - model.decoder.workspace_resident_bytes

    def resident_parts(self) -> dict[str, int]:
        """Return the bytes of memory that weights, KV pool and workspace really take now; no step may be running."""
        model = self._open()
        parts = {
            "weights": model.weight_bytes,
            "KV pool": model.kv.resident_bytes,
            "workspace": model.decoder.workspace_resident_bytes,
        }
        if model.store.ring_bytes:
            parts["ring of weights on disk"] = model.store.ring_bytes
        return parts

    @property
    def workspace_bytes(self) -> int:
        """Bytes of the workspace when the largest step that is allowed now has run."""
        decoder = self._open().decoder
        return decoder.workspace_bytes_of(decoder.max_step_tokens)

    @property
    def packed_file(self) -> Path | None:
        """The file that the packed weights came from or went to; None where none is kept."""
        return self._open().packed_file

    def parts(self) -> tuple[Part, ...]:
        """Return what weights and workspace consist of, as they were allocated, by the names that plans give them."""
        model = self._open()
        workspace = model.decoder.workspace_parts
        # Memory comes in whole pages; plans count the rest of the last one to the chunk.
        workspace["prefill chunk"] += model.decoder.workspace_bytes - sum(workspace.values())
        return tuple(
            Part(component=component, name=name, num_bytes=num_bytes)
            for component, sizes in ((Component.WEIGHTS, model.weight_groups), (Component.WORKSPACE, workspace))
            for name, num_bytes in sizes.items()
        )

    @property
    def instruction_set(self) -> str:
        """The kernels in use."""
        return self._open().decoder.instruction_set

    def determinism(self) -> str:
        """Return the fingerprint under which equal requests give equal bytes."""
        return self._open().fingerprint

    def close(self) -> None:
        """Stop threads and free everything; safe to call twice."""
        self._model = None
        self._charges.close()

    def _open(self) -> NativeModel:
        if self._model is None:
            raise EngineError("the executor is closed: load the model again")
        return self._model


@contextmanager
def _charged(charge: Reservation | None, growth_bytes: int, name: str) -> Iterator[None]:
    """Charge growth before the body takes it, and give a decrease back after it; a body that fails changes nothing."""
    if charge is not None and growth_bytes > 0:
        charge.resize(charge.num_bytes + growth_bytes)
    try:
        yield
    except MemoryError as error:
        if charge is not None and growth_bytes > 0:
            charge.resize(charge.num_bytes - growth_bytes)
        raise OutOfMemoryError(f"the system has no memory for {name}: free memory, or stay smaller") from error
    if charge is not None and growth_bytes < 0:
        charge.resize(charge.num_bytes + growth_bytes)
