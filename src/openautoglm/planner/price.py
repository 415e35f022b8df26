"""What a choice of settings costs: a pure function of the architecture and the choice."""

from __future__ import annotations

from dataclasses import dataclass, replace

from openautoglm.memory.kv import kv_block_bytes, recurrent_state_bytes
from openautoglm.memory.loading import loading_bytes
from openautoglm.memory.offload import NUM_READERS, RingRoom, layer_disk_bytes, layer_rooms, ring_bytes
from openautoglm.memory.runtime import RuntimeNeeds, block_index_bytes, estimated_tokenizer, runtime_bytes
from openautoglm.memory.spill import spill_bytes
from openautoglm.memory.weights import WeightBytes, weight_bytes
from openautoglm.memory.workspace import WorkspaceBytes, workspace_parts
from openautoglm.planner import parts
from openautoglm.spec.arch import ArchSpec
from openautoglm.spec.formats import ModelFormats
from openautoglm.spec.offload import DiskRoom
from openautoglm.spec.plan import BLOCK_TOKENS, Breakdown
from openautoglm.spec.spill import SpillTiers
from openautoglm.units import MIB

MIN_HEADROOM_BYTES = 64 * MIB
HEADROOM_SHARE = 50  # one part in 50: 2 %


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """Settings that have a price. `disk_layers` stay on disk, `pinned_blocks` in the pool."""

    formats: ModelFormats
    context_tokens: int
    concurrency: int
    max_step_tokens: int
    max_step_rows: int
    num_threads: int
    disk_layers: tuple[int, ...] = ()
    pinned_blocks: int = 0

    @property
    def num_blocks(self) -> int:
        """KV blocks for every sequence at its whole context, and pinned ones; whole blocks are shared, none copied."""
        return self.concurrency * -(-self.context_tokens // BLOCK_TOKENS) + self.pinned_blocks


def _num_threads(choice: Choice) -> int:
    return choice.num_threads + (NUM_READERS if choice.disk_layers else 0)


def headroom_bytes(peak_bytes: int) -> int:
    """Return what stays free on purpose beside a predicted peak: 2 % of it, at least 64 MiB."""
    return max(MIN_HEADROOM_BYTES, peak_bytes // HEADROOM_SHARE)


def largest_peak_bytes(budget_bytes: int) -> int:
    """Return the largest predicted peak that fits a budget together with its headroom; negative if none does."""
    peak_bytes = budget_bytes * HEADROOM_SHARE // (HEADROOM_SHARE + 1) + 1
    while peak_bytes + peak_bytes // HEADROOM_SHARE > budget_bytes:
        peak_bytes -= 1
    return min(peak_bytes, budget_bytes - MIN_HEADROOM_BYTES)


class Pricer:
    """Prices of one architecture; sums over layers are computed once per format and step.

    `disk_room` bounds what may stay on disk; None asks no disk.
    """

    def __init__(
        self,
        spec: ArchSpec,
        runtime: RuntimeNeeds | None = None,
        spill: SpillTiers | None = None,
        disk_room: DiskRoom | None = None,
    ) -> None:
        self.spec = spec
        self.spill = spill or SpillTiers()
        self.disk_room = disk_room
        self.runtime = runtime or RuntimeNeeds(tokenizer=estimated_tokenizer(spec.vocab_size))
        self._weights: dict[ModelFormats, WeightBytes] = {}
        self._layer_bytes: dict[ModelFormats, tuple[int, ...]] = {}
        self._file_bytes: dict[ModelFormats, int] = {}
        self._layer_rooms: dict[ModelFormats, tuple[RingRoom, ...]] = {}
        self._block_bytes: dict[ModelFormats, int] = {}
        self._workspaces: dict[tuple[ModelFormats, int, int, int], WorkspaceBytes] = {}
        self._state_bytes = recurrent_state_bytes(spec)

    def block_bytes(self, formats: ModelFormats) -> int:
        """Return the bytes of one KV block over all layers."""
        if formats not in self._block_bytes:
            self._block_bytes[formats] = kv_block_bytes(self.spec, formats.kv)
        return self._block_bytes[formats]

    def kv_bytes(self, choice: Choice) -> int:
        """Return the bytes of the KV pool and of every sequence's recurrent state."""
        return choice.num_blocks * self.block_bytes(choice.formats) + choice.concurrency * self._state_bytes

    def disk_bytes(self, choice: Choice) -> int:
        """Return the bytes of the layers on disk, which each step reads."""
        if choice.formats not in self._layer_bytes:
            self._layer_bytes[choice.formats] = layer_disk_bytes(self.spec, choice.formats)
        sizes = self._layer_bytes[choice.formats]
        return sum(sizes[layer] for layer in choice.disk_layers)

    def _ring_bytes(self, choice: Choice) -> int:
        if choice.formats not in self._layer_rooms:
            self._layer_rooms[choice.formats] = layer_rooms(self.spec, choice.formats)
        rooms = self._layer_rooms[choice.formats]
        return ring_bytes([rooms[layer] for layer in choice.disk_layers])

    def breakdown(self, choice: Choice) -> Breakdown:
        """Return the bytes of every component of `choice`, without their parts."""
        weights = self._weight_bytes(choice.formats)
        kv_bytes, workspace = self.kv_bytes(choice), self._workspace(choice).total
        runtime = runtime_bytes(self.runtime, _num_threads(choice)) + block_index_bytes(choice.num_blocks)
        runtime += self.loading_excess(choice)
        ring, disk = self._ring_bytes(choice), self.disk_bytes(choice)
        tiers = spill_bytes(self.spill, self.block_bytes(choice.formats))
        return Breakdown(
            layer_weight_bytes=weights.layers - disk,
            head_weight_bytes=weights.head,
            embedding_weight_bytes=weights.embedding,
            norm_bytes=weights.norms,
            kv_bytes=kv_bytes,
            workspace_bytes=workspace,
            runtime_bytes=runtime,
            headroom_bytes=headroom_bytes(weights.total - disk + ring + kv_bytes + workspace + runtime + tiers),
            tier_bytes=tiers,
            ring_bytes=ring,
        )

    def detailed(self, choice: Choice) -> Breakdown:
        """Return the bytes of every component of `choice` with their parts."""
        spec, formats, weights = self.spec, choice.formats, self._weight_bytes(choice.formats)
        return replace(
            self.breakdown(choice),
            parts=(
                *parts.weight_parts(spec, formats, weights, choice.disk_layers),
                *parts.kv_parts(
                    spec,
                    formats,
                    num_blocks=choice.num_blocks - choice.pinned_blocks,
                    pinned_blocks=choice.pinned_blocks,
                    concurrency=choice.concurrency,
                ),
                *parts.workspace_parts(self._workspace(choice)),
                *parts.process_parts(
                    self.runtime,
                    _num_threads(choice),
                    num_blocks=choice.num_blocks,
                    loading=self.loading_excess(choice),
                ),
                *parts.file_parts(spec, formats, self.runtime, weights, self.disk_bytes(choice)),
                *parts.spill_parts(self.spill, self.block_bytes(formats)),
            ),
        )

    def _weight_bytes(self, formats: ModelFormats) -> WeightBytes:
        if formats not in self._weights:
            self._weights[formats] = weight_bytes(self.spec, formats)
        return self._weights[formats]

    def loading_excess(self, choice: Choice) -> int:
        """Return what a load adds to the peak: what its slices exceed pool, index and workspace, touched after them."""
        slices = loading_bytes(self.spec, choice.formats, source_item_bytes=self.runtime.source_item_bytes)
        pool = self.kv_bytes(choice) + block_index_bytes(choice.num_blocks)
        return max(0, slices - pool - self._workspace(choice).total)

    def _workspace(self, choice: Choice) -> WorkspaceBytes:
        key = (choice.formats, choice.max_step_tokens, choice.max_step_rows, choice.num_threads)
        if key not in self._workspaces:
            self._workspaces[key] = workspace_parts(
                self.spec,
                choice.formats,
                max_step_tokens=choice.max_step_tokens,
                max_step_rows=choice.max_step_rows,
                num_threads=choice.num_threads,
            )
        return self._workspaces[key]

    def total_bytes(self, choice: Choice) -> int:
        """Return the predicted peak and the headroom: the least budget that holds the choice."""
        return self.breakdown(choice).total_bytes

    def fits(self, choice: Choice, budget_bytes: int) -> bool:
        """Return whether the predicted peak and its headroom fit the budget, and layers on disk their disk."""
        return self.total_bytes(choice) <= budget_bytes and self.has_disk_room(choice)

    def has_disk_room(self, choice: Choice) -> bool:
        """Return whether the disk can hold the file that layers on disk need."""
        room = self.disk_room
        return room is None or not choice.disk_layers or room.holds(self.packed_file_bytes(choice.formats))

    def packed_file_bytes(self, formats: ModelFormats) -> int:
        """Return the size of the file of packed weights."""
        if formats not in self._file_bytes:
            self._file_bytes[formats] = parts.packed_file_bytes(self.spec, formats, self._weight_bytes(formats))
        return self._file_bytes[formats]
