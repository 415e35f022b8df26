"""The parts of a breakdown: weights per group and format, KV per kind of layer, what a step, a process and a load take.

The parts of weights, KV cache, workspace and runtime add up to these components exactly. Parts of the page cache and of
the disk are upper bounds of what a load leaves there; they are no memory of the process.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from openautoglm.checkpoint.packed import MIN_SOURCE_BYTES
from openautoglm.checkpoint.packed_format import PackedLayout
from openautoglm.memory.kv import indexer_bytes_per_token, kv_bytes_per_token_by_kind, recurrent_state_bytes
from openautoglm.memory.loading import SLICE_BYTES, worth_packing
from openautoglm.memory.offload import layer_matrix_bytes
from openautoglm.memory.runtime import RuntimeNeeds, block_index_bytes, runtime_parts
from openautoglm.memory.shapes import num_layer_vectors
from openautoglm.memory.spill import host_tier_bytes, num_slots, overhead_bytes, slot_bytes
from openautoglm.memory.weights import WeightBytes, layer_weight_groups, num_parameters
from openautoglm.memory.workspace import WorkspaceBytes
from openautoglm.spec.arch import ArchSpec
from openautoglm.spec.formats import ModelFormats
from openautoglm.spec.plan import BLOCK_TOKENS, Component, Part
from openautoglm.spec.spill import SpillTiers

_FLOAT_BYTES = 4


def weight_parts(
    spec: ArchSpec, formats: ModelFormats, weights: WeightBytes, disk_layers: Sequence[int] = ()
) -> Iterator[Part]:
    """Yield the groups of tensors in memory with their formats."""
    for group in layer_weight_groups(spec, formats, disk_layers):
        yield _part(Component.WEIGHTS, group.name, group.num_bytes, group.number_format)
    yield _part(
        Component.WEIGHTS,
        "head and embeddings" if spec.tied_embeddings else "head",
        weights.head,
        str(formats.head),
    )
    if not spec.tied_embeddings:
        yield _part(Component.WEIGHTS, "embeddings", weights.embedding, str(formats.embedding))
    yield _part(Component.WEIGHTS, "norms and biases", weights.norms, "f32")


def kv_parts(
    spec: ArchSpec, formats: ModelFormats, *, num_blocks: int, pinned_blocks: int, concurrency: int
) -> Iterator[Part]:
    """Yield what the pool's blocks hold for each kind of layer, prompts that stay, and states of sequences."""
    per_token = dict(kv_bytes_per_token_by_kind(spec, formats.kv))
    per_token["indexer keys"] = indexer_bytes_per_token(spec, formats.kv)
    for name, num_bytes in per_token.items():
        if num_bytes:
            detail = f"{formats.kv}, {num_bytes:,} bytes a token"
            yield _part(Component.KV, name, num_blocks * BLOCK_TOKENS * num_bytes, detail)
    if pinned_blocks:
        detail = f"{pinned_blocks * BLOCK_TOKENS:,} tokens, {pinned_blocks:,} blocks"
        pinned_bytes = pinned_blocks * BLOCK_TOKENS * sum(per_token.values())
        yield _part(Component.KV, "pinned prompts", pinned_bytes, detail)
    states = concurrency * recurrent_state_bytes(spec)
    if states:
        yield _part(Component.KV, "recurrent state", states, f"f32, {concurrency} sequences")


def workspace_parts(workspace: WorkspaceBytes) -> Iterator[Part]:
    """Yield the parts of a step's memory; the rest of the last page belongs to the chunk."""
    sizes = {
        "prefill chunk": workspace.prefill_chunk,
        "products": workspace.products,
        "attention": workspace.attention,
        "logits": workspace.logits,
        "sampling": workspace.sampling,
        "logprobs": workspace.logprobs,
    }
    sizes["prefill chunk"] += workspace.total - sum(sizes.values())
    for name, num_bytes in sizes.items():
        yield _part(Component.WORKSPACE, name, num_bytes)


def process_parts(needs: RuntimeNeeds, num_threads: int, *, num_blocks: int, loading: int) -> Iterator[Part]:
    """Yield what processes and the pool's index take, and by how much slices of a load exceed what comes after them."""
    sizes: Mapping[str, int] = runtime_parts(needs, num_threads)
    for name, num_bytes in sizes.items():
        yield _part(Component.RUNTIME, name, num_bytes)
    yield _part(Component.RUNTIME, "block index", block_index_bytes(num_blocks), f"{num_blocks:,} blocks")
    if loading:
        yield _part(Component.RUNTIME, "slices of the load", loading)


def file_parts(
    spec: ArchSpec,
    formats: ModelFormats,
    needs: RuntimeNeeds,
    weights: WeightBytes,
    disk_bytes: int = 0,
) -> Iterator[Part]:
    """Yield what stands on disk, and what a load leaves of it in the page cache: nothing of the `disk_bytes` of layers
    that stay there.
    """
    source = needs.source_bytes
    if source is None:
        source = num_parameters(spec) * needs.source_item_bytes
    packed = packed_file_bytes(spec, formats, weights)
    kept = bool(disk_bytes) or (needs.packed_cache and worth_packing(formats, source, MIN_SOURCE_BYTES))
    yield _part(Component.PAGE_CACHE, "checkpoint", min(source, SLICE_BYTES), "one slice at once, dropped behind")
    if kept:
        yield _part(
            Component.PAGE_CACHE, "packed weights", packed - disk_bytes, "after a start from them, if memory is spare"
        )
    yield _part(Component.DISK, "checkpoint", source)
    if kept:
        why = "read by every step, and for the next start" if disk_bytes else "for the next start"
        yield _part(Component.DISK, "packed weights", packed, why)


def spill_parts(tiers: SpillTiers, block_bytes: int) -> Iterator[Part]:
    """Yield what spilled KV blocks take, in memory and on disk, when both tiers are full."""
    if not tiers:
        return
    num_pieces = num_slots(tiers.memory_bytes, block_bytes)
    if tiers.memory_bytes:
        yield _part(Component.TIERS, "spilled KV", host_tier_bytes(tiers, block_bytes), f"{num_pieces:,} blocks")
    yield _part(Component.TIERS, "buffers and index", overhead_bytes(tiers, block_bytes))
    num_pieces = num_slots(tiers.disk_bytes, block_bytes)
    if tiers.disk_bytes:
        yield _part(Component.DISK, "spilled KV", num_pieces * slot_bytes(block_bytes), f"{num_pieces:,} blocks")


def packed_file_bytes(spec: ArchSpec, formats: ModelFormats, weights: WeightBytes) -> int:
    """Return the size of the file of packed weights: exact for what the executor runs."""
    vectors = sum(num_layer_vectors(layer) for layer in spec.layers) + 1 + spec.head_bias
    elements = weights.norms // _FLOAT_BYTES
    layout = PackedLayout(
        key=b"",
        vector_elements=(elements, *(0,) * (vectors - 1)),
        matrix_bytes=(weights.head, weights.embedding, *layer_matrix_bytes(spec, formats)),
    )
    return layout.file_bytes


def _part(component: Component, name: str, num_bytes: int, detail: str = "") -> Part:
    return Part(component=component, name=name, num_bytes=num_bytes, detail=detail)
