"""With portable attention, quantised weights give the same bytes on every instruction set, whole outputs included."""

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


def outputs(isa: str, quant: str, monkeypatch: pytest.MonkeyPatch) -> list[object]:
    monkeypatch.setenv("OPENAUTOGLM_ISA", isa)
    with LLM("demo", quant=quant, attention="portable", context=512, concurrency=2) as llm:
        return [[(c.tokens, c.logprobs) for c in llm.generate(PROMPT, sampling)[0].choices] for sampling in SAMPLINGS]


@pytest.mark.parametrize("quant", ["int8", "int4", "nf4"])
def test_whole_outputs_agree_by_bytes(quant: str, monkeypatch: pytest.MonkeyPatch):
    sets = _core.available_isas()
    reference = outputs(sets[0], quant, monkeypatch)
    for isa in sets[1:]:
        assert outputs(isa, quant, monkeypatch) == reference, isa
