"""`PrefixCache`: finds blocks whose content is the beginning of a sequence.

A block's key is a hash over the keys before it and its own tokens, so that equal keys mean equal histories:

    root = H(fingerprint, namespace)     key[i] = H(key[i-1], tokens[16i : 16i+16])

The fingerprint covers everything that could change the stored numbers; namespaces keep tenants apart. Prompts that
the operator pins live under a root of their own, which everybody may read: it comes of a secret of this process, so
that no request has it as its own and writes there.
"""

from __future__ import annotations

import secrets
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from openautoglm.engine.blocks import BlockPool
from openautoglm.engine.request import Sequence

KEY_BYTES = 16


def root_key(fingerprint: str, namespace: str) -> bytes:
    """Return the key that every sequence of a namespace starts from."""
    hasher = blake2b(digest_size=KEY_BYTES)
    for text in (fingerprint, namespace):
        data = text.encode("utf-8", "surrogatepass")
        hasher.update(len(data).to_bytes(8, "little") + data)
    return hasher.digest()


def session_key(root: bytes, session_id: str) -> bytes:
    """Return what names a session of the tenant whose prefixes grow from `root`."""
    return blake2b(session_id.encode("utf-8", "surrogatepass"), key=root, digest_size=KEY_BYTES).digest()


def block_key(parent: bytes, tokens: bytes) -> bytes:
    """Return the key of a block that follows `parent`; `tokens` are the bytes of its int32 ids."""
    return blake2b(parent + tokens, digest_size=KEY_BYTES).digest()


class PrefixCache:
    """Matches and registers the full blocks of sequences in a `BlockPool`."""

    def __init__(self, pool: BlockPool) -> None:
        self._pool = pool
        self.public_root = root_key("public", secrets.token_hex(32))
        self.num_public_blocks = 0  # of the longest prompt under it

    def public_keys(self, tokens: NDArray[np.int32]) -> list[bytes]:
        """Return the keys of the whole blocks of a prompt that everybody may read."""
        keys, data, size = [self.public_root], tokens.tobytes(), self._pool.block_tokens * tokens.itemsize
        for offset in range(0, len(data) // size * size, size):
            keys.append(block_key(keys[-1], data[offset : offset + size]))
        return keys[1:]

    def match(self, sequence: Sequence) -> list[int]:
        """Return the blocks that already hold the sequence's beginning, without taking them.

        Whole blocks only, and at most num_tokens - 1 tokens: the last token must be computed to draw the next one.
        """
        limit = (sequence.num_tokens - 1) // self._pool.block_tokens
        self._extend_keys(sequence, limit)
        public = self._match_public(sequence, limit)
        blocks: list[int] = []
        for index, key in enumerate(sequence.keys[1 : limit + 1]):
            block = public[index] if index < len(public) else self._pool.lookup(key)
            if block is None:
                break
            blocks.append(block)
        return blocks

    def _match_public(self, sequence: Sequence, limit: int) -> list[int]:
        """Return the blocks of the sequence's beginning that everybody may read."""
        blocks: list[int] = []
        size, key = self._pool.block_tokens, self.public_root
        for index in range(min(limit, self.num_public_blocks)):
            key = block_key(key, sequence.tokens(index * size, (index + 1) * size).tobytes())
            block = self._pool.lookup(key)
            if block is None:
                break
            blocks.append(block)
        return blocks

    def register(self, sequence: Sequence) -> None:
        """Make the blocks that are now fully computed findable. Call after the step that computed them."""
        num_full = sequence.num_computed // self._pool.block_tokens
        if num_full == sequence.num_registered:
            return
        self._extend_keys(sequence, num_full)
        for index in range(sequence.num_registered, num_full):
            self._pool.register(sequence.blocks[index], sequence.keys[index + 1])
        sequence.num_registered = num_full

    def content_keys(self, sequence: Sequence) -> list[bytes]:
        """Return a key for what each of the sequence's computed blocks holds, a partly filled last one included."""
        num_full, rest = divmod(sequence.num_computed, self._pool.block_tokens)
        self._extend_keys(sequence, num_full)
        keys = sequence.keys[1 : num_full + 1]
        if rest:
            tail = sequence.tokens(sequence.num_computed - rest, sequence.num_computed)
            keys.append(block_key(sequence.keys[num_full], tail.tobytes()))
        return keys

    def _extend_keys(self, sequence: Sequence, num_blocks: int) -> None:
        """Make sequence.keys (the root, then one key a block) cover `num_blocks` blocks."""
        keys, size = sequence.keys, self._pool.block_tokens
        begin = len(keys) - 1
        if begin >= num_blocks:
            return
        data = sequence.tokens(begin * size, num_blocks * size).tobytes()
        for offset in range(0, len(data), size * 4):
            keys.append(block_key(keys[-1], data[offset : offset + size * 4]))
