"""Independent numpy implementations that the kernels are held against. Nothing here calls the native core."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

TILE = 32
GROUP = 128
NF4 = np.array([-127, -88, -67, -50, -36, -23, -12, 0, 10, 20, 31, 43, 56, 71, 92, 127])
CLIPS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7)
F32 = np.float32


def bf16_bits(x: NDArray) -> NDArray:
    """Round float32 to bf16, half to even; finite input."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def bf16_floats(bits: NDArray) -> NDArray:
    return (bits.astype(np.uint32) << 16).view(np.float32)


def padded(x: NDArray, columns: int) -> NDArray:
    return np.pad(x, ((0, 0), (0, columns - x.shape[1])))


@dataclass(frozen=True)
class Quantised:
    """Codes [n, kp], scales [n, groups], zero points [n, groups] (0 but for int4) of a matrix."""

    codes: NDArray
    scales: NDArray
    zeros: NDArray

    def weights(self, k: int) -> NDArray:
        n, kp = self.codes.shape
        groups = self.scales.shape[1]
        grouped = self.codes.reshape(n, groups, kp // groups).astype(np.float64) - self.zeros[:, :, None]
        return (grouped * self.scales[:, :, None].astype(np.float64)).reshape(n, kp)[:, :k]


def decode(data: bytes, number: str, n: int, k: int, group: int) -> Quantised:
    """Read int8, int4 and nf4 tiles as the layout describes them."""
    kp = -(-k // GROUP) * GROUP
    tiles = -(-n // TILE)
    raw = np.frombuffer(data, np.uint8).reshape(tiles, -1)
    if number == "int8":
        codes = raw[:, : kp * TILE].reshape(tiles, kp // 4, TILE, 4).transpose(0, 2, 1, 3).reshape(-1, kp)
        scales = raw[:, kp * TILE :].copy().view(np.float32).reshape(-1, 1)
        return Quantised(codes[:n].astype(np.int64) - 128, scales[:n], np.zeros((n, 1)))
    parts = GROUP // group
    blocks = raw.reshape(tiles, kp // GROUP, -1)
    # [tile, block, k/8, half, output, k%4] -> low nibbles are k%8 < 4
    nibbles = blocks[:, :, :2048].reshape(tiles, -1, 16, 2, 16, 4)
    both = np.stack([nibbles & 15, nibbles >> 4], axis=-2)  # ... output, high, k%4
    codes = both.transpose(0, 3, 4, 1, 2, 5, 6).reshape(-1, kp)[:n].astype(np.int64)
    scales = blocks[:, :, 2048 : 2048 + 64 * parts].copy().view(np.float16).reshape(tiles, -1, parts, TILE)
    scales = scales.transpose(0, 3, 1, 2).reshape(tiles * TILE, -1)[:n].astype(np.float32)
    if number == "nf4":
        return Quantised(NF4[codes], scales * (F32(1) / F32(127)), np.zeros_like(scales))
    zeros = blocks[:, :, 2048 + 64 * parts : 2048 + 96 * parts].reshape(tiles, -1, parts, TILE)
    return Quantised(codes, scales, zeros.transpose(0, 3, 1, 2).reshape(tiles * TILE, -1)[:n].astype(np.int64))


def lane_sum(x: NDArray) -> NDArray:
    """Sum the last axis as sixteen running lanes and a fixed tree, in float32."""
    lanes = np.zeros((*x.shape[:-1], 16), F32)
    for begin in range(0, x.shape[-1], 16):
        part = x[..., begin : begin + 16]
        lanes[..., : part.shape[-1]] += part
    while lanes.shape[-1] > 1:
        half = lanes.shape[-1] // 2
        lanes = lanes[..., :half] + lanes[..., half:]
    return lanes[..., 0]


def quantise_int8(w: NDArray) -> Quantised:
    amax = np.abs(w).max(axis=1, keepdims=True)
    scales = (amax / F32(127)).astype(F32)
    inverse = np.divide(F32(127), amax, out=np.zeros_like(amax), where=amax > 0)
    codes = np.rint(padded(w, -(-w.shape[1] // GROUP) * GROUP) * inverse).astype(np.int64)
    return Quantised(codes, scales, np.zeros_like(scales))


def quantise_int4(w: NDArray, group: int) -> Quantised:
    """Choose among the clips by squared error, the first of equals; float32 throughout, as the kernel does."""
    n, kp = w.shape[0], -(-w.shape[1] // GROUP) * GROUP
    x = padded(w, kp).reshape(n, -1, group).astype(F32)
    low, high = np.minimum(x.min(axis=2), 0), np.maximum(x.max(axis=2), 0)
    best = np.full(low.shape, np.inf, F32)
    codes = np.zeros(x.shape, np.int64)
    scales, zeros = np.zeros_like(low), np.zeros(low.shape, np.int64)
    for clip in map(F32, CLIPS):
        scale = ((high * clip - low * clip) / F32(15)).astype(np.float16).astype(F32)
        inverse = np.divide(F32(1), scale, out=np.zeros_like(scale), where=scale > 0)
        zero = np.minimum(np.rint(-low * clip * inverse), 15).astype(F32)[:, :, None]
        code = np.clip(np.rint(x * inverse[:, :, None]) + zero, 0, 15)
        error = x - (code - zero) * scale[:, :, None]
        total = lane_sum(error * error)
        better = (total < best) & (scale > 0)
        best = np.where(better, total, best)
        codes = np.where(better[:, :, None], code, codes).astype(np.int64)
        scales = np.where(better, scale, scales)
        zeros = np.where(better, zero[:, :, 0], zeros).astype(np.int64)
    return Quantised(codes.reshape(n, kp), scales, zeros)


def quantise_nf4(w: NDArray, group: int) -> Quantised:
    n, kp = w.shape[0], -(-w.shape[1] // GROUP) * GROUP
    x = padded(w, kp).reshape(n, -1, group).astype(F32)
    amax = np.abs(x).max(axis=2).astype(np.float16).astype(F32)
    inverse = np.divide(F32(127), amax, out=np.zeros_like(amax), where=amax > 0)
    middles = ((NF4[1:] + NF4[:-1]) / 2).astype(F32)
    index = np.searchsorted(middles, x * inverse[:, :, None], side="left")
    return Quantised(NF4[index].reshape(n, kp), amax * (F32(1) / F32(127)), np.zeros_like(amax))


def quantise(w: NDArray, number: str, group: int) -> Quantised:
    if number == "int8":
        return quantise_int8(w)
    return quantise_int4(w, group) if number == "int4" else quantise_nf4(w, group)


def quantise_activations(x: NDArray, *, per_token: bool) -> tuple[NDArray, NDArray, NDArray]:
    """int8 values [m, kp], scales [m, kp/128], sums of each 32 [m, kp/32]; finite input."""
    m, kp = x.shape[0], -(-x.shape[1] // GROUP) * GROUP
    grouped = padded(x, kp).reshape(m, -1, GROUP).astype(F32)
    amax = np.abs(grouped).max(axis=2)
    if per_token:
        amax = np.broadcast_to(amax.max(axis=1, keepdims=True), amax.shape).copy()
    amax[amax < F32(2.0**-120)] = 0
    inverse = np.divide(F32(127), amax, out=np.zeros_like(amax), where=amax > 0)
    values = np.rint(grouped * inverse[:, :, None]).astype(np.int8).reshape(m, kp)
    return values, (amax / F32(127)).astype(F32), values.reshape(m, -1, 32).sum(axis=2, dtype=np.int32)


def kv_head_bytes(kv: str, head_dim: int) -> int:
    """Bytes of one kv head's keys, values and scales of 16 tokens."""
    padded_dim = -(-head_dim // 4) * 4
    return {"f32": 128 * head_dim, "bf16": 64 * head_dim}.get(kv, 32 * padded_dim + 128)


def int8_rows(x: NDArray) -> tuple[NDArray, NDArray]:
    """Symmetric int8 codes and one fp32 scale per row of the last axis; finite input."""
    amax = np.abs(x).max(axis=-1, keepdims=True).astype(F32)
    amax[amax < F32(2.0**-120)] = 0
    inverse = np.divide(F32(127), amax, out=np.zeros_like(amax), where=amax > 0)
    return np.rint(x.astype(F32) * inverse).astype(np.int64), (amax / F32(127)).astype(F32)


def fp8_floats() -> NDArray:
    """Values of the 256 codes of e4m3fn: sign, four bits of exponent (bias 7), three of mantissa, 0x7f is NaN."""
    codes = np.arange(256)
    exponent, mantissa = codes >> 3 & 15, codes & 7
    magnitude = np.where(exponent == 0, mantissa / 8 * 2.0**-6, (1 + mantissa / 8) * 2.0 ** (exponent - 7.0))
    magnitude[codes & 127 == 127] = np.nan
    return np.where(codes >= 128, -magnitude, magnitude)


def fp8_rows(x: NDArray) -> NDArray:
    """Rows of the last axis with a scale of amax/448 and e4m3 values, as floats; half to even, finite input."""
    amax = np.abs(x).max(axis=-1, keepdims=True).astype(F32)
    inverse = np.divide(F32(448), amax, out=np.zeros_like(amax), where=amax > 0)
    scaled = np.minimum(np.abs(x.astype(F32) * inverse), 448).astype(np.float64)
    step = 2.0 ** (np.maximum(np.floor(np.log2(np.maximum(scaled, 2.0**-9))), -6) - 3)
    return np.copysign(np.rint(scaled / step) * step, x) * (amax / F32(448)).astype(np.float64)


def int8_attention(query: NDArray, keys: NDArray, values: NDArray, first: int, window: int, scale: float) -> NDArray:
    """Attention over an int8 cache in float64: exact but for what the format rounds, the weights of each 128 keys
    included (two pieces of seven bits, relative to the largest)."""
    (q, q_scale), (k, k_scale), (v, v_scale) = (int8_rows(x) for x in (query, keys, values))
    out = np.zeros(query.shape, np.float64)
    for i in range(query.shape[0]):
        end = first + i + 1
        begin = max(0, end - window) if window else 0
        scores = (q[i] @ k[begin:end].T) * (q_scale[i].astype(np.float64) * k_scale[begin:end, 0]) * scale
        weights = np.exp(scores - scores.max(axis=1, keepdims=True))
        for partition in range(begin // GROUP, (end - 1) // GROUP + 1):
            part = slice(max(begin, partition * GROUP), min(end, (partition + 1) * GROUP))
            w = weights[:, part.start - begin : part.stop - begin] * v_scale[part, 0]
            unit = w.max(axis=1, keepdims=True) / 16383
            out[i] += np.rint(np.divide(w, unit, out=np.zeros_like(w), where=unit > 0)) * unit @ v[part]
        out[i] /= weights.sum(axis=1, keepdims=True)
    return out.reshape(query.shape[0], -1)


def attention(query: NDArray, keys: NDArray, values: NDArray, first: int, window: int, scale: float) -> NDArray:
    """float64 softmax attention: query [t, h, d], keys and values [positions, d] -> [t, h * d]."""
    out = np.zeros(query.shape, np.float64)
    for i in range(query.shape[0]):
        end = first + i + 1
        begin = max(0, end - window) if window else 0
        scores = query[i].astype(np.float64) @ keys[begin:end].astype(np.float64).T * scale
        weights = np.exp(scores - scores.max(axis=1, keepdims=True))
        out[i] = weights / weights.sum(axis=1, keepdims=True) @ values[begin:end].astype(np.float64)
    return out.reshape(query.shape[0], -1)
