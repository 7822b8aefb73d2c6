"""Which piece of a byte-level BPE text carries which word's valence, arousal and dominance.

GPT-2 splits words (" yell|ows", " past|el", " som|ber"). Looking the pieces up, as SEVLM (arXiv 2403.11150) does, gives
such words nothing or another word's values. Here a piece has the values of the *word so far*, from the word's first
letter to the end of the piece. They depend on nothing to the right, so training and generation agree everywhere.

The rules:

- A word is a maximal run of letters (with their combining marks) in the decoded text; one apostrophe or hyphen between
  two letters is inside the word. Digits, underscores and everything else end it. A character belongs to the piece that
  holds its last byte.
- A piece has the values of the last word that has a letter in it, up to the end of the piece ("y." those of the word
  that its y ends). A piece without a letter, a special token and a pad are unknown.
- The word so far is looked up whole ("yo-yo", "o'clock"); if that fails, its last part ("blue-green" at "green"). A
  part that is a clitic ('s, 't, 'd, 'm, 're, 've, 'll) has no values.
- A piece is a target if its values are known and it ends its word. A word that is not in the lexicon as a whole ends
  after every part, so "tree" is a target in "tree's" and "blue" in "blue-green"; the letters before 't are no word by
  themselves ("won't").
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

from common.errors import UserError
from data.vad.lexicon import APOSTROPHES, Lexicon, Vad, normalise

JOINERS = "'-"
CLITICS = frozenset({"s", "t", "d", "m", "re", "ve", "ll"})
LETTERS = r"[^\W\d_](?:[^\W\d_]|[\u0300-\u036f])*"  # with their combining marks
WORD = re.compile(rf"{LETTERS}(?:['’‐‑-]{LETTERS})*")
CACHED_CHUNKS = 1 << 17
NOTHING: Vad = (0.0, 0.0, 0.0)


class _Value(NamedTuple):
    vad: Vad
    known: bool
    target: bool


_UNKNOWN = _Value(NOTHING, known=False, target=False)


class VadAligner:
    """Gives every piece of a token sequence the values of the word so far.

    Args:
        lexicon: the words' values; None makes every piece unknown, at no cost.
        tokenizer: a byte-level BPE tokenizer of transformers (`GPT2Tokenizer`, or a fast one loaded from a tokenizers
            file). Its special and added tokens are never part of a word.

    Raises:
        UserError: the tokenizer is not byte-level.
    """

    def __init__(self, lexicon: Lexicon | None, tokenizer) -> None:
        self.lexicon = lexicon
        self.tokenizer = tokenizer
        # Text of a piece, in bytes; an id that is absent has no text (special, added, or beyond the vocabulary).
        self._pieces = {} if lexicon is None else _piece_bytes(tokenizer)
        # Pieces that may go on with a word; all others make what follows independent of what came before.
        self._inner = frozenset(i for i, piece in self._pieces.items() if not _starts_afresh(piece))
        self._chunk = functools.lru_cache(maxsize=CACHED_CHUNKS)(self._evaluate)

    def __reduce__(self) -> tuple:
        return VadAligner, (self.lexicon, self.tokenizer)

    def align(self, input_ids: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
        """Values of a whole text, for training.

        Args:
            input_ids: L token ids, a sequence or a tensor of one axis.

        Returns:
            vad (L, 3) float32, valence, arousal, dominance in −1..1, 0 where unknown; known (L,) bool; target (L,)
            bool, the only one of the three that looks to the right: the piece is known and ends its word.
        """
        ids = input_ids.tolist() if isinstance(input_ids, Tensor) else [int(i) for i in input_ids]
        if self.lexicon is None:
            flags = torch.zeros(len(ids), dtype=torch.bool)
            return torch.zeros(len(ids), 3), flags, flags.clone()
        values = [value for chunk in self._chunks(ids) for value in self._chunk(chunk)]
        vad = torch.tensor([value.vad for value in values], dtype=torch.float32).view(len(ids), 3)
        known = torch.tensor([value.known for value in values], dtype=torch.bool)
        return vad, known, torch.tensor([value.target for value in values], dtype=torch.bool)

    def start(self, prompts: Sequence[Sequence[int]], device: torch.device) -> VadState | NoWords:
        """The state of one row per prompt, for texts that are being written on `device`."""
        return NoWords(device) if self.lexicon is None else VadState(self, prompts, device)

    def extend(self, chunk: tuple[int, ...], token: int) -> tuple[int, ...]:
        """The chunk that `token` belongs to, given the chunk before it."""
        return (*chunk, token) if token in self._inner else (token,)

    def last_value(self, chunk: tuple[int, ...]) -> tuple[Vad, bool]:
        """Value of the last piece of a chunk, and whether it is known; it depends on no later piece."""
        return self._chunk(chunk)[-1][:2]

    def coverage(self, texts: Iterable[str]) -> dict[str, float]:
        """What becomes of the lexicon's words in `texts`, here and with values looked up piece by piece.

        Words are found in the text itself and tied to pieces by the tokenizer's character offsets, so this also checks
        the alignment by other means; they count as written, "tree's" as one. `pieces_*` is SEVLM's way, generously (any
        case, this lexicon's lemmas): the word's own values at one of its pieces, else other values, else none.

        Returns:
            counts: texts, words, lexicon_words, split_words (lexicon words of several pieces); shares of lexicon_words:
            own (own values, and a target, at the piece that completes it), pieces_own, pieces_other, pieces_none.
        """
        totals = dict.fromkeys(("texts", "words", "lexicon_words", "split_words"), 0)
        shares = dict.fromkeys(("own", "pieces_own", "pieces_other", "pieces_none"), 0)
        for text in texts:
            totals["texts"] += 1
            for outcome in self._outcomes(" " + text):
                totals["words"] += 1
                if outcome is not None:
                    own, pieces, split = outcome
                    totals["lexicon_words"] += 1
                    totals["split_words"] += split
                    shares["own"] += own
                    shares[pieces] += 1
        return totals | {name: count / max(1, totals["lexicon_words"]) for name, count in shares.items()}

    def _outcomes(self, text: str) -> Iterable[tuple[bool, str, bool] | None]:
        """For every word: None if it is not in the lexicon, else (own value here, outcome piece by piece, is split)."""
        encoded = self.tokenizer(text, return_offsets_mapping=True, add_special_tokens=False)
        ids, offsets = encoded["input_ids"], encoded["offset_mapping"]
        vad, known, target = self.align(ids)
        for match in WORD.finditer(text):
            values = self.lexicon.lookup(match[0]) if self.lexicon else None
            if values is None:
                yield None
                continue
            inside = [i for i, (start, end) in enumerate(offsets) if start < match.end() and end > match.start()]
            last = inside[-1]
            own = bool(known[last] and target[last]) and torch.equal(vad[last], torch.tensor(values))
            pieces = [self.lexicon.lookup(self._pieces.get(ids[i], b"").decode(errors="replace")) for i in inside]
            way = "own" if values in pieces else "other" if any(pieces) else "none"
            yield own, f"pieces_{way}", len(inside) > 1

    def _chunks(self, ids: list[int]) -> Iterable[tuple[int, ...]]:
        """Cuts `ids` before every piece that starts afresh; no word crosses a cut."""
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
            vad = None if mark is None else self._value(words[mark.word][: mark.length])
            if vad is None:
                values.append(_UNKNOWN)
            else:
                values.append(_Value(vad, known=True, target=mark.length in ends[mark.word]))
        return tuple(values)

    def _value(self, so_far: str) -> Vad | None:
        values = self.lexicon.lookup(so_far)
        if values is not None:
            return values
        cut = max(so_far.rfind(joiner) for joiner in JOINERS)
        part = so_far[cut + 1 :]
        if cut < 0 or (so_far[cut] == "'" and normalise(part) in CLITICS):
            return None
        return self.lexicon.lookup(part)

    def _ends(self, word: str) -> set[int]:
        """Lengths at which `word`, or a part of one that the lexicon lacks as a whole, is complete."""
        ends = {len(word)}
        if self.lexicon.lookup(word) is None:
            ends.update(match.start() for match in re.finditer(r"-|'(?!t(?!\w))", word, re.IGNORECASE))
        return ends


class VadState:
    """Texts that are being written: each row keeps the ids of its current chunk."""

    def __init__(self, aligner: VadAligner, prompts: Sequence[Sequence[int]], device: torch.device) -> None:
        self.aligner, self.device = aligner, device
        self.chunks = [functools.reduce(aligner.extend, prompt, ()) for prompt in prompts]

    def step(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """One more token for every row, (N,) int64: vad (N, 3) float32 and known (N,) bool there, as `align` has it."""
        self.chunks = [self.aligner.extend(*row) for row in zip(self.chunks, tokens.tolist(), strict=True)]
        values = [self.aligner.last_value(chunk) for chunk in self.chunks]
        vad = torch.tensor([vad for vad, _ in values], dtype=torch.float32, device=self.device).view(-1, 3)
        return vad, torch.tensor([known for _, known in values], dtype=torch.bool, device=self.device)

    def reorder(self, rows: Tensor) -> None:
        """Row r goes on from row rows[r]; there may be more rows than before, or fewer."""
        self.chunks = [self.chunks[row] for row in rows.tolist()]


class NoWords:
    """The state without a lexicon: nothing is ever known, at no cost."""

    def __init__(self, device: torch.device) -> None:
        self.vad, self.known = torch.zeros(1, 3, device=device), torch.zeros(1, dtype=torch.bool, device=device)

    def step(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """As VadState.step."""
        return self.vad.expand(len(tokens), 3), self.known.expand(len(tokens))

    def reorder(self, rows: Tensor) -> None:
        """All rows are alike."""


class _Mark(NamedTuple):
    word: int  # which word of the chunk
    length: int  # its characters so far


def _scan(pieces: Iterable[bytes]) -> tuple[list[_Mark | None], list[str]]:
    """Reads the pieces of a chunk from left to right; a special token has no bytes and is always the first.

    Returns:
        for every piece the last word that has a letter in it, and how long that word is by then; and the whole words.
        A mark, and the word up to its length, depend on this piece and earlier ones only.
    """
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    marks: list[_Mark | None] = []
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
                mark = _Mark(len(words) - 1, len(words[-1]))
            else:
                inside, joiner = inside and not joiner and char in JOINERS, char
        marks.append(mark)
    return marks, words


def _byte_alphabet() -> dict[str, int]:
    """The character that byte-level BPE writes for each of the 256 bytes, inverted (Radford et al., 2019).

    Printable Latin-1 characters stand for themselves, the other bytes for the characters from U+0100 on.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


def _piece_bytes(tokenizer) -> dict[int, bytes]:
    """Id → bytes of its text, for every ordinary piece of the vocabulary."""
    alphabet = _byte_alphabet()
    apart = {*tokenizer.all_special_ids, *tokenizer.get_added_vocab().values()}
    pieces = {}
    for piece, index in tokenizer.get_vocab().items():
        if index in apart:
            continue
        try:
            pieces[index] = bytes(alphabet[char] for char in piece)
        except KeyError:
            raise UserError(
                f"words cannot be tied to the tokens of {tokenizer.name_or_path or 'this tokenizer'}: it is not a "
                f"byte-level BPE (its piece {piece!r}); take GPT-2's tokenizer, or set dataset.vad_lexicon to null"
            ) from None
    return pieces


def _starts_afresh(piece: bytes) -> bool:
    """Whether `piece` begins with a character that ends any word: ASCII, and neither letter nor joiner."""
    return piece[:1].isascii() and piece != b"" and not (piece[:1].isalpha() or piece[:1] in (b"'", b"-"))
