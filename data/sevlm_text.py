"""SEVLM's sentence (Zhang et al., ECCV 2024, arXiv 2403.11150) as published: how its texts are framed, and read again.

It is that of data/text.py with these differences: four tokens of its own, a hard cut, supervision of the fixed words
too, and every text of an image teaches its emotion.

    index   0      1    2        3   4         5        6               one of the seven emotions of one piece
            <eos>  the  emotion  is  awe       because  the …  <eos>    (<eos> is GPT-2's only token for both ends)
            <eos>  the  emotion  is  content   ment     because  the …  contentment and something else: two pieces
    segment 0      0    0        0   0         0 or 1   1

The network takes index 6 for the beginning of the explanation in all of them (model/sevlm.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from tokenizers import AddedToken
from transformers import PreTrainedTokenizerFast

from data.emotions import EMOTIONS
from data.text import IGNORED, EncodedText, Template

SPECIAL = ("<pad>", "<prefix>", "<emotion>", "<explanation>")  # behind GPT-2's vocabulary: 50257 … 50260
STEPS = 25  # tokens that SEVLM writes


class Parsed(NamedTuple):
    """What a written text says."""

    emotion: str  # whatever stands in its place; need not be one of the labels
    explanation: str
    full: str  # behind "the emotion is"


class SevlmTemplate(Template):
    """Turns (emotion, text) into tokens and back, as SEVLM does.

    Args:
        tokenizer: as load_tokenizer gives it; gets SEVLM's tokens where it does not have them.
        max_length: longest text in tokens, 30 in SEVLM; a longer one loses its end, and with it the <eos>.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerFast, *, max_length: int, labels: Sequence[str] = EMOTIONS
    ) -> None:
        # A token that is there keeps its id, and becomes special if a file did not say so: no text can write it then.
        tokenizer.add_tokens([AddedToken(token, special=True) for token in SPECIAL], special_tokens=True)
        super().__init__(tokenizer, max_length=max_length, labels=labels)
        ids = tokenizer.convert_tokens_to_ids(list(SPECIAL))
        self.pad_id = ids[SPECIAL.index("<pad>")]
        self.segment_ids = (ids[SPECIAL.index("<emotion>")], ids[SPECIAL.index("<explanation>")])
        self.ends = frozenset((self.eos_id, *ids))  # what a written text ends at

    def encode(self, text: str, emotion: int | None, *, supervise_emotion: bool = True) -> EncodedText:
        """Supervised is everything but the first token; `supervise_emotion` makes no difference here."""
        if emotion is None:
            return super().encode(text, emotion)
        head = [*self.prompt, *self.label_ids[emotion]]
        whole = [*head, *self.because, *self._tokens(f" {text}"), self.eos_id]
        ids = whole[: self.max_length]
        return EncodedText(
            input_ids=ids,
            labels=[IGNORED, *ids[1:]],
            segment=[int(i >= len(head)) for i in range(len(ids))],
            emotion_start=len(self.prompt),
            explanation_start=len(head) + len(self.because),
            truncated=len(whole) > len(ids),
        )

    def parse(self, tokens: Sequence[int], *, steps: int = STEPS) -> Parsed:
        """What stands in a text that was written behind "the emotion is", read by SEVLM's rules, oddities included.

        The text ends at the first special token; one of all `steps` tokens without any loses its last (an off-by-one).
        The emotion stands before the first "because", the explanation behind the last, so that an explanation with a
        "because" in it loses its beginning. Without "because" the emotion is the whole text, and the explanation its
        words from the third on. In place of an empty explanation stands "<unk>".

        Args:
            tokens: those written, with or without the special token at the end.
            steps: how many could have been written.
        """
        end = next((i for i, token in enumerate(tokens) if token in self.ends), len(tokens))
        kept = tokens[: end - 1 if end == steps else end]
        decoded = self.tokenizer.decode(list(kept), clean_up_tokenization_spaces=False)
        # Which transformers did by itself in those days: no space before punctuation.
        full = self.tokenizer.clean_up_tokenization(decoded).lstrip()
        if "because" in full:
            emotion, explanation = full.split("because")[0].strip(), full.split("because")[-1].strip()
        else:
            emotion, explanation = full.strip(), " ".join(full.split()[2:])
        return Parsed(emotion, explanation or "<unk>", full)
