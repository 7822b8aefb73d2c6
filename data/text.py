"""The text format: `<bos> the emotion is E because X <eos>`, or `<bos> X <eos>` without emotions.

With several languages, the name of the language precedes the explanation: `… because (french): X <eos>`.

It needs no token beyond the tokenizer's vocabulary: padding and supervision are decided by position, not by token id.
"""

from __future__ import annotations

import importlib.util
import itertools
import json
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.processors import ByteLevel
from transformers import AutoTokenizer, GPT2Tokenizer, PreTrainedTokenizerFast
from transformers.tokenization_utils_base import LARGE_INTEGER

from common.errors import UserError, shorten
from common.files import write_json
from common.reading import (
    GPT2_NAMES,
    LARGEST_JSON,
    expand_user,
    model_type,
    read_json,
    refuse_panics,
    require_file,
)
from data.emotions import EMOTIONS
from data.tokenizer_files import has_tokenizer

IGNORED = -100  # label of an unsupervised position
JSON, SETTINGS = "tokenizer.json", "tokenizer_config.json"
# <eos> and <bos> of a JSON file without tokenizer_config.json: the first <eos> that its vocabulary has.
ENDS = {
    "<|endoftext|>": "<|startoftext|>",
    "</s>": "<s>",
    "<eos>": "<bos>",
    "<|end_of_text|>": "<|begin_of_text|>",
    "<|im_end|>": "<|im_start|>",
}
UNKNOWN = ("<unk>", "[UNK]")
NAMES = ("eos_token", "bos_token", "unk_token", "pad_token")  # what is read of a JSON file's tokenizer_config.json


def load_tokenizer(name: str) -> PreTrainedTokenizerFast:
    """Load the tokenizer of a causal language model; code and chat templates that come with it are ignored.

    Args:
        name: on the hub, a folder, a JSON file of the `tokenizers` library (with tokenizer_config.json beside
            tokenizer.json, if it is there), or a GGUF file.

    Raises:
        UserError: the files are missing or not a tokenizer, the name could not be downloaded, or a package is missing.
    """
    path = expand_user(name)
    if path.is_dir() and not has_tokenizer(path):
        raise UserError(
            f"dataset.tokenizer: the folder {path} has neither vocab.json and merges.txt nor tokenizer.json, "
            "tokenizer.model or spiece.model"
        )
    _require_packages(path)
    try:
        with refuse_panics():
            tokenizer = _load(name, path)
            _drop_post_processor(tokenizer)
            _check_tokenizer(tokenizer)
    except Exception as error:  # huggingface_hub, json and tokenizers raise many kinds
        raise UserError(f"dataset.tokenizer: {_reason(name, path, error)}") from error
    tokenizer.model_max_length = LARGE_INTEGER  # Template truncates; the file may hold any value
    tokenizer.name_or_path, tokenizer.chat_template = name, None
    return tokenizer


def save_tokenizer(tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write tokenizer.json, and tokenizer_config.json if load_tokenizer would assume other special tokens without."""
    tokenizer.backend_tokenizer.save(str(folder / JSON))
    usual, eos = _usual_names(tokenizer.get_vocab()), tokenizer.eos_token
    names = {key: token for key in NAMES if (token := getattr(tokenizer, key)) is not None}
    if any(usual.get(key, eos) != names.get(key, eos) for key in NAMES[:3]):
        write_json(folder / SETTINGS, {"tokenizer_class": "PreTrainedTokenizerFast", **names})


def _load(name: str, path: Path) -> PreTrainedTokenizerFast:
    if _is_gguf(path):
        return AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name, trust_remote_code=False)
    if path.is_file():
        return _from_json(path)
    plain = not (path / JSON).is_file() and (path / "vocab.json").is_file() and model_type(path) in (None, "gpt2")
    if plain or (name in GPT2_NAMES and not path.is_dir()):
        return GPT2Tokenizer.from_pretrained(str(path) if path.is_dir() else name)
    tokenizer = AutoTokenizer.from_pretrained(str(path) if path.is_dir() else name, trust_remote_code=False)
    if isinstance(tokenizer, PreTrainedTokenizerFast) and isinstance(model := tokenizer.backend_tokenizer.model, BPE):
        # None and "" mean the same; runs compare digests, and earlier ones have the "" of GPT2Tokenizer.
        model.continuing_subword_prefix = model.continuing_subword_prefix or ""
        model.end_of_word_suffix = model.end_of_word_suffix or ""
    return tokenizer


def _from_json(path: Path) -> PreTrainedTokenizerFast:
    require_file(path, largest=LARGEST_JSON)
    if path.name == JSON and (settings := path.with_name(SETTINGS)).is_file():
        stored = {key: value for key, value in read_json(settings).items() if key in NAMES and value is not None}
        names = {key: value["content"] if isinstance(value, dict) else value for key, value in stored.items()}
    else:
        names = _usual_names(Tokenizer.from_file(str(path)).get_vocab())
    return PreTrainedTokenizerFast(tokenizer_file=str(path), **names)


def _usual_names(vocabulary: Container[str]) -> dict[str, str]:
    """Return those of eos_token, bos_token and unk_token that the vocabulary has by ENDS and UNKNOWN."""
    eos = next((token for token in ENDS if token in vocabulary), None)
    unknown = next((token for token in UNKNOWN if token in vocabulary), None)
    found = {"eos_token": eos, "bos_token": ENDS.get(eos), "unk_token": unknown}
    return {key: token for key, token in found.items() if token in vocabulary}


def _is_gguf(path: Path) -> bool:
    return path.suffix.lower() == ".gguf"


def _require_packages(path: Path) -> None:
    pieces = path.is_dir() and not (path / JSON).is_file() and any(path.glob("*.model"))
    for package, needed, also in (("gguf", _is_gguf(path), ""), ("sentencepiece", pieces, " protobuf")):
        if needed and importlib.util.find_spec(package) is None:
            raise UserError(f"dataset.tokenizer: {path} needs the package {package}: pip install {package}{also}")


def _reason(name: str, path: Path, error: Exception) -> str:
    if "trust_remote_code" in str(error):
        return f"{name} is a tokenizer with code of its own, which is never executed: use another tokenizer"
    if path.is_dir():
        return f"the files in {path} are not a tokenizer of transformers ({shorten(error)})"
    if path.is_file():
        what = "a GGUF file of a language model" if _is_gguf(path) else "a JSON file of the tokenizers library"
        return f"{path} is not {what} ({shorten(error)})"
    return (
        f"{name!r} is not on this machine and could not be downloaded. Fetch vocab.json and merges.txt, or "
        f"tokenizer.json and tokenizer_config.json, of https://huggingface.co/{name} on a machine with network access, "
        "put them into a folder here, and set dataset.tokenizer=THAT_FOLDER"
    )


def _drop_post_processor(tokenizer: PreTrainedTokenizerFast) -> None:
    """Remove what adds special tokens: the template adds them, and one from a file could multiply every text."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None and not isinstance(backend.post_processor, ByteLevel):
        backend.post_processor = None


def _check_tokenizer(tokenizer: PreTrainedTokenizerFast) -> None:
    """Raise an exception if the tokenizer cannot encode a text, or its ids cannot index an embedding."""
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise TypeError("it is none of the tokenizers library")
    if isinstance(tokenizer, GPT2Tokenizer):
        if tokenizer.eos_token_id is None or len(tokenizer) < 256:  # without files, transformers returns one token
            raise ValueError("its vocabulary lacks <|endoftext|> or single bytes")
        _check_merges(tokenizer)
    found = tokenizer.decode(tokenizer.encode("A boat, because 1 is blue."))
    if "boat" not in found.lower():
        raise ValueError(f"it reads 'A boat, because 1 is blue.' as {found!r}")
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
