"""What stands beside the weights decides what the runtime takes."""

import json

import pytest

from openautoglm.checkpoint.reference import ModelReference, parse_reference
from openautoglm.checkpoint.tensors import TensorInfo
from openautoglm.memory.runtime import estimated_tokenizer, runtime_bytes, tokenizer_bytes
from openautoglm.planner.runtime_needs import runtime_needs
from openautoglm.spec.tokenizer import TokenizerSize
from openautoglm.units import MIB
from tests.planner.models import SMALL


def test_the_models_own_tokenizer_is_counted(tmp_path):
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": {"vocab": {}, "merges": [["a", "b"]] * 7}}))
    needs = runtime_needs(SMALL, parse_reference(str(tmp_path)), None)
    assert needs.tokenizer == TokenizerSize(num_entries=1000, num_merges=7)
    assert needs.source_item_bytes == 2
    assert not needs.server


def test_without_one_published_tokenizers_are_the_guide(tmp_path):
    assert runtime_needs(SMALL, ModelReference(path=tmp_path), None).tokenizer == estimated_tokenizer(1000)
    file = tmp_path / "config.json"
    file.write_text("{}")
    assert runtime_needs(SMALL, ModelReference(path=file), None).tokenizer == estimated_tokenizer(1000)


def test_numbers_of_four_bytes_make_larger_slices(tmp_path):
    def needs(dtype, shape):
        tensor = TensorInfo(name="x", dtype=dtype, shape=shape, file=tmp_path, begin=0, end=4)
        return runtime_needs(SMALL, ModelReference(path=tmp_path), {"x": tensor}).source_item_bytes

    assert needs("F32", (1, 1)) == 4
    assert needs("BF16", (1, 1)) == 2
    assert needs("F32", (1,)) == 2  # vectors are small


def test_a_server_takes_a_second_process_and_a_second_tokenizer(tmp_path):
    library = runtime_needs(SMALL, ModelReference(path=tmp_path), None)
    server = runtime_needs(SMALL, ModelReference(path=tmp_path), None, server=True)
    more = runtime_bytes(server, 2) - runtime_bytes(library, 2)
    assert more >= 48 * MIB + tokenizer_bytes(library.tokenizer)


@pytest.mark.parametrize(
    ("num_entries", "num_merges", "measured_mib"),
    [(4096, 3830, 3.6), (59980, 59604, 40.9), (151980, 151385, 102.6), (115123, 335857, 174.2)],
)
def test_tokenizers_take_what_was_measured(num_entries, num_merges, measured_mib):
    """Resident growth of loading byte-level BPE files of these sizes with tokenizers 0.23."""
    planned = tokenizer_bytes(TokenizerSize(num_entries=num_entries, num_merges=num_merges)) / MIB
    assert measured_mib <= planned <= 1.1 * measured_mib + 1
