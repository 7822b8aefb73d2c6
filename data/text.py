"""The text format: `<bos> the emotion is E because X <eos>`, or `<bos> X <eos>` without emotions.

With several languages, the name of the language precedes the explanation: `… because (french): X <eos>`.

It needs no token beyond the tokenizer's vocabulary: padding and supervision are decided by position, not by token id.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerFast

from common.errors import UserError
from data.emotions import EMOTIONS

IGNORED = -100  # label of an unsupervised position


@dataclass(frozen=True, slots=True)
class EncodedText:
    """One text as tokens; the three lists have the same length L."""

    input_ids: list[int]
    labels: list[int]
    segment: list[int]
    emotion_start: int  # index of the first token of the emotion, or -1
    explanation_start: int  # index of the first token of the explanation
    truncated: bool


class Template:
    """Encodes (emotion, text) as tokens, and decodes tokens.

    Args:
        tokenizer: from `load_tokenizer`.
        max_length: tokens of a text; a longer one is truncated, but keeps <eos>.
        labels: names of the emotions.
        languages: names of the languages of the texts, if there are several. A text that names none is in English, or
            else in the first of them.

    Raises:
        UserError: `max_length` leaves no room for an explanation, or the tokenizer has no <eos>.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        *,
        max_length: int,
        labels: Sequence[str] = EMOTIONS,
        languages: Sequence[str] = (),
    ) -> None:
        self.tokenizer, self.max_length, self.labels = tokenizer, max_length, tuple(labels)
        if tokenizer.eos_token_id is None:
            raise UserError(
                f"dataset.tokenizer: {tokenizer.name_or_path} has no <|endoftext|>, </s> or other eos_token to end a "
                "text: use the tokenizer of a causal language model, or name the token in tokenizer_config.json"
            )
        self.eos_id = tokenizer.eos_token_id
        special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
        self.reserved = special - ({tokenizer.unk_token_id} - {self.eos_id})  # a unigram model finds "</s>" in a text
        self.adds_space = False  # whether the tokenizer puts a space before any text, even before one that has it
        self.adds_space = self._tokens(" a") != self._tokens("a a")[len(self._tokens("a")) :]
        self.bos_id = self.eos_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
        self.prompt = [self.bos_id, *self._tokens(" the emotion is")]
        self.label_ids = [self._tokens(f" {name}") for name in self.labels]
        self.because = self._tokens(" because")
        self.language_ids = {name: self._tokens(f" ({name}):") for name in languages}
        self.default_language = next((name for name in languages if name == "english"), next(iter(languages), ""))
        longest = max(map(len, self.language_ids.values()), default=0)
        head = len(self.prompt) + max(map(len, self.label_ids)) + len(self.because) + longest + 2
        if max_length < head:
            raise UserError(f"dataset.max_length={max_length} leaves no room for an explanation: set at least {head}")

    def _tokens(self, text: str) -> list[int]:
        ids = self.tokenizer(self.spaced(text), add_special_tokens=False, split_special_tokens=True).input_ids
        return [token for token in ids if token not in self.reserved]

    def spaced(self, text: str) -> str:
        """Return what to tokenize for the tokens that `text` has within a text: without a space that is added again."""
        return text.removeprefix(" ") if self.adds_space else text

    def require_distinct(self) -> None:
        """Raise UserError if the tokens of one label are a prefix of another's: no comparable probabilities."""
        named = list(zip(self.labels, self.label_ids, strict=True))
        for (one, tokens), (other, longer) in itertools.permutations(named, 2):
            if tokens == longer[: len(tokens)]:
                raise UserError(
                    f"dataset.tokenizer: it encodes {one!r} as {tokens} and {other!r} as {longer}, which begins with "
                    "them, so their probabilities cannot be compared; rename one, or use another tokenizer"
                )

    def check_languages(self, names: Iterable[str], *, where: str) -> None:
        """Raise UserError if there are several languages, and one of these names is none of them.

        Args:
            where: the names come from, for the message.
        """
        unknown = [name for name in names if name not in self.language_ids]
        if unknown and self.language_ids:
            raise UserError(
                f"{where}: this network writes {', '.join(self.language_ids)}, not {unknown[0]}; dataset.languages "
                "lists the languages of a training"
            )

    def encode(
        self, text: str, emotion: int | None, *, supervise_emotion: bool = True, language: str = ""
    ) -> EncodedText:
        """Encode one text; supervised are the emotion, "because", the explanation and <eos>."""
        named = self._language(language)
        if emotion is None:
            ids = [self.bos_id, *named, *self._tokens(f" {text}" if named else text)]
            unsupervised, first_segment = 1, len(ids)
            emotion_start, explanation_start = -1, 1 + len(named)
        else:
            head = [*self.prompt, *self.label_ids[emotion]]
            ids = [*head, *self.because, *named, *self._tokens(f" {text}")]
            unsupervised, first_segment = len(self.prompt if supervise_emotion else head), len(head)
            emotion_start, explanation_start = len(self.prompt), len(head) + len(self.because) + len(named)
        truncated = len(ids) >= self.max_length
        ids = [*ids[: self.max_length - 1], self.eos_id]
        labels = [IGNORED] * unsupervised + ids[unsupervised:]
        labels[explanation_start - len(named) : explanation_start] = [IGNORED] * len(named)
        return EncodedText(
            input_ids=ids,
            labels=labels,
            segment=[int(i >= first_segment) if emotion is not None else 0 for i in range(len(ids))],
            emotion_start=emotion_start,
            explanation_start=explanation_start,
            truncated=truncated,
        )

    def encode_name(self, emotion: int) -> EncodedText:
        """Encode an emotion without explanation, up to "because"; only its name is supervised.

        What follows is not: the model must learn neither an empty explanation nor an early <eos>.
        """
        label, before, after = self.label_ids[emotion], len(self.prompt), len(self.because)
        ids = [*self.prompt, *label, *self.because]
        return EncodedText(
            input_ids=ids,
            labels=[IGNORED] * before + label + [IGNORED] * after,
            segment=[0] * (before + len(label)) + [1] * after,
            emotion_start=before,
            explanation_start=len(ids),
            truncated=False,
        )

    def _language(self, language: str) -> list[int]:
        return self.language_ids.get(language or self.default_language, [])

    def explanation_prompt(self, emotion: int | None, language: str = "") -> tuple[list[int], int]:
        """Return the tokens before the explanation, and how many of them are in the explanation segment."""
        named = self._language(language)
        if emotion is None:
            return [self.bos_id, *named], 0
        tail = [*self.because, *named]
        return [*self.prompt, *self.label_ids[emotion], *tail], len(tail)

    def decode(self, tokens: Sequence[int]) -> str:
        return self.tokenizer.decode(list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False).strip()
