"""A bench of the embedded model: real steps, sane figures, JSON, a picture."""

import json
from dataclasses import replace

import numpy as np
import pytest
from click.testing import CliRunner

from openautoglm.bench.batches import Row, random_step
from openautoglm.bench.measure import Measurement, Subject, fits
from openautoglm.bench.plot import save_plot
from openautoglm.bench.report import report_as_dict, report_table
from openautoglm.bench.run import bench_model, prepare_bench
from openautoglm.cli.bench import bench_command
from openautoglm.errors import ConfigError, DoesNotFitError
from openautoglm.executor.protocol import CacheGroup, ExecutorLayout
from openautoglm.spec.formats import ModelFormats, NumberFormat
from openautoglm.spec.goal import Goal
from openautoglm.spec.offload import OffloadMode
from openautoglm.units import MIB
from tests.planner.models import SMALL


@pytest.fixture(scope="module")
def report():
    return bench_model("demo", Goal(quant=NumberFormat.INT8, concurrency=4, num_threads=2), repetitions=1)


def test_every_scenario_that_fits_is_measured(report):
    measured = [(one.kind, one.size) for one in report.measurements]
    assert measured == [("prefill", 128), ("prefill", 512), ("decode", 1), ("decode", 4), ("first_token", 128)]
    assert all(0 < one.fastest_seconds <= one.seconds for one in report.measurements)
    assert report.load_seconds > 0


def test_the_roofline_is_measured(report):
    roofline = report.roofline
    assert roofline.num_threads == 2
    assert roofline.int8_operations_per_second >= roofline.f32_operations_per_second > 1e9
    assert roofline.read_bytes_per_second > 1e9


def test_memory_is_the_executors_own(report):
    assert report.memory.weight_bytes == pytest.approx(report.plan.breakdown.weight_bytes, rel=0.01)
    assert report.memory.kv_bytes == report.plan.breakdown.kv_bytes
    assert report.memory.workspace_bytes == report.plan.breakdown.workspace_bytes
    assert report.memory.peak_bytes >= report.memory.weight_bytes


def test_table_and_json(report):
    table = report_table(report)
    for text in ("prefill 512 tokens", "decode, batch 4", "first token of 128", "GB/s", "peak memory"):
        assert text in table
    answer = json.loads(json.dumps(report_as_dict(report)))
    for one in answer["measurements"]:
        assert one["roofline_share"] == pytest.approx(one["least_seconds"] / one["seconds"])
    decode = next(one for one in answer["measurements"] if one["kind"] == "decode" and one["size"] == 4)
    assert decode["tokens_per_second"] == pytest.approx(4 / decode["seconds"])


def test_a_picture_is_written(report, tmp_path):
    save_plot(report, tmp_path / "out.png")
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ConfigError, match="png"):
        save_plot(report, tmp_path / "out.txt")


def test_the_command_prints_json_alone(tmp_path):
    arguments = ["demo", "--concurrency", "1", "--quant", "int8", "--repetitions", "1", "--json"]
    arguments += ["--plot", str(tmp_path / "bench.svg")]
    result = CliRunner().invoke(bench_command, arguments, catch_exceptions=False)
    assert json.loads(result.stdout)["plan"]["concurrency"] == 1
    assert "<svg" in (tmp_path / "bench.svg").read_text()


def test_fewer_sequences_where_memory_is_short():
    goal = Goal(quant=NumberFormat.INT8, kv=NumberFormat.BF16)
    whole = prepare_bench("demo", goal)
    assert (whole.plan.concurrency, whole.plan.context_tokens) == (32, 256)
    short = whole.plan.breakdown.total_bytes - 5 * MIB
    assert prepare_bench("demo", replace(goal, memory_bytes=short)).plan.concurrency == 16
    with pytest.raises(DoesNotFitError):
        prepare_bench("demo", replace(goal, memory_bytes=short, concurrency=32, offload=OffloadMode.NONE))
    on_disk = prepare_bench("demo", replace(goal, memory_bytes=short, concurrency=32)).plan
    assert on_disk.concurrency == 32
    assert on_disk.offload is not None
    assert on_disk.offload.speed is not None


def test_a_step_of_random_tokens():
    rows = [Row(blocks=(3, 1), num_cached=17, num_new=4), Row(blocks=(0,), num_cached=0, num_new=2)]
    step = random_step(rows, vocab_size=50, seed=7, sample=True)
    assert step.tokens.shape == (6,)
    assert step.tokens.min() >= 0
    assert step.tokens.max() < 50
    assert step.positions.tolist() == [17, 18, 19, 20, 0, 1]
    assert step.row_offsets.tolist() == [0, 4, 6]
    assert step.block_tables[0].tolist() == [[3, 1], [0, -1]]
    assert step.sample is not None
    assert step.sample.token_indices.tolist() == [3, 5]
    assert step.sample.positions.tolist() == [21, 2]
    again = random_step(rows, vocab_size=50, seed=7, sample=False)
    assert np.array_equal(again.tokens, step.tokens)
    assert again.sample is None


class Limits:
    """An executor that is asked for its limits only."""

    def layout(self):
        group = CacheGroup(layers=(0,), block_tokens=16, block_bytes=1)
        return ExecutorLayout(
            groups=(group,), num_blocks=10, max_blocks=10, max_step_tokens=64, max_step_rows=4, vocab_size=1000
        )


@pytest.mark.parametrize(
    ("rows", "tokens", "expected"), [(1, 160, True), (1, 161, False), (4, 32, True), (4, 33, False), (5, 16, False)]
)
def test_what_the_pool_has_room_for(rows, tokens, expected):
    formats = ModelFormats.for_quantisation(NumberFormat.INT8)
    assert fits(Subject(executor=Limits(), spec=SMALL, formats=formats), rows, tokens) is expected


def test_speeds_are_tokens_over_the_median(report):
    one = report.measurements[0]
    doubled = Measurement(
        kind=one.kind,
        size=one.size,
        seconds=2 * one.seconds,
        fastest_seconds=one.fastest_seconds,
        num_tokens=one.num_tokens,
        work=one.work,
    )
    assert doubled.tokens_per_second == pytest.approx(one.tokens_per_second / 2)
    assert doubled.roofline_share(report.roofline) == pytest.approx(one.roofline_share(report.roofline) / 2)
