"""What is compared: an engine, its form of the weights, and its settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace


@dataclass(frozen=True, slots=True, kw_only=True)
class Bits:
    """Bits per weight that a step reads, scales included, of layers and head, and per element of the KV cache.

    `unit` is the fastest arithmetic that fits the weights ("int8", "bf16" or "f32"): a share of the roofline is a
    share of what the machine could do with this form, whatever the engine computes in.
    """

    layers: float
    head: float
    kv: float
    unit: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One row of the table. `artifact` names its weights (see `artifacts`), `klass` the bits it competes at."""

    name: str
    engine: str
    environment: str
    worker: str
    artifact: str
    klass: str
    bits: Bits
    options: Mapping[str, str] = field(default_factory=dict)
    variables: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_limited(self) -> bool:
        """Whether it is told, or was built, to do without instructions that the processor has."""
        return self.klass.endswith(AVX2)


OURS = "openautoglm"
# Per group of weights: fp16 scale and u8 zero point (ours, padded: 35 bytes per 64), fp16 scale (Q4_0, Q8_0: per 32,
# Q6_K: 210 bytes per 256), fp16 scale and u4 zero point (OpenVINO), fp32 scale (ONNX Runtime: per 32).
INT4_OURS = Bits(layers=4.375, head=8.0, kv=16, unit="int8")
INT8_OURS = Bits(layers=8.0, head=8.0, kv=16, unit="int8")
Q4_0 = Bits(layers=4.5, head=6.5625, kv=16, unit="int8")
Q8_0 = Bits(layers=8.5, head=8.5, kv=16, unit="int8")
INT4_OPENVINO = Bits(layers=4.3125, head=8.0, kv=8, unit="int8")
INT8_OPENVINO = Bits(layers=8.0, head=8.0, kv=8, unit="int8")
INT4_ONNX = Bits(layers=5.0, head=5.0, kv=32, unit="int8")
INT8_ONNX = Bits(layers=9.0, head=9.0, kv=32, unit="int8")
BF16 = Bits(layers=16, head=16, kv=16, unit="bf16")
F32 = Bits(layers=32, head=32, kv=32, unit="f32")

# With the default precision the plugin computes in bf16 where the processor has it; this lets it stay in integers.
OPENVINO_INTEGERS = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "128"}


# Peers that can be told to leave AVX-512 alone, or built so, beside this engine told the same.
AVX2 = ", AVX2"
OURS_AVX2 = {"OPENAUTOGLM_ISA": "avx2"}
OPENVINO_AVX2 = {"ONEDNN_MAX_CPU_ISA": "AVX2", "DNNL_MAX_CPU_ISA": "AVX2"}


def _ours(
    quant: str, bits: Bits, klass: str, *, kv: str = "bf16", variables: Mapping[str, str] | None = None
) -> Variant:
    suffix = (", int8 KV" if kv == "int8" else "") + (", AVX2" if variables else "")
    return Variant(
        name=f"{OURS} {quant}{suffix}",
        engine=OURS,
        environment="",
        worker="ours_worker",
        artifact="checkpoint",
        klass=klass,
        bits=replace(bits, kv=8.5) if kv == "int8" else bits,
        options={"quant": quant, "kv": kv},
        variables=variables or {},
    )


def _llama(name: str, bits: Bits, klass: str) -> Variant:
    limited = klass.endswith(AVX2)
    return Variant(
        name=f"llama.cpp {name}{AVX2 if limited else ''}",
        engine="llama.cpp",
        environment="llama-cpp-avx2" if limited else "llama-cpp",
        worker="llama_worker",
        artifact=f"gguf-{name}",
        klass=klass,
        bits=bits,
    )


def _openvino(
    quant: str,
    bits: Bits,
    klass: str,
    settings: str,
    options: Mapping[str, str],
    variables: Mapping[str, str] | None = None,
) -> Variant:
    return Variant(
        name=f"OpenVINO {quant}, {settings}",
        engine="OpenVINO GenAI",
        environment="openvino",
        worker="openvino_worker",
        artifact=f"openvino-{quant}",
        klass=klass,
        bits=bits,
        options=options,
        variables=variables or {},
    )


def _onnx(quant: str, bits: Bits, klass: str) -> Variant:
    return Variant(
        name=f"ONNX Runtime {quant} g32",
        engine="ONNX Runtime GenAI",
        environment="onnxruntime",
        worker="onnxruntime_worker",
        artifact=f"onnx-{quant}",
        klass=klass,
        bits=bits,
    )


def _transformers(dtype: str, bits: Bits, klass: str) -> Variant:
    return Variant(
        name=f"transformers {dtype}",
        engine="transformers",
        environment="transformers",
        worker="transformers_worker",
        artifact="checkpoint",
        klass=klass,
        bits=bits,
        options={"dtype": dtype},
    )


VARIANTS = (
    _ours("int4", INT4_OURS, "4 bits"),
    _ours("int4", INT4_OURS, "4 bits", kv="int8"),
    _llama("Q4_0", Q4_0, "4 bits"),
    _openvino("int4", INT4_OPENVINO, "4 bits", "default", {}),
    _openvino("int4", INT4_OPENVINO, "4 bits", "f32 hint, groups of 128", OPENVINO_INTEGERS),
    _onnx("int4", INT4_ONNX, "4 bits"),
    _ours("int8", INT8_OURS, "8 bits"),
    _ours("int8", INT8_OURS, "8 bits", kv="int8"),
    _llama("Q8_0", Q8_0, "8 bits"),
    _openvino("int8", INT8_OPENVINO, "8 bits", "default", {}),
    _openvino("int8", INT8_OPENVINO, "8 bits", "f32 hint, groups of 128", OPENVINO_INTEGERS),
    _onnx("int8", INT8_ONNX, "8 bits"),
    _ours("int4", INT4_OURS, "4 bits, AVX2", variables=OURS_AVX2),
    _llama("Q4_0", Q4_0, "4 bits, AVX2"),
    _openvino("int4", INT4_OPENVINO, "4 bits, AVX2", "AVX2", {}, OPENVINO_AVX2),
    _ours("int8", INT8_OURS, "8 bits, AVX2", variables=OURS_AVX2),
    _llama("Q8_0", Q8_0, "8 bits, AVX2"),
    _openvino("int8", INT8_OPENVINO, "8 bits, AVX2", "AVX2", {}, OPENVINO_AVX2),
    _ours("bf16", BF16, "16 bits"),
    _llama("BF16", BF16, "16 bits"),
    _transformers("bfloat16", BF16, "16 bits"),
    Variant(
        name="vLLM bf16",
        engine="vLLM CPU",
        environment="vllm",
        worker="vllm_worker",
        artifact="checkpoint",
        klass="16 bits",
        bits=BF16,
        options={"dtype": '"bfloat16"'},
    ),
    _transformers("float32", F32, "32 bits"),
)
