"""The sentence: `<bos> the emotion is E because X <eos>`, or `<bos> X <eos>` where the data has no emotions.

Everything is on the tokenizer's own vocabulary; padding and supervision are told by position, never by token id.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer
from transformers import GPT2Tokenizer, PreTrainedTokenizerFast
from transformers.tokenization_utils_base import LARGE_INTEGER

from common.errors import UserError, in_short
from common.reading import LARGEST_JSON, expanded, panics_refused, require_file
from data.emotions import EMOTIONS

IGNORED = -100  # label of a position that is not supervised


def load_tokenizer(name: str) -> PreTrainedTokenizerFast:
    """`gpt2` and its kin by name, a folder with vocab.json and merges.txt, or a `tokenizers` JSON file.

    Raises:
        UserError: files that are missing or not a tokenizer, or a name that could not be downloaded.
    """
    path = expanded(name)
    if path.is_file():
        return _from_json(path)
    if path.is_dir() and not ((path / "vocab.json").is_file() or (path / "tokenizer.json").is_file()):
        raise UserError(
            f"dataset.tokenizer: the folder {path} has neither vocab.json and merges.txt nor tokenizer.json"
        )
    try:
        with panics_refused():
            tokenizer = GPT2Tokenizer.from_pretrained(str(path) if path.is_dir() else name)
            _try(tokenizer)
    except Exception as error:  # huggingface_hub, json and tokenizers raise many kinds
        if path.is_dir():
            reason = in_short(error)
            raise UserError(f"dataset.tokenizer: the files in {path} are not a GPT-2 tokenizer ({reason})") from error
        raise _not_here(name) from error
    if not path.is_dir() and len(tokenizer) < 256:
        raise _not_here(name)  # without any file transformers gives a tokenizer that knows only <|endoftext|>
    tokenizer.model_max_length = LARGE_INTEGER  # Template cuts; a file may say anything here
    if tokenizer.eos_token_id is None or len(tokenizer) < 256:
        raise UserError(f"dataset.tokenizer: {name} has no <|endoftext|> or not even all bytes in its vocabulary")
    return tokenizer


def _not_here(name: str) -> UserError:
    return UserError(
        f"dataset.tokenizer: {name!r} is not on this machine and could not be downloaded. Fetch vocab.json and "
        f"merges.txt of https://huggingface.co/{name} where there is a network, put both into a folder here, "
        "and set dataset.tokenizer=THAT_FOLDER"
    )


def _try(tokenizer: PreTrainedTokenizerFast) -> None:
    """Raise an exception for a tokenizer that cannot encode a text, or whose ids are no rows of an embedding."""
    tokenizer.decode(tokenizer.encode("A boat, because 1 is blue."))
    if max(tokenizer.get_vocab().values(), default=0) >= len(tokenizer):
        raise ValueError("the ids of its tokens are not counted from 0 without gaps")


def _from_json(path: Path) -> PreTrainedTokenizerFast:
    try:
        require_file(path, largest=LARGEST_JSON)
        with panics_refused():
            vocabulary = Tokenizer.from_file(str(path)).get_vocab()
            tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(path), eos_token="<|endoftext|>")
            _try(tokenizer)
    except Exception as error:
        reason = in_short(error)
        raise UserError(f"dataset.tokenizer: {path} is not a JSON file of the tokenizers library ({reason})") from error
    if "<|endoftext|>" not in vocabulary:
        raise UserError(f"dataset.tokenizer: {path} has no <|endoftext|> in its vocabulary")
    if "<|startoftext|>" in vocabulary:
        tokenizer.bos_token = "<|startoftext|>"
    return tokenizer


@dataclass(frozen=True, slots=True)
class EncodedText:
    """One text as the model reads it; the three lists are of the same length."""

    input_ids: list[int]
    labels: list[int]
    segment: list[int]
    emotion_start: int  # index of the first token of the emotion's name, −1 where there is none
    explanation_start: int  # index of the first token of the explanation
    truncated: bool


class Template:
    """Turns (emotion, text) into tokens and back.

    Args:
        tokenizer: as load_tokenizer gives it.
        max_length: longest text in tokens; a longer one loses its end, but never the <eos>.
        labels: names of the emotions.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerFast, *, max_length: int, labels: Sequence[str] = EMOTIONS
    ) -> None:
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.labels = tuple(labels)
        self.eos_id = tokenizer.eos_token_id
        self.bos_id = self.eos_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
        self.prompt = [self.bos_id, *self._tokens(" the emotion is")]
        self.label_ids = [self._tokens(f" {name}") for name in self.labels]
        self.because = self._tokens(" because")
        head = len(self.prompt) + max(map(len, self.label_ids)) + len(self.because) + 2
        if max_length < head:
            raise UserError(f"dataset.max_length={max_length} leaves no room for an explanation: set at least {head}")

    def _tokens(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids

    def require_distinct(self) -> None:
        """Raises UserError where one label's tokens begin another's, so that their probabilities cannot be compared."""
        named = list(zip(self.labels, self.label_ids, strict=True))
        for (one, tokens), (other, longer) in itertools.permutations(named, 2):
            if tokens == longer[: len(tokens)]:
                raise UserError(
                    f"dataset.tokenizer: it writes {one!r} as the tokens {tokens} and {other!r} as {longer}, which "
                    "begins with them, so their probabilities cannot be compared; rename one, or take another tokenizer"
                )

    def encode(self, text: str, emotion: int | None, *, supervise_emotion: bool = True) -> EncodedText:
        """Supervised are the emotion, "because", the explanation and <eos>; the fixed words before them are not."""
        if emotion is None:
            ids = [self.bos_id, *self._tokens(text)]
            unsupervised, first_segment = 1, len(ids)
            emotion_start, explanation_start = -1, 1
        else:
            head = [*self.prompt, *self.label_ids[emotion]]
            ids = [*head, *self.because, *self._tokens(f" {text}")]
            unsupervised, first_segment = len(self.prompt if supervise_emotion else head), len(head)
            emotion_start, explanation_start = len(self.prompt), len(head) + len(self.because)
        truncated = len(ids) >= self.max_length
        ids = [*ids[: self.max_length - 1], self.eos_id]
        return EncodedText(
            input_ids=ids,
            labels=[IGNORED] * unsupervised + ids[unsupervised:],
            segment=[int(i >= first_segment) if emotion is not None else 0 for i in range(len(ids))],
            emotion_start=emotion_start,
            explanation_start=explanation_start,
            truncated=truncated,
        )

    def encode_name(self, emotion: int) -> EncodedText:
        """Of an emotion that nobody explained: up to "because", and supervised is its name alone.

        What comes behind it is not taught: neither that there is no explanation, nor that a text ends so.
        """
        label = self.label_ids[emotion]
        ids = [*self.prompt, *label, *self.because]
        before, behind = len(self.prompt), len(self.because)
        return EncodedText(
            input_ids=ids,
            labels=[IGNORED] * before + label + [IGNORED] * behind,
            segment=[0] * (before + len(label)) + [1] * behind,
            emotion_start=before,
            explanation_start=len(ids),
            truncated=False,
        )

    def explanation_prompt(self, emotion: int | None) -> tuple[list[int], int]:
        """Tokens up to "because", and how many of them are in the explanation segment."""
        if emotion is None:
            return [self.bos_id], 0
        return [*self.prompt, *self.label_ids[emotion], *self.because], len(self.because)

    def decode(self, tokens: Sequence[int]) -> str:
        return self.tokenizer.decode(list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False).strip()
