"""Builds the tables of data/vad_table.py: hashes of words, and what each piece of the vocabulary does to one.

Axes: F forms, P pieces, C characters that can be part of a word.
"""

from __future__ import annotations

import codecs
import itertools
import sys
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from functools import cache

import numpy as np

from data.lexicon import APOSTROPHES, Vad, normalise

# Modes.
OUTSIDE, INSIDE, AFTER_APOSTROPHE, AFTER_HYPHEN = range(4)
# Kinds of characters.
OTHER, LETTER, MARK, APOSTROPHE, HYPHEN = range(5)
NEXT_MODE = np.array(
    [
        # OTHER   LETTER   MARK    APOSTROPHE         HYPHEN
        [OUTSIDE, INSIDE, OUTSIDE, OUTSIDE, OUTSIDE],
        [OUTSIDE, INSIDE, INSIDE, AFTER_APOSTROPHE, AFTER_HYPHEN],
        [OUTSIDE, INSIDE, OUTSIDE, OUTSIDE, OUTSIDE],
        [OUTSIDE, INSIDE, OUTSIDE, OUTSIDE, OUTSIDE],
    ]
)
NOTHING, BREAK = 0, 1  # the first two moves: no text, and a character that ends a word
STRANGE = "\uffff"  # stands for every letter and mark that no form has
LAST = np.iinfo(np.int64).max  # beyond all hashes and characters
LONGEST = 4  # bytes of a character in UTF-8
CONTINUATION = bytes(range(0x80, 0xC0))  # all but the first of them


def build_arrays(
    pieces: Mapping[int, bytes], forms: Mapping[str, Vad], *, clitics: frozenset[str]
) -> dict[str, np.ndarray]:
    """The fields of VadTable; see VadTable.build."""
    # Phrases, and forms such as "'s", are never met as a whole word.
    words = [form for form in forms if form[:1] not in ("", "'") and not any(char.isspace() for char in form)]
    values = [forms[word] for word in words]
    values += [forms[word] for word in words if word not in clitics]
    words += [f"'{word}" for word in words if word not in clitics]  # as the last part of a word
    hashing = Hashing.without_collisions(words)
    symbols = _Symbols(frozenset("".join(words)), hashing)
    table, texts = _read_pieces(pieces, symbols.examples)
    hashes = hashing.of(words)[1].view(np.int64)
    order = np.argsort(hashes)
    return {
        "pieces": table,
        "moves": _moves(texts, symbols, hashing),
        "characters": symbols.bytes,
        "character_moves": symbols.moves,
        "hashes": np.append(hashes[order], LAST),
        "values": np.array([*values, (0.0, 0.0, 0.0)], dtype=np.float32)[np.append(order, len(words))],
    }


class Hashing:
    """h → M·h + g(c), modulo 2^64, with an odd M; g scatters the code points over all 64 bits."""

    def __init__(self, seed: int) -> None:
        self.factor = _scattered(np.array([seed], dtype=np.uint64)) | np.uint64(1)  # (1,): arrays wrap in silence

    @classmethod
    def without_collisions(cls, words: Sequence[str]) -> Hashing:
        """The first of a fixed series under which no two of `words` meet, nor any is LAST."""
        taken = np.array([LAST], dtype=np.uint64)
        series = (cls(seed) for seed in itertools.count())
        return next(h for h in series if len(np.unique(np.append(h.of(words)[1], taken))) == len(words) + 1)

    def of(self, words: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """What each word does to a hash, factor and summand, (F,) uint64; the summand is its own hash."""
        factors, summands = np.ones(len(words), dtype=np.uint64), np.zeros(len(words), dtype=np.uint64)
        for going, codes in _by_column(words):
            factors[going] *= self.factor
            summands[going] = summands[going] * self.factor + _scattered(codes)
        return factors, summands


def _scattered(codes: np.ndarray) -> np.ndarray:
    """The finaliser of splitmix64 (Steele et al., 2014) on the numbers + 1."""
    z = (codes.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def _by_column(texts: Sequence[str]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """First, second, … characters: the indices of the texts that have one, and their code points."""
    codes = np.frombuffer("".join(texts).encode("utf-32-le"), dtype=np.uint32)
    lengths = np.array([len(text) for text in texts], dtype=np.int64)
    starts = np.cumsum(lengths) - lengths
    going = np.arange(len(texts))
    for column in range(lengths.max(initial=0)):
        going = going[lengths[going] > column]
        yield going, codes[starts[going] + column]


@cache
def _unicode() -> tuple[np.ndarray, dict[str, str]]:
    """The kind of every code point; and the letters and marks that `normalise` changes."""
    kinds = np.full(sys.maxunicode + 1, OTHER, dtype=np.int8)
    changed = {}
    for char in map(chr, range(sys.maxunicode + 1)):
        if char.isalpha() or unicodedata.category(char)[0] == "M":
            kinds[ord(char)] = LETTER if char.isalpha() else MARK
            if (folded := normalise(char)) != char:
                changed[char] = folded
    for char in ("'", "-", *map(chr, APOSTROPHES)):
        kinds[ord(char)] = APOSTROPHE if normalise(char) == "'" else HYPHEN
    return kinds, changed


class _Symbols:
    """Characters that do the same in a word, under one number; the first numbers are those of the kinds."""

    def __init__(self, alphabet: frozenset[str], hashing: Hashing) -> None:
        kinds, changed = _unicode()
        numbers = {(OTHER, ""): 0, (LETTER, STRANGE): 1, (MARK, STRANGE): 2, (APOSTROPHE, "'"): 3, (HYPHEN, "-"): 4}
        self.of_code = kinds.astype(np.int64)
        for char in sorted(alphabet.union(changed)):
            folded, kind = changed.get(char, char), kinds[ord(char)]
            if kind in (LETTER, MARK) and alphabet.issuperset(folded):
                self.of_code[ord(char)] = numbers.setdefault((kind, folded), len(numbers))
        self.kind = np.array([kind for kind, _ in numbers])
        self.factor, self.summand = hashing.of([folded for _, folded in numbers])
        self.examples = [chr(code) for code in np.unique(self.of_code, return_index=True)[1]]
        codes = np.flatnonzero(self.of_code)
        # UTF-8 has the order of the code points. Where the moves begin, `_read_pieces` says.
        self.bytes = np.array([*(int.from_bytes(chr(code).encode(), "big") for code in codes), LAST])
        self.moves = np.append(self.of_code[codes], 0) + BREAK


def _read_pieces(pieces: Mapping[int, bytes], examples: Sequence[str]) -> tuple[np.ndarray, list[str]]:
    """VadTable.pieces, and the texts that the moves are for: none at all, an example of every symbol, then the rest."""
    numbers = {text: number for number, text in enumerate(["", *examples])}

    def rest(piece: bytes) -> tuple[int, int, int]:
        text, pending = _decoded(piece)
        length = 0 if not pending else 2 + (pending[0] >= 0xE0) + (pending[0] >= 0xF0)  # its first byte says so
        return numbers.setdefault(text, len(numbers)), int.from_bytes(pending, "big"), length - len(pending)

    table = np.zeros((max(pieces, default=-1) + 2, LONGEST, 7), dtype=np.int64)
    table[:, 1:, 2] = BREAK  # a pending character that is not gone on with
    table[:, :, 4] = BREAK  # ids without text
    for index, piece in pieces.items():
        table[index, :, 4:] = rest(piece)
        begun = len(piece) - len(piece.lstrip(CONTINUATION))
        for lacking in range(1, LONGEST):
            head = int.from_bytes(piece[: min(begun, lacking)], "big")
            if lacking <= begun:
                table[index, lacking] = (8 * lacking, head, BREAK, False, *rest(piece[lacking:]))
            elif begun == len(piece):
                table[index, lacking] = (8 * begun, head, NOTHING, True, NOTHING, 0, lacking - begun)
    return table, list(numbers)


def _decoded(piece: bytes) -> tuple[str, bytes]:
    """Text, and the bytes at the end that may become a character."""
    try:
        return piece.decode(), b""
    except UnicodeDecodeError:
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        return decoder.decode(piece), decoder.getstate()[0]


def _moves(texts: Sequence[str], symbols: _Symbols, hashing: Hashing) -> np.ndarray:
    """VadTable.moves: all texts read side by side, one character after the other, in every mode at once."""
    shape = (len(texts), len(NEXT_MODE))
    mode, letter = np.tile(np.arange(len(NEXT_MODE)), (len(texts), 1)), np.zeros(shape, dtype=bool)
    word, part = [[np.ones(shape, dtype=np.uint64), np.zeros(shape, dtype=np.uint64)] for _ in range(2)]
    # What comes before the letter that is read in each mode: a new word, nothing, or the joiner; a last part that is
    # new, the same, begins with the apostrophe, or is new.
    factors, summands = hashing.of(["", "", "'", "-"])
    word_before = factors * np.array([0, 1, 1, 1], dtype=np.uint64), summands
    part_before = np.array([0, 1, 0, 0], dtype=np.uint64), summands * np.array([1, 1, 1, 0], dtype=np.uint64)
    for going, codes in _by_column(texts):
        symbol = symbols.of_code[codes][:, None]
        at, after = mode[going], NEXT_MODE[mode[going], symbols.kind[symbol]]
        read = after == INSIDE
        for (a, b), (first, then) in ((word, word_before), (part, part_before)):
            m = symbols.factor[symbol] * first[at]
            n = symbols.factor[symbol] * then[at] + symbols.summand[symbol]
            a[going], b[going] = np.where(read, m * a[going], a[going]), np.where(read, m * b[going] + n, b[going])
        mode[going], letter[going] = after, letter[going] | read
    columns = [x.view(np.int64) for x in (word[0], part[0], word[1], part[1])]
    return np.stack([*columns, mode, letter], axis=2)
