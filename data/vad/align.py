"""Align the valence, arousal and dominance of words with the pieces of a tokenizer.

GPT-2 splits words (" yell|ows", " past|el", " som|ber"). Looking up single pieces, as SEVLM does (arXiv 2403.11150),
gives such words no values or those of another word. Here a piece has the values of the *word so far*, from the first
letter of the word to the end of the piece. They do not depend on later pieces, so training and generation agree.

The rules:

- A word is a maximal run of letters (with their combining marks) in the decoded text; one apostrophe or hyphen between
  two letters is inside the word. Digits, underscores and all other characters end it. A character belongs to the piece
  with its last byte. WordPiece has no spaces: there, every piece without "##" begins a word, so "o'clock" is two.
- A piece has the values of the last word that has a letter in it, up to the end of the piece ("y." has those of the
  word that ends with the y). A piece without a letter, a special token and padding are unknown.
- The word so far is looked up as a whole ("yo-yo", "o'clock"); if that fails, its last part is ("green" in
  "blue-green"). A part that is a clitic ('s, 't, 'd, 'm, 're, 've, 'll) has no values.
- A piece is a target if its values are known and it ends its word. A word that is not in the lexicon as a whole ends
  after every part, so "tree" is a target in "tree's" and "blue" in "blue-green". The letters before 't are not a word
  ("won't").
"""

from __future__ import annotations

import codecs
import functools
import re
import unicodedata
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from data.vad.lexicon import APOSTROPHES, Lexicon, Vad, normalize_word
from data.vad.piece_bytes import piece_bytes
from data.vad.pieces import PieceState

JOINERS = "'-"
CLITICS = frozenset({"s", "t", "d", "m", "re", "ve", "ll"})
LETTERS = r"[^\W\d_](?:[^\W\d_]|[\u0300-\u036f])*"  # with their combining marks
WORD = re.compile(rf"{LETTERS}(?:['’‐‑-]{LETTERS})*")
CACHED_CHUNKS = 1 << 17


class _Value(NamedTuple):
    vad: Vad
    known: bool
    target: bool


_UNKNOWN = _Value((0.0, 0.0, 0.0), known=False, target=False)


class VadAligner:
    """Assign the values of the word so far to every piece of a token sequence.

    Args:
        lexicon: the values of words; None makes every piece unknown, at no cost.
        tokenizer: a tokenizer of transformers: byte-level BPE, sentencepiece or WordPiece. Its special and added tokens
            are never part of a word.

    Raises:
        UserError: the tokenizer is of another kind.
    """

    def __init__(self, lexicon: Lexicon | None, tokenizer) -> None:
        self.lexicon = lexicon
        self.tokenizer = tokenizer
        # Bytes of a piece by id; special and added tokens, and ids beyond the vocabulary, have none.
        self._pieces = {} if lexicon is None else piece_bytes(tokenizer)
        # Pieces that may continue a word. All others begin with an ASCII character that ends any word.
        self._inner = frozenset(
            i
            for i, piece in self._pieces.items()
            if not piece or not piece[:1].isascii() or piece[:1].isalpha() or piece[:1] in (b"'", b"-")
        )
        self.evaluate = functools.lru_cache(maxsize=CACHED_CHUNKS)(self._evaluate)

    def __reduce__(self) -> tuple:
        return VadAligner, (self.lexicon, self.tokenizer)

    def align(self, input_ids: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
        """Return the values of a whole text, for training.

        Args:
            input_ids: L token ids, a sequence or a tensor with one axis.

        Returns:
            vad (L, 3) float32, valence, arousal, dominance in −1..1, 0 where unknown; known (L,) bool; target (L,)
            bool, the only one that depends on later pieces: the piece is known and ends its word.
        """
        ids = input_ids.tolist() if isinstance(input_ids, Tensor) else [int(i) for i in input_ids]
        if self.lexicon is None:
            flags = torch.zeros(len(ids), dtype=torch.bool)
            return torch.zeros(len(ids), 3), flags, flags.clone()
        values = [value for chunk in self._chunks(ids) for value in self.evaluate(chunk)]
        vad = torch.tensor([value.vad for value in values], dtype=torch.float32).view(len(ids), 3)
        known = torch.tensor([value.known for value in values], dtype=torch.bool)
        return vad, known, torch.tensor([value.target for value in values], dtype=torch.bool)

    def start(self, prompts: Sequence[Sequence[int]], device: torch.device) -> VadState | PieceState:
        """Return the state for generating on `device`, one row per prompt."""
        return PieceState(torch.zeros(1, 3, device=device)) if self.lexicon is None else VadState(self, prompts, device)

    def extend(self, chunk: tuple[int, ...], token: int) -> tuple[int, ...]:
        """Return the chunk that `token` belongs to, given the chunk before it."""
        return (*chunk, token) if token in self._inner else (token,)

    def coverage(self, texts: Iterable[str]) -> dict[str, float]:
        """Count how many lexicon words in `texts` get their values, here and with a lookup of single pieces.

        Words are matched in the text and mapped to pieces by the tokenizer's character offsets, independently of
        `align`; "tree's" counts as one word. `pieces_*` is the lookup of SEVLM, but with any case and this lexicon's
        lemmas: some piece has the word's values, else other values, else none.

        Returns:
            counts: texts, words, lexicon_words, split_words (lexicon words of several pieces); shares of lexicon_words:
            own (the last piece is a target with the word's values), pieces_own, pieces_other, pieces_none.
        """
        shares = ("own", "pieces_own", "pieces_other", "pieces_none")
        counts = dict.fromkeys(("texts", "words", "lexicon_words", "split_words", *shares), 0)
        for text in texts:
            for key in ("texts", *self._outcomes(" " + text)):
                counts[key] += 1
        return counts | {key: counts[key] / max(1, counts["lexicon_words"]) for key in shares}

    def _outcomes(self, text: str) -> Iterable[str]:
        """Yield the keys of `coverage` that each word of a text adds one to."""
        encoded = self.tokenizer(text, return_offsets_mapping=True, add_special_tokens=False)
        ids, offsets = encoded["input_ids"], encoded["offset_mapping"]
        vad, known, target = self.align(ids)
        for match in WORD.finditer(text):
            yield "words"
            values = self.lexicon.lookup(match[0]) if self.lexicon else None
            if values is None:
                continue
            inside = [i for i, (start, end) in enumerate(offsets) if start < match.end() and end > match.start()]
            last = inside[-1]
            own = bool(known[last] and target[last]) and torch.equal(vad[last], torch.tensor(values))
            pieces = [self.lexicon.lookup(self._pieces.get(ids[i], b"").decode(errors="replace")) for i in inside]
            way = "own" if values in pieces else "other" if any(pieces) else "none"
            yield from ("lexicon_words", f"pieces_{way}", *["own"] * own, *["split_words"] * (len(inside) > 1))

    def _chunks(self, ids: list[int]) -> Iterable[tuple[int, ...]]:
        """Cut `ids` before every piece that cannot continue a word."""
        begin = 0
        for end in range(1, len(ids) + 1):
            if end == len(ids) or ids[end] not in self._inner:
                yield tuple(ids[begin:end])
                begin = end

    def _evaluate(self, chunk: tuple[int, ...]) -> tuple[_Value, ...]:
        marks, words = _scan(self._pieces.get(i, b"") for i in chunk)
        ends = [self._ends(word) for word in words]
        values = []
        for mark in marks:
            word, length = mark or (0, 0)
            vad = self._value(words[word][:length]) if mark else None
            values.append(_UNKNOWN if vad is None else _Value(vad, known=True, target=length in ends[word]))
        return tuple(values)

    def _value(self, so_far: str) -> Vad | None:
        values = self.lexicon.lookup(so_far)
        if values is not None:
            return values
        cut = max(so_far.rfind(joiner) for joiner in JOINERS)
        part = so_far[cut + 1 :]
        if cut < 0 or (so_far[cut] == "'" and normalize_word(part) in CLITICS):
            return None
        return self.lexicon.lookup(part)

    def _ends(self, word: str) -> set[int]:
        """Return the lengths at which `word` is complete, or one of its parts if the lexicon lacks it as a whole."""
        ends = {len(word)}
        if self.lexicon.lookup(word) is None:
            ends.update(match.start() for match in re.finditer(r"-|'(?!t(?!\w))", word, re.IGNORECASE))
        return ends


class VadState:
    """The state of generation: the ids of the current chunk of each row."""

    def __init__(self, aligner: VadAligner, prompts: Sequence[Sequence[int]], device: torch.device) -> None:
        self.aligner, self.device = aligner, device
        self.chunks = [functools.reduce(aligner.extend, prompt, ()) for prompt in prompts]

    def step(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Append a token to every row, (N,) int64; return vad (N, 3) float32 and known (N,) bool as `align` does."""
        self.chunks = [self.aligner.extend(*row) for row in zip(self.chunks, tokens.tolist(), strict=True)]
        values = [self.aligner.evaluate(chunk)[-1] for chunk in self.chunks]
        vad = torch.tensor([value.vad for value in values], dtype=torch.float32, device=self.device).view(-1, 3)
        return vad, torch.tensor([value.known for value in values], dtype=torch.bool, device=self.device)

    def reorder(self, rows: Tensor) -> None:
        """Replace row r by a copy of row rows[r]; the number of rows may change."""
        self.chunks = [self.chunks[row] for row in rows.tolist()]


def _scan(pieces: Iterable[bytes]) -> tuple[list[tuple[int, int] | None], list[str]]:
    """Find the words of a chunk from the bytes of its pieces; a special token has none and is always the first.

    Returns:
        for every piece a mark: index of the last word with a letter in it, and length of that word at the end of the
        piece; and the whole words. A mark, and the word up to its length, do not depend on later pieces.
    """
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    marks: list[tuple[int, int] | None] = []
    words: list[str] = []
    inside, joiner = False, ""
    for piece in pieces:
        mark = None
        for char in decoder.decode(piece).translate(APOSTROPHES):
            if char.isalpha() or (inside and not joiner and unicodedata.category(char).startswith("M")):
                if inside:
                    words[-1] += joiner + char
                else:
                    words.append(char)
                inside, joiner = True, ""
                mark = len(words) - 1, len(words[-1])
            else:
                inside, joiner = inside and not joiner and char in JOINERS, char
        marks.append(mark)
    return marks, words
