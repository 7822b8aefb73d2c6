"""Valence, arousal and dominance of each piece on its own, as in SEVLM (arXiv 2403.11150).

A word that GPT-2 splits gets no values, or those of its pieces as words (" brush|strokes": those of "brush"), unlike in
data/vad/align.py. Use this with SEVLM's weights, or to compare with SEVLM.

A piece is looked up without leading white space and case-sensitively: lexicon terms are in lower case, so a piece with
a capital letter has no values. Neither have special and added tokens, nor a piece with incomplete characters. Values of
zero mean unknown, because SEVLM does not distinguish neutral words from unknown ones.

One difference: SEVLM looks up one lemma of each piece, WordNet's for the part of speech from NLTK's tagger. Here the
piece itself is looked up first, then its lemmas (see Lexicon), which needs no download. So a piece has the same values
in every text, and "exciting" has those of its own entry where SEVLM may use "excite".
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from data.vad.lexicon import Lexicon


class PieceAligner:
    """Assign to every piece its own values; has the methods of data.vad.align.VadAligner.

    Args:
        lexicon: the values of words; None makes every piece unknown.
        tokenizer: a tokenizer of transformers.
        first_target: index of the first token that can be a target; 6 in SEVLM.
    """

    def __init__(self, lexicon: Lexicon | None, tokenizer, *, first_target: int = 0) -> None:
        self.lexicon, self.first_target = lexicon, first_target
        self.values = _piece_values(lexicon, tokenizer)  # (V + 1, 3); the last row is for ids beyond the vocabulary

    def align(self, input_ids: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
        """Return the values of a whole text, for training.

        Args:
            input_ids: L token ids, a sequence or a tensor with one axis.

        Returns:
            vad (L, 3) float32, valence, arousal, dominance in −1..1, 0 where unknown; known (L,) bool; target (L,)
            bool: known, and not before `first_target`.
        """
        vad, known = _look_up(self.values, torch.as_tensor(input_ids, dtype=torch.int64))
        return vad, known, known & (torch.arange(len(known)) >= self.first_target)

    def start(self, prompts: Sequence[Sequence[int]], device: torch.device) -> PieceState:
        """Return the state for generating on `device`, which does not depend on the prompts."""
        return PieceState(self.values.to(device))


class PieceState:
    """The state of generation, which is empty: the values of a piece do not depend on earlier pieces."""

    def __init__(self, values: Tensor) -> None:
        self.values = values

    def step(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Return vad (N, 3) float32 and known (N,) bool of the next token of every row, (N,) int64."""
        return _look_up(self.values, tokens)

    def reorder(self, rows: Tensor) -> None:
        """Do nothing, as no row has a state."""


def _look_up(values: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    vad = values[tokens.clamp(max=len(values) - 1)]
    return vad, vad.any(dim=-1)


def _piece_values(lexicon: Lexicon | None, tokenizer) -> Tensor:
    if lexicon is None:
        return torch.zeros(1, 3)
    values = torch.zeros(len(tokenizer) + 1, 3)
    special = {*tokenizer.all_special_ids, *tokenizer.get_added_vocab().values()}
    pieces = [i for i in range(len(tokenizer)) if i not in special]
    texts = tokenizer.batch_decode([[i] for i in pieces], clean_up_tokenization_spaces=False)
    for index, text in zip(pieces, texts, strict=True):
        if text == text.lower() and (found := lexicon.lookup(text)):  # lookup ignores case
            values[index] = torch.tensor(found)
    return values
