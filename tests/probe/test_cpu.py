"""Names, flags and cores."""

import os

import pytest

from openautoglm.probe.cpu import isas_of_flags, parse_cpuinfo, probe_cpu, usable_cores

CPUINFO = """processor\t: 0
model name\t: Some Processor 9000
flags\t\t: fpu avx2 fma f16c avx512f avx512bw avx512dq avx512vl avx512_vnni

processor\t: 1
model name\t: Another
flags\t\t: fpu
"""


def test_the_first_processor_is_read():
    name, flags = parse_cpuinfo(CPUINFO)
    assert name == "Some Processor 9000"
    assert isas_of_flags(flags) == ("scalar", "avx2", "avx512")


@pytest.mark.parametrize(
    ("flags", "isas"),
    [
        ("", ("scalar",)),
        ("avx2 fma", ("scalar",)),
        ("avx2 fma f16c", ("scalar", "avx2")),
        ("avx2 fma f16c avx512f avx512bw avx512dq avx512vl", ("scalar", "avx2")),
        (
            "avx2 fma f16c avx512f avx512bw avx512dq avx512vl avx512_vnni avx512_bf16",
            ("scalar", "avx2", "avx512", "avx512bf16"),
        ),
        (
            "avx2 fma f16c avx512f avx512bw avx512dq avx512vl avx512_vnni avx512_bf16 amx_tile amx_int8 amx_bf16",
            ("scalar", "avx2", "avx512", "avx512bf16", "amx"),
        ),
        (
            "avx2 fma f16c avx512f avx512bw avx512dq avx512vl avx512_vnni avx512_bf16 amx_tile amx_int8",
            ("scalar", "avx2", "avx512", "avx512bf16"),
        ),
    ],
)
def test_a_set_needs_all_of_its_flags(flags, isas):
    assert isas_of_flags(frozenset(flags.split())) == isas


def test_arm_features():
    assert parse_cpuinfo("Features\t: fp asimd\n") == ("", frozenset({"fp", "asimd"}))


@pytest.mark.parametrize(("quota", "cores"), [(None, 4), (8.0, 4), (2.5, 2), (0.2, 1)])
def test_usable_cores(quota, cores):
    assert usable_cores(4, quota) == cores


def test_affinity_bounds_the_cores():
    everything = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(everything)})
        assert probe_cpu().num_cores == 1
    finally:
        os.sched_setaffinity(0, everything)
