"""The text format: `<bos> the emotion is E because X <eos>`, or `<bos> X <eos>` without emotions.

It needs no token beyond the tokenizer's vocabulary: padding and supervision are decided by position, not by token id.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer
from transformers import GPT2Tokenizer, PreTrainedTokenizerFast
from transformers.tokenization_utils_base import LARGE_INTEGER

from common.errors import UserError, shorten
from common.reading import LARGEST_JSON, expand_user, refuse_panics, require_file
from data.emotions import EMOTIONS

IGNORED = -100  # label of an unsupervised position


def load_tokenizer(name: str) -> PreTrainedTokenizerFast:
    """Load a GPT-2 tokenizer by name, from a folder with vocab.json and merges.txt, or from a `tokenizers` JSON file.

    Raises:
        UserError: the files are missing or not a tokenizer, or the name could not be downloaded.
    """
    path = expand_user(name)
    if path.is_file():
        return _from_json(path)
    if path.is_dir() and not ((path / "vocab.json").is_file() or (path / "tokenizer.json").is_file()):
        raise UserError(
            f"dataset.tokenizer: the folder {path} has neither vocab.json and merges.txt nor tokenizer.json"
        )
    try:
        with refuse_panics():
            tokenizer = GPT2Tokenizer.from_pretrained(str(path) if path.is_dir() else name)
            if tokenizer.eos_token_id is None or len(tokenizer) < 256:  # without files, transformers returns one token
                raise ValueError("its vocabulary lacks <|endoftext|> or single bytes")
            _check_tokenizer(tokenizer)
            _check_merges(tokenizer)
    except Exception as error:  # huggingface_hub, json and tokenizers raise many kinds
        reason = f"the files in {path} are not a GPT-2 tokenizer ({shorten(error)})"
        if not path.is_dir():
            reason = (
                f"{name!r} is not on this machine and could not be downloaded. Fetch vocab.json and merges.txt of "
                f"https://huggingface.co/{name} on a machine with network access, put both into a folder here, and "
                "set dataset.tokenizer=THAT_FOLDER"
            )
        raise UserError(f"dataset.tokenizer: {reason}") from error
    tokenizer.model_max_length = LARGE_INTEGER  # Template truncates; the file may hold any value
    return tokenizer


def _check_tokenizer(tokenizer: PreTrainedTokenizerFast) -> None:
    """Raise an exception if the tokenizer cannot encode a text, or its ids cannot index an embedding."""
    tokenizer.decode(tokenizer.encode("A boat, because 1 is blue."))
    if max(tokenizer.get_vocab().values(), default=0) >= len(tokenizer):
        raise ValueError("its token ids are not consecutive from 0")


def _check_merges(tokenizer: PreTrainedTokenizerFast) -> None:
    """Raise ValueError if merges.txt is not the one of vocab.json: a part of it would split words differently."""
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    reached = {"".join(pair) for pair in model["merges"]} | {*tokenizer.get_added_vocab()}
    if lost := [token for token in model["vocab"] if len(token) > 1 and token not in reached]:
        raise ValueError(
            f"merges.txt lacks {len(lost):,} of the {len(model['vocab']):,} tokens of vocab.json, {lost[0]!r} for one; "
            "it may be half downloaded, so fetch both again"
        )


def _from_json(path: Path) -> PreTrainedTokenizerFast:
    try:
        require_file(path, largest=LARGEST_JSON)
        with refuse_panics():
            vocabulary = Tokenizer.from_file(str(path)).get_vocab()
            tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(path), eos_token="<|endoftext|>")
            _check_tokenizer(tokenizer)
    except Exception as error:
        reason = shorten(error)
        raise UserError(f"dataset.tokenizer: {path} is not a JSON file of the tokenizers library ({reason})") from error
    if "<|endoftext|>" not in vocabulary:
        raise UserError(f"dataset.tokenizer: {path} has no <|endoftext|> in its vocabulary")
    if "<|startoftext|>" in vocabulary:
        tokenizer.bos_token = "<|startoftext|>"
    return tokenizer


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

    Raises:
        UserError: `max_length` leaves no room for an explanation.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerFast, *, max_length: int, labels: Sequence[str] = EMOTIONS
    ) -> None:
        self.tokenizer, self.max_length, self.labels = tokenizer, max_length, tuple(labels)
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
        """Raise UserError if the tokens of one label are a prefix of another's: no comparable probabilities."""
        named = list(zip(self.labels, self.label_ids, strict=True))
        for (one, tokens), (other, longer) in itertools.permutations(named, 2):
            if tokens == longer[: len(tokens)]:
                raise UserError(
                    f"dataset.tokenizer: it encodes {one!r} as {tokens} and {other!r} as {longer}, which begins with "
                    "them, so their probabilities cannot be compared; rename one, or use another tokenizer"
                )

    def encode(self, text: str, emotion: int | None, *, supervise_emotion: bool = True) -> EncodedText:
        """Encode one text; supervised are the emotion, "because", the explanation and <eos>."""
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

    def explanation_prompt(self, emotion: int | None) -> tuple[list[int], int]:
        """Return the tokens up to "because", and how many of them are in the explanation segment."""
        if emotion is None:
            return [self.bos_id], 0
        return [*self.prompt, *self.label_ids[emotion], *self.because], len(self.because)

    def decode(self, tokens: Sequence[int]) -> str:
        return self.tokenizer.decode(list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False).strip()
