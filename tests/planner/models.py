"""Descriptions and machines made by hand, so that the planner's tests need no family and no real machine."""

from __future__ import annotations

from openautoglm.spec.arch import (
    ArchSpec,
    AttentionSpec,
    CacheKind,
    DenseMlpSpec,
    LayerSpec,
    NormPlacement,
    NormSpec,
)
from openautoglm.spec.machine import CpuSpec, DiskSpec, MachineSpec, MemorySpec
from openautoglm.units import GIB

NORM = NormSpec(epsilon=1e-5)


def decoder(
    *,
    num_layers: int,
    hidden: int,
    heads: int,
    kv_heads: int,
    head_dim: int,
    intermediate: int,
    vocab: int,
    max_positions: int,
    tied: bool,
    qkv_bias: bool = False,
) -> ArchSpec:
    """A plain decoder with pre-norms and gated MLPs."""
    layer = LayerSpec(
        mixer=AttentionSpec(
            num_heads=heads,
            num_kv_heads=kv_heads,
            head_dim=head_dim,
            qkv_bias=qkv_bias,
            output_bias=False,
            scale=head_dim**-0.5,
            rotary=None,
        ),
        mlp=DenseMlpSpec(intermediate_size=intermediate),
        norm=NORM,
        placement=NormPlacement.PRE,
        cache=CacheKind.PAGED,
    )
    return ArchSpec(
        family="glm",
        model_type="glm",
        layers=(layer,) * num_layers,
        hidden_size=hidden,
        vocab_size=vocab,
        max_positions=max_positions,
        tied_embeddings=tied,
        final_norm=NORM,
    )


GLM_9B = decoder(
    num_layers=40,
    hidden=4096,
    heads=32,
    kv_heads=2,
    head_dim=128,
    intermediate=13696,
    vocab=151552,
    max_positions=131072,
    tied=False,
    qkv_bias=True,
)
QWEN3_06B = decoder(
    num_layers=28,
    hidden=1024,
    heads=16,
    kv_heads=8,
    head_dim=128,
    intermediate=3072,
    vocab=151936,
    max_positions=40960,
    tied=True,
)
SMALL = decoder(
    num_layers=3,
    hidden=200,
    heads=5,
    kv_heads=1,
    head_dim=40,
    intermediate=300,
    vocab=1000,
    max_positions=2048,
    tied=True,
)
ARCHITECTURES = (GLM_9B, QWEN3_06B, SMALL)


def machine(available_bytes: int = 16 * GIB, *, limit_bytes: int | None = None, num_cores: int = 4) -> MachineSpec:
    """A machine of 32 GiB with this much available."""
    return MachineSpec(
        cpu=CpuSpec(name="test", architecture="x86_64", num_cores=num_cores, isas=("scalar",)),
        memory=MemorySpec(
            total_bytes=32 * GIB,
            available_bytes=available_bytes,
            limit_bytes=limit_bytes or 32 * GIB,
            page_bytes=4096,
            transparent_huge_pages="madvise",
            swap_bytes=0,
        ),
        disk=DiskSpec(path="cache", free_bytes=GIB, total_bytes=GIB),
    )
