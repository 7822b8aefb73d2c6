"""SEVLM's text format as published (Zhang et al., ECCV 2024, arXiv 2403.11150), and its parser.

Differences from data/text.py: four tokens of its own, truncation without <eos>, the fixed words are supervised too, and
so is the emotion in every text of an image.

    index   0      1    2        3   4         5        6               one of the seven emotions of one token
            <eos>  the  emotion  is  awe       because  the …  <eos>    (<eos> is GPT-2's only token for both ends)
            <eos>  the  emotion  is  content   ment     because  the …  contentment and something else: two tokens
    segment 0      0    0        0   0         0 or 1   1

The network assumes that the explanation starts at index 6 in all of them (model/sevlm.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from tokenizers import AddedToken
from transformers import PreTrainedTokenizerFast

from data.emotions import EMOTIONS
from data.text import IGNORED, EncodedText, Template

SPECIAL = ("<pad>", "<prefix>", "<emotion>", "<explanation>")  # appended to GPT-2's vocabulary: 50257 … 50260
STEPS = 25  # tokens that SEVLM generates


class Parsed(NamedTuple):
    """A generated text."""

    emotion: str  # need not be one of the labels
    explanation: str
    full: str  # after "the emotion is"


class SevlmTemplate(Template):
    """Encodes (emotion, text) as tokens, and decodes tokens, as SEVLM does.

    Args:
        tokenizer: from `load_tokenizer`; SEVLM's tokens are added if missing.
        max_length: tokens of a text, 30 in SEVLM; a longer one is truncated and loses <eos>.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerFast, *, max_length: int, labels: Sequence[str] = EMOTIONS
    ) -> None:
        # An existing token keeps its id and becomes special, so that no text can contain it.
        tokenizer.add_tokens([AddedToken(token, special=True) for token in SPECIAL], special_tokens=True)
        super().__init__(tokenizer, max_length=max_length, labels=labels)
        ids = tokenizer.convert_tokens_to_ids(list(SPECIAL))
        self.pad_id = ids[SPECIAL.index("<pad>")]
        self.segment_ids = (ids[SPECIAL.index("<emotion>")], ids[SPECIAL.index("<explanation>")])
        self.ends = frozenset((self.eos_id, *ids))  # a generated text ends at the first of these

    def encode(
        self, text: str, emotion: int | None, *, supervise_emotion: bool = True, language: str = ""
    ) -> EncodedText:
        """Encode one text without its language; all but the first token is supervised, whatever `supervise_emotion`."""
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
        """Parse a text generated after "the emotion is" by SEVLM's rules, including their oddities.

        The text ends at the first special token; if none of `steps` tokens is special, the last one is lost (an
        off-by-one error). The emotion precedes the first "because", and the explanation follows the last one, so an
        explanation with a "because" loses its beginning. Without "because", the emotion is the whole text, and the
        explanation starts at its third word. An empty explanation becomes "<unk>".

        Args:
            tokens: generated tokens, with or without the special token at the end.
            steps: maximum number of generated tokens.
        """
        end = next((i for i, token in enumerate(tokens) if token in self.ends), len(tokens))
        kept = tokens[: end - 1 if end == steps else end]
        decoded = self.tokenizer.decode(list(kept), clean_up_tokenization_spaces=False)
        # Removes spaces before punctuation, as decode of the transformers version used by SEVLM did.
        full = self.tokenizer.clean_up_tokenization(decoded).lstrip()
        if "because" in full:
            emotion, explanation = full.split("because")[0].strip(), full.split("because")[-1].strip()
        else:
            emotion, explanation = full.strip(), " ".join(full.split()[2:])
        return Parsed(emotion, explanation or "<unk>", full)
