"""With portable attention, or an int8 or fp8 KV cache, quantised weights give the same bytes on every instruction set,
whole outputs included."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest

from openautoglm import LLM, SamplingParams
from openautoglm.native import _core

PROMPT = Path(textwrap.__file__).read_text()[:700]
SAMPLINGS = (
    SamplingParams(temperature=0.0, max_tokens=12, logprobs=4, ignore_eos=True),
    SamplingParams(temperature=0.9, top_p=0.9, seed=5, max_tokens=12, logprobs=4, ignore_eos=True),
)


def outputs(isa: str, quant: str, settings: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> list[object]:
    monkeypatch.setenv("OPENAUTOGLM_ISA", isa)
    with LLM("demo", quant=quant, context=512, concurrency=2, **settings) as llm:
        return [[(c.tokens, c.logprobs) for c in llm.generate(PROMPT, sampling)[0].choices] for sampling in SAMPLINGS]


@pytest.mark.parametrize(
    ("quant", "settings"),
    [
        ("int8", {"attention": "portable"}),
        ("int4", {"attention": "portable"}),
        ("nf4", {"attention": "portable"}),
        ("int8", {"kv": "int8"}),
        ("int4", {"kv": "int8"}),
        ("int8", {"kv": "fp8"}),
    ],
)
def test_whole_outputs_agree_by_bytes(quant: str, settings: dict[str, str], monkeypatch: pytest.MonkeyPatch):
    sets = _core.available_isas()
    reference = outputs(sets[0], quant, settings, monkeypatch)
    for isa in sets[1:]:
        assert outputs(isa, quant, settings, monkeypatch) == reference, isa
