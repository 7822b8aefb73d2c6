"""A trained text→emotion classifier, in memory and on disk (without pickles).

FOLDER/model.safetensors   weights
FOLDER/vocabulary.json     words in the order of their rows; <pad> is the first
FOLDER/settings.json       arguments of the network, and the origin of the weights
FOLDER/metrics.json        accuracies, if it was trained here
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from common.errors import UserError, shorten
from common.files import write_folder, write_json
from common.reading import expand_user
from data.emotions import EMOTIONS
from data.prepare.cleaning import tokenize
from model.text_emotion import PAD, build_text_emotion
from model.weights.plain import read_object
from model.weights.tensor_files import read_tensors

PADDING, UNKNOWN = "<pad>", "<unk>"
NO_EMOTION = -1
MAX_WORDS = 128  # longer texts are cut
MADE_BY = "python -m trainer.text_emotion"
FILES = WEIGHTS, VOCABULARY, SETTINGS, METRICS = "model.safetensors", "vocabulary.json", "settings.json", "metrics.json"


class Vocabulary:
    """Words and their rows in the embedding: <pad> is the first, <unk> is one of them, and none occurs twice."""

    def __init__(self, words: Sequence[str]) -> None:
        self.words = tuple(words)
        self.rows = {word: row for row, word in enumerate(self.words)}
        if not self.words or self.words[PAD] != PADDING or UNKNOWN not in self.rows:
            raise UserError(f"a vocabulary begins with {PADDING} and has {UNKNOWN}; this one does not")
        if len(self.rows) != len(self.words):
            raise UserError(f"the word {Counter(self.words).most_common(1)[0][0]!r} is in the vocabulary twice")
        self.unknown = self.rows[UNKNOWN]

    @classmethod
    def of(cls, texts: Iterable[Sequence[str]], *, min_count: int) -> Vocabulary:
        """Return the words that occur at least `min_count` times, by falling frequency, then by alphabet."""
        counts = Counter(word for words in texts for word in words)
        frequent = sorted((-count, word) for word, count in counts.items() if count >= min_count)
        return cls([PADDING, UNKNOWN, *(word for _, word in frequent)])

    def __len__(self) -> int:
        return len(self.words)

    def encode(self, words: Iterable[str]) -> list[int]:
        return [self.rows.get(word, self.unknown) for word in words]


class Encoded:
    """Texts as rows of the vocabulary, concatenated; each text is cut to MAX_WORDS words."""

    def __init__(self, texts: Iterable[Sequence[str]], vocabulary: Vocabulary) -> None:
        rows = [vocabulary.encode(words[:MAX_WORDS]) for words in texts]
        self.lengths = torch.tensor([len(row) for row in rows], dtype=torch.int64)
        self.tokens = torch.tensor([token for row in rows for token in row], dtype=torch.int32)
        self.starts = self.lengths.cumsum(0) - self.lengths
        self.unknown = int((self.tokens == vocabulary.unknown).sum())

    def __len__(self) -> int:
        return len(self.lengths)

    def batch(self, texts: Tensor) -> tuple[Tensor, Tensor]:
        """Return (N, L) int64 rows, padded on the right, and (N,) lengths for (N,) indices of nonempty texts."""
        lengths = self.lengths[texts]
        column = torch.arange(int(lengths.max()))
        places = (self.starts[texts, None] + column).clamp(max=len(self.tokens) - 1)
        return self.tokens[places].long().masked_fill(column >= lengths[:, None], PAD), lengths


class Reading(NamedTuple):
    """Predictions for N texts."""

    log_probabilities: Tensor  # (N, 9) float64, natural logarithms; uniform for a text without a word
    emotions: Tensor  # (N,) int64, the most likely; NO_EMOTION for a text without a word
    unknown_words: float  # share of words that are not in the vocabulary


@torch.no_grad()
def read(network: nn.Module, texts: Encoded, device: torch.device, *, batch_size: int = 2048) -> Reading:
    """Return the predictions for all texts, on the CPU and in their order."""
    result = torch.full((len(texts), len(EMOTIONS)), -math.log(len(EMOTIONS)), dtype=torch.float64)
    by_length = torch.argsort(texts.lengths, stable=True)  # less padding
    by_length = by_length[texts.lengths[by_length] > 0]
    network.eval()
    for start in range(0, len(by_length), batch_size):
        chosen = by_length[start : start + batch_size]
        tokens, lengths = texts.batch(chosen)
        logits = network(tokens.to(device), lengths.to(device))
        result[chosen] = logits.cpu().double().log_softmax(dim=-1)
    emotions = result.argmax(dim=-1).masked_fill(texts.lengths == 0, NO_EMOTION)
    return Reading(result, emotions, texts.unknown / max(len(texts.tokens), 1))


@dataclass(slots=True)
class TextClassifier:
    """Predicts the emotion that an explanation expresses."""

    network: nn.Module
    vocabulary: Vocabulary
    settings: dict[str, Any]
    metrics: dict[str, Any] = field(default_factory=dict)
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    folder: Path | None = None

    def read(self, texts: Iterable[str]) -> Reading:
        """Tokenize as ArtEmis (lower-case, no punctuation, contractions expanded) and classify."""
        return read(self.network, Encoded(map(tokenize, texts), self.vocabulary), self.device)

    def describe(self) -> dict[str, Any]:
        """Return the description that scores record."""
        return {
            "folder": None if self.folder is None else str(self.folder),
            "network": self.settings["network"]["name"],
            "words": len(self.vocabulary),
            "embeddings": self.settings.get("embeddings"),
            "source": self.settings.get("source"),
            "accuracy": {split: found["nine_way"] for split, found in self.metrics.get("accuracies", {}).items()},
        }

    def save(self, folder: Path) -> None:
        """Write the four files atomically, replacing an earlier classifier; raise UserError if that fails."""

        def fill(unfinished: Path) -> None:
            state = {key: tensor.detach().cpu().contiguous() for key, tensor in self.network.state_dict().items()}
            save_file(state, unfinished / WEIGHTS)
            write_json(unfinished / VOCABULARY, list(self.vocabulary.words))
            write_json(unfinished / SETTINGS, {"made_by": MADE_BY, **self.settings})
            write_json(unfinished / METRICS, self.metrics)

        try:
            write_folder(folder, fill)
        except (OSError, SafetensorError) as error:
            raise UserError(f"{folder} cannot be written ({error})") from None
        self.folder = folder


def check_out(folder: Path, *, overwrite: bool) -> None:
    """Raise UserError if `folder` holds other files or, without `overwrite`, a classifier."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--out {folder} is a file; give a folder")
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if foreign := sorted(names - set(FILES)):
        raise UserError(f"--out {folder} holds other files ({foreign[0]}); give a new folder")
    if names and not overwrite:
        raise UserError(f"--out {folder} already holds a classifier; give --overwrite to replace it")


def load_classifier(folder: Path | str, *, device: str = "auto") -> TextClassifier:
    """Return a classifier that `python -m trainer.text_emotion train` or `import` wrote.

    Raises:
        UserError: a file is missing or damaged, or the files do not match one another.
    """
    folder = expand_user(folder)
    if not (folder / SETTINGS).is_file():
        raise UserError(
            f"{folder} is no text→emotion classifier: it has no {SETTINGS}; make one with {MADE_BY} train or import"
        )
    settings, words = read_object(folder / SETTINGS), read_object(folder / VOCABULARY, list)
    metrics = read_object(folder / METRICS) if (folder / METRICS).is_file() else {}
    if not all(isinstance(word, str) for word in words):
        raise UserError(f"{folder / VOCABULARY} must be a list of words")
    try:
        vocabulary = Vocabulary(words)
        network = build_text_emotion(settings["network"])
    except UserError as error:
        raise UserError(f"{folder / VOCABULARY}: {error}") from None
    except (KeyError, TypeError, ValueError, RuntimeError, ArithmeticError, AssertionError) as error:
        raise UserError(f"{folder / SETTINGS} does not describe a network ({shorten(error)})") from error
    weights = read_tensors(folder / WEIGHTS)
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:  # torch lists what is missing, unexpected or of another shape
        raise UserError(f"{folder / WEIGHTS} does not match {SETTINGS}: {shorten(error)}") from error
    if network.embedding.num_embeddings != len(vocabulary):
        raise UserError(
            f"{folder}: {VOCABULARY} has {len(vocabulary)} words and the network {network.embedding.num_embeddings}"
        )
    found = pick_device(device)
    return TextClassifier(network.to(found).eval(), vocabulary, settings, metrics, found, folder)


def pick_device(name: str) -> torch.device:
    """Return the device of this name, where "auto" is a GPU if there is one; raise UserError if it does not exist."""
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(kind for kind, found in available.items() if found)
    if not available[name]:
        raise UserError(f"--device {name}: torch sees no such device here; take cpu")
    return torch.device(name)
