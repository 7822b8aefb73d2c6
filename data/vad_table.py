"""The rules of data/vad_align.py as tables on the device, for words that are still being written.

`VadAligner.align` reads a text from its first token; `VadState.step` reads one more token of every row by gathers in
tables, without a loop over rows and without the host, and gives exactly what `align` gives at that place.

- A word so far is a polynomial hash of its folded characters (`normalise`): the character c takes h to M·h + g(c),
  modulo 2^64, so a whole piece takes it to a·h + b. Beside the word's hash goes that of its last part, which begins
  after the last hyphen, or with the last apostrophe, for "ll" has values of its own after a hyphen only.
- What a piece does depends on where it is met: outside a word, inside, or inside after an apostrophe or hyphen that
  belongs to the word only if a letter follows. These are the modes; a piece has a move in each.
- A character whose bytes are split over pieces is put together from the state's pending bytes and has a move of its
  own. Bytes that are no UTF-8 end a word, whatever they are, as the decoder's replacement character does.
- A hash is searched among those of all forms that `Lexicon.lookup` answers; no two of them share one.

Axes: N rows, P pieces, F forms (with and without apostrophe), C characters that can be part of a word.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from data.lexicon import Vad
from data.vad_build import build_arrays


@dataclass(frozen=True)
class VadTable:
    """Tensors on one device; all integers are int64."""

    # Per piece (the last has no text and ends a word) and number of bytes that a pending character lacks: how far its
    # bytes are shifted, and what is put behind them; the move if that is no character of a word; whether its bytes stay
    # pending; the move of the rest of the piece, the bytes that are pending after it, and how many these lack.
    pieces: Tensor  # (P + 1, 4, 7)
    # Per move and mode: factors and summands for the hashes of the word and of its last part, the mode after it, and
    # whether it has a letter.
    moves: Tensor  # (moves, 4, 6)
    characters: Tensor  # (C + 1,) their bytes as one number, ascending; the last is no character
    character_moves: Tensor  # (C + 1,)
    hashes: Tensor  # (F + 1,) ascending; the last is no form's
    values: Tensor  # (F + 1, 3) float32

    @classmethod
    def build(cls, pieces: Mapping[int, bytes], forms: Mapping[str, Vad], *, clitics: frozenset[str]) -> VadTable:
        """The tables, on the CPU.

        Args:
            pieces: id → bytes of every piece that has text; all other ids end a word and are in none.
            forms: normalised words and their values.
            clitics: forms without values after an apostrophe.
        """
        arrays = build_arrays(pieces, forms, clitics=clitics)
        return cls(**{name: torch.from_numpy(array) for name, array in arrays.items()})

    def to(self, device: torch.device) -> VadTable:
        return VadTable(**{field.name: getattr(self, field.name).to(device) for field in fields(self)})

    def start(self, prompts: Sequence[Sequence[int]]) -> VadState:
        """A row for each prompt, which is read to its end; prompts of any lengths."""
        width, nothing = max(map(len, prompts), default=0), len(self.pieces) - 1
        padded = [[nothing] * (width - len(prompt)) + list(prompt) for prompt in prompts]
        state = VadState(self, len(prompts))
        tokens = torch.tensor(padded, dtype=torch.int64, device=self.moves.device).view(len(prompts), width)
        for column in tokens.unbind(1):
            state.step(column)
        return state


class VadState:
    """Where every row stands in its text."""

    def __init__(self, table: VadTable, count: int) -> None:
        self.table = table
        self.mode, self.pending, self.lacking = torch.zeros(3, count, dtype=torch.int64, device=table.moves.device)
        self.hashes = torch.zeros(count, 2, dtype=torch.int64, device=table.moves.device)  # of word and last part

    def step(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """One more token for every row, (N,) int64: vad (N, 3) float32 and known (N,) bool of the word so far."""
        piece = tokens.clamp(max=len(self.table.pieces) - 1)
        shift, head, before, kept, rest, tail, lacking = self.table.pieces[piece, self.lacking].unbind(1)
        pending = (self.pending << shift) | head
        letter = self._move(self._character(pending, before))
        letter = self._move(rest) | letter
        self.pending, self.lacking = pending * kept + tail, lacking
        return self._look_up(letter.bool())

    def reorder(self, rows: Tensor) -> None:
        """Row r goes on from row rows[r]; there may be more rows than before, or fewer."""
        self.mode, self.pending, self.lacking = self.mode[rows], self.pending[rows], self.lacking[rows]
        self.hashes = self.hashes[rows]

    def _character(self, pending: Tensor, otherwise: Tensor) -> Tensor:
        """Moves of the characters that these bytes are, `otherwise` where they are none that could be in a word."""
        index = torch.searchsorted(self.table.characters, pending)
        return torch.where(self.table.characters[index] == pending, self.table.character_moves[index], otherwise)

    def _move(self, move: Tensor) -> Tensor:
        """Takes the rows on; (N,) 1 where there was a letter."""
        moves = self.table.moves[move, self.mode]
        self.hashes = moves[:, :2] * self.hashes + moves[:, 2:4]
        self.mode = moves[:, 4]
        return moves[:, 5]

    def _look_up(self, letter: Tensor) -> tuple[Tensor, Tensor]:
        """The word so far, else its last part."""
        index = torch.searchsorted(self.table.hashes, self.hashes)
        whole, part = (self.table.hashes[index] == self.hashes).unbind(1)
        known = letter & (whole | part)
        vad = self.table.values[torch.where(whole, index[:, 0], index[:, 1])]
        return vad.masked_fill(~known[:, None], 0.0), known


class NoWords:
    """Without a lexicon: nothing is ever known, at no cost."""

    def __init__(self, device: torch.device) -> None:
        self.vad, self.known = torch.zeros(1, 3, device=device), torch.zeros(1, dtype=torch.bool, device=device)

    def step(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """As VadState.step."""
        return self.vad.expand(len(tokens), 3), self.known.expand(len(tokens))

    def reorder(self, rows: Tensor) -> None:
        """All rows are alike."""
