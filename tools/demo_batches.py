"""Token windows for training: library text, test text and conversations, mixed by share; all held in memory."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Tokenizer

from demo_conversations import Conversation, conversations, entries
from demo_corpus import Document, library_documents, topic_documents
from demo_tokenizer import DOCUMENT_PREFIX, END_OF_TEXT, special_ids

TokenArray = npt.NDArray[np.uint16]

TEST_SHARE = 0.07
# Each variant draws the phrasings anew; more variants than passes over the data would be waste.
NUM_CONVERSATION_VARIANTS = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Corpus:
    """All texts of a run. `held_out` is measured and never trained on."""

    library: list[Document]
    tests: list[Document]
    held_out: list[Document]
    conversations: list[Conversation]


def load_corpus(*, seed: int) -> Corpus:
    """Read the standard library and build the conversations (about 5 seconds, 200 MB)."""
    documents = library_documents(with_tests=True)
    topics = topic_documents()
    found = entries(documents, topics)
    talks = [talk for variant in range(NUM_CONVERSATION_VARIANTS) for talk in conversations(found, seed=seed + variant)]
    training = [document for document in documents if not document.held_out]
    return Corpus(
        library=[document for document in training if not document.is_test] + topics,
        tests=[document for document in training if document.is_test],
        held_out=[document for document in documents if document.held_out],
        conversations=talks,
    )


def encode_documents(tokenizer: Tokenizer, documents: list[Document]) -> list[TokenArray]:
    """`[gMASK]<sop>` + text + `<|endoftext|>` for each document."""
    end = special_ids(tokenizer)[END_OF_TEXT]
    encodings = tokenizer.encode_batch([document.text for document in documents])
    return [np.array([*encoding.ids, end], dtype=np.uint16) for encoding in encodings]


def encode_conversations(tokenizer: Tokenizer, talks: list[Conversation]) -> list[TokenArray]:
    """The chat template applied to each conversation; `<|endoftext|>` closes the last turn."""
    special = special_ids(tokenizer)
    prefix = [special[token] for token in DOCUMENT_PREFIX]
    texts = [f"\n{text}" for talk in talks for _, text in talk]
    encodings = iter(tokenizer.encode_batch(texts, add_special_tokens=False))
    result: list[TokenArray] = []
    for talk in talks:
        ids = list(prefix)
        for role, _ in talk:
            ids.append(special[f"<|{role}|>"])
            ids.extend(next(encodings).ids)
        ids.append(special[END_OF_TEXT])
        result.append(np.array(ids, dtype=np.uint16))
    return result


class Stream:
    """Endless tokens from shuffled pieces, reshuffled on every pass; counts the passes."""

    def __init__(self, pieces: list[TokenArray], generator: np.random.Generator) -> None:
        self.pieces = pieces
        self.generator = generator
        self.num_tokens = sum(len(piece) for piece in pieces)
        self.num_passes = 0
        self._order: list[int] = []

    def next_piece(self) -> TokenArray:
        """The next piece of this pass; a new pass starts when all are used."""
        if not self._order:
            self._order = [int(index) for index in self.generator.permutation(len(self.pieces))]
            self.num_passes += 1
        return self.pieces[self._order.pop()]


class LibraryWindows:
    """Windows over the concatenation of all documents in random order; every token once per pass."""

    def __init__(self, pieces: list[TokenArray], generator: np.random.Generator) -> None:
        self.stream = Stream(pieces, generator)
        self.generator = generator
        self._text = np.zeros(0, dtype=np.uint16)
        self._starts: list[int] = []
        self._length = 0

    def next_window(self, num_tokens: int) -> TokenArray:
        """`num_tokens` + 1 consecutive tokens (inputs and shifted targets)."""
        if num_tokens != self._length or not self._starts:
            count = len(self.stream.pieces)
            phase = int(self.generator.integers(num_tokens))
            self._text = np.concatenate([self.stream.next_piece() for _ in range(count)])
            starts = np.arange(phase, len(self._text) - num_tokens - 1, num_tokens)
            self._starts = [int(start) for start in self.generator.permutation(starts)]
            self._length = num_tokens
        start = self._starts.pop()
        return self._text[start : start + num_tokens + 1]


class ConversationWindows:
    """Windows that begin with a conversation, as every served prompt does; the last one is cut."""

    def __init__(self, pieces: list[TokenArray], generator: np.random.Generator) -> None:
        self.stream = Stream(pieces, generator)

    def next_window(self, num_tokens: int) -> TokenArray:
        """`num_tokens` + 1 tokens of whole conversations, one after the other."""
        pieces: list[TokenArray] = []
        missing = num_tokens + 1
        while missing > 0:
            piece = self.stream.next_piece()[:missing]
            pieces.append(piece)
            missing -= len(piece)
        return np.concatenate(pieces)


class Mixer:
    """Batches with given shares of conversations, test text and library text."""

    def __init__(self, tokenizer: Tokenizer, corpus: Corpus, *, seed: int) -> None:
        generator = np.random.default_rng(seed)
        self.generator = generator
        self.library = LibraryWindows(encode_documents(tokenizer, corpus.library), generator)
        self.tests = LibraryWindows(encode_documents(tokenizer, corpus.tests), generator)
        self.chat = ConversationWindows(encode_conversations(tokenizer, corpus.conversations), generator)

    def batch(self, num_rows: int, num_tokens: int, *, chat_share: float) -> tuple[torch.Tensor, torch.Tensor]:
        """Inputs and targets, both [rows, tokens] int64; `chat_share` is the chance that a row is conversations."""
        rows: list[TokenArray] = []
        for choice in self.generator.random(num_rows):
            source: LibraryWindows | ConversationWindows = self.library
            if choice < chat_share:
                source = self.chat
            elif choice < chat_share + TEST_SHARE:
                source = self.tests
            rows.append(source.next_window(num_tokens))
        block = torch.from_numpy(np.stack(rows).astype(np.int64))
        return block[:, :-1], block[:, 1:]
