"""Valence, arousal and dominance of every BPE piece by itself, as SEVLM (arXiv 2403.11150) looks them up.

A word that GPT-2 splits gets nothing, or what its pieces mean as words of their own (" brush|strokes": that of
"brush"); data/vad/align.py has the words' own values. This way is here to use SEVLM's weights and to compare with it.

A piece is looked up without the white space before it, and with regard to case: a lexicon's terms are in lower case, so
a piece with a capital letter has no values. Special and added tokens have none, nor has a piece that is not whole
characters. Values of zero are the same as none, because SEVLM cannot tell a neutral word from an unknown one.

One thing differs. SEVLM takes one lemma of each piece, WordNet's for the part of speech that NLTK's tagger assigns to
it among the pieces of the text, and looks up that lemma only. Here the piece itself is looked up, then its lemmas as
data.lexicon has them (noun, verb, adjective, adverb; the first that is a term), which needs no download. So a piece has
the same values in every text, and "exciting" those of its own entry where SEVLM may take "excite".
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from data.vad.lexicon import Lexicon


class PieceAligner:
    """Gives every piece its own values; has the methods of data.vad.align.VadAligner.

    Args:
        lexicon: the words' values; None makes every piece unknown.
        tokenizer: one of transformers.
        first_target: no token before this index is a target. SEVLM's is 6.
    """

    def __init__(self, lexicon: Lexicon | None, tokenizer, *, first_target: int = 0) -> None:
        self.lexicon, self.first_target = lexicon, first_target
        self.values = _piece_values(lexicon, tokenizer)  # (V + 1, 3); the last is for ids beyond the vocabulary

    def align(self, input_ids: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
        """Values of a whole text, for training.

        Args:
            input_ids: L token ids, a sequence or a tensor of one axis.

        Returns:
            vad (L, 3) float32, valence, arousal, dominance in −1..1, 0 where unknown; known (L,) bool; target (L,)
            bool: known, and not before `first_target`.
        """
        vad, known = _look_up(self.values, torch.as_tensor(input_ids, dtype=torch.int64))
        return vad, known, known & (torch.arange(len(known)) >= self.first_target)

    def start(self, prompts: Sequence[Sequence[int]], device: torch.device) -> PieceState:
        """Goes on from any prompts, on `device`; what stands before a piece is nothing to it."""
        return PieceState(self.values.to(device))


class PieceState:
    """Texts that are still being written: there is nothing to remember of them."""

    def __init__(self, values: Tensor) -> None:
        self.values = values

    def step(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """One more token for every row, (N,) int64: vad (N, 3) float32 and known (N,) bool there."""
        return _look_up(self.values, tokens)

    def reorder(self, rows: Tensor) -> None:
        """Row r goes on from row rows[r], which changes nothing."""


def _look_up(values: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    vad = values[tokens.clamp(max=len(values) - 1)]
    return vad, vad.any(dim=-1)


def _piece_values(lexicon: Lexicon | None, tokenizer) -> Tensor:
    if lexicon is None:
        return torch.zeros(1, 3)
    values = torch.zeros(len(tokenizer) + 1, 3)
    apart = {*tokenizer.all_special_ids, *tokenizer.get_added_vocab().values()}
    pieces = [i for i in range(len(tokenizer)) if i not in apart]
    texts = tokenizer.batch_decode([[i] for i in pieces], clean_up_tokenization_spaces=False)
    for index, text in zip(pieces, texts, strict=True):
        found = lexicon.lookup(text) if text == text.lower() else None  # by itself it minds neither space nor case
        if found is not None:
            values[index] = torch.tensor(found)
    return values
