"""Spill tiers through the library: settings by name, refused where they are none, and the same answers."""

from __future__ import annotations

from pathlib import Path

import pytest

from openautoglm.errors import ConfigError
from openautoglm.llm import LLM, plan
from openautoglm.spec.sampling import SamplingParams
from openautoglm.spec.spill import SpillTiers
from openautoglm.units import MIB

PROMPTS = [f"# file {number}\nimport os\nclass Thing{number}:\n    def __init__(self):\n" for number in range(8)]
SAMPLING = SamplingParams(max_tokens=120, temperature=0.9, seed=3, ignore_eos=True)


def test_the_library_spills(tmp_path: Path) -> None:
    wishes = {"memory": "240MiB", "quant": "int8", "context": 256, "concurrency": 2, "threads": 1}
    answers = []
    for settings in ({}, {"spill_memory": "1MiB", "spill_disk": 8 * MIB, "spill_dir": str(tmp_path)}):
        with LLM("demo", **wishes, **settings) as llm:  # type: ignore[arg-type]
            answers.append([completion.text for completion in llm.generate(PROMPTS, SAMPLING)])
            status = llm.engine_status()
            assert status.num_preemptions > 0
            assert (status.num_spills > 0) is bool(settings)
            assert llm.plan.spill == SpillTiers(
                memory_bytes=MIB if settings else 0, disk_bytes=8 * MIB if settings else 0,
                directory=str(tmp_path) if settings else None,
            )  # fmt: skip
    assert answers[0] == answers[1]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"spill_memory": True}, "spill_memory must be bytes or text"),
        ({"spill_disk": 1.5}, "spill_disk must be bytes or text"),
        ({"spill_disk": "many"}, "is not a size"),
        ({"spill_dir": 3}, "spill_dir must be text"),
        ({"spill_memory": -1}, "at least 0"),
        ({"spill": "1GiB"}, "unknown settings"),
    ],
)
def test_what_is_no_tier_is_refused(settings: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        plan("demo", **settings)  # type: ignore[arg-type]
