"""Prefix keys: equal histories and nothing else."""

from __future__ import annotations

import numpy as np

from openautoglm.engine.blocks import BlockPool
from openautoglm.engine.output import ChoiceText
from openautoglm.engine.prefix import KEY_BYTES, PrefixCache, block_key, root_key
from openautoglm.engine.request import Request, Sequence
from openautoglm.spec.sampling import SamplingParams
from tests.engine.history_executor import WordTokenizer


def make_sequence(tokens: list[int], root: bytes = b"root") -> Sequence:
    sampling = SamplingParams()
    request = Request(
        request_id="r",
        prompt=np.array(tokens, dtype=np.int32),
        sampling=sampling,
        seed=1,
        priority=0,
        arrival=0,
        root_key=root,
        max_new_tokens=8,
        eos_tokens=frozenset(),
        stop_tokens=frozenset(),
    )
    return Sequence(request, 0, max_blocks=16, text=ChoiceText(WordTokenizer(), sampling))


def computed(pool: BlockPool, cache: PrefixCache, tokens: list[int], root: bytes = b"root") -> Sequence:
    sequence = make_sequence(tokens, root)
    sequence.attach(pool.allocate(-(-len(tokens) // pool.block_tokens)) or [])
    sequence.num_computed = len(tokens)
    cache.register(sequence)
    return sequence


def test_roots_differ_by_fingerprint_and_namespace_and_where_one_ends() -> None:
    roots = {root_key("ab", "c"), root_key("a", "bc"), root_key("abc", ""), root_key("", "abc"), root_key("ab", "d")}
    assert len(roots) == 5
    assert {len(root) for root in roots} == {KEY_BYTES}
    assert root_key("ab", "c") == root_key("ab", "c")


def test_keys_depend_on_the_parent_and_the_tokens() -> None:
    assert block_key(b"p", b"t") == block_key(b"p", b"t")
    assert len({block_key(b"p", b"t"), block_key(b"q", b"t"), block_key(b"p", b"u")}) == 3


def test_whole_blocks_are_matched_and_never_the_last_token() -> None:
    pool = BlockPool(8, 4)
    cache = PrefixCache(pool)
    computed(pool, cache, list(range(12)))
    assert cache.match(make_sequence(list(range(12)))) == [0, 1], "12 tokens: the last block holds the last token"
    assert cache.match(make_sequence(list(range(13)))) == [0, 1, 2]
    assert cache.match(make_sequence(list(range(11)))) == [0, 1]
    assert cache.match(make_sequence(list(range(9)))) == [0, 1]
    assert cache.match(make_sequence(list(range(8)))) == [0]
    assert cache.match(make_sequence([0, 1, 2, 3])) == []
    assert cache.match(make_sequence([9, 1, 2, 3, 4, 5, 6, 7, 8])) == []
    assert cache.match(make_sequence([0, 1, 2, 3, 9, 5, 6, 7, 8])) == [0]


def test_a_later_block_is_not_matched_without_the_ones_before() -> None:
    pool = BlockPool(8, 4)
    cache = PrefixCache(pool)
    sequence = computed(pool, cache, list(range(12)))
    pool.release(sequence.detach())
    pool.drop_cached(1)
    assert cache.match(make_sequence(list(range(13)))) == [0, 1], "the end of the table goes first"
    pool.drop_cached(1)
    assert cache.match(make_sequence(list(range(13)))) == [0]


def test_namespaces_do_not_see_each_other() -> None:
    pool = BlockPool(8, 4)
    cache = PrefixCache(pool)
    computed(pool, cache, list(range(9)), root_key("f", "tenant-a"))
    assert cache.match(make_sequence(list(range(9)), root_key("f", "tenant-b"))) == []
    assert cache.match(make_sequence(list(range(9)), root_key("f", "tenant-a"))) == [0, 1]


def test_blocks_become_findable_as_they_are_filled() -> None:
    pool = BlockPool(8, 4)
    cache = PrefixCache(pool)
    sequence = make_sequence(list(range(10)))
    sequence.attach(pool.allocate(3) or [])
    for num_computed, matched in ((3, []), (4, [0]), (7, [0]), (10, [0, 1])):
        sequence.num_computed = num_computed
        cache.register(sequence)
        assert cache.match(make_sequence(list(range(20)))) == matched
    for token in (10, 11, 12):
        sequence.append(token)
    sequence.num_computed = 12
    cache.register(sequence)
    assert cache.match(make_sequence(list(range(20)))) == [0, 1, 2], "generated tokens are found too"


def test_blocks_computed_again_after_a_preemption_are_found_again() -> None:
    pool = BlockPool(8, 4)
    cache = PrefixCache(pool)
    sequence = computed(pool, cache, list(range(9)))
    pool.release(sequence.detach())
    pool.drop_cached()
    assert cache.match(make_sequence(list(range(9)))) == []
    sequence.attach(pool.allocate(3) or [])
    sequence.num_computed = 9
    cache.register(sequence)
    assert cache.match(make_sequence(list(range(9)))) == sequence.blocks[:2]
