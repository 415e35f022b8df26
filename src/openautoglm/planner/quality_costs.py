"""What formats cost in quality, as measured on the embedded model: no promise for another one, but an order.

KL divergence to f32 weights and cache, in nats per token, over 1,769 tokens of Python's textwrap.py
(`benchmarks/format_quality.py`, tables of 2026-11-20 in docs/log.md). The model has 9.4 M parameters.
"""

from __future__ import annotations

from openautoglm.spec.formats import ModelFormats, NumberFormat

MEASURED_ON = "the embedded model"

# Layer matrices in this format, head and embeddings as quantised loads keep them; cache bf16.
WEIGHTS_KL_NATS = {
    "f32": 0.0,
    "bf16": 0.00003,
    "int8": 0.00066,
    "int4-g32": 0.0205,
    "int4-g64": 0.0257,
    "int4-g128": 0.0332,
    "nf4-g64": 0.0273,
}
# Beside the same weights (int8) with a bf16 cache.
KV_KL_NATS = {
    NumberFormat.F32: 0.0,
    NumberFormat.BF16: 0.0,
    NumberFormat.INT8: 0.000694,
    NumberFormat.FP8: 0.003344,
}


def divergence_nats(formats: ModelFormats) -> float | None:
    """Return the KL that weights and cache cost together on the embedded model; None where nobody has measured it.

    The two are added: near f32 divergences are, to first order.
    """
    weights = WEIGHTS_KL_NATS.get(str(formats.layers))
    return None if weights is None else weights + KV_KL_NATS[formats.kv]


def describe_cost(formats: ModelFormats) -> str:
    """Return the cost as words for a table or a reason."""
    nats = divergence_nats(formats)
    return "not measured" if nats is None else f"{nats:.4f} nats per token"
