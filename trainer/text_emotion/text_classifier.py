"""A trained text→emotion classifier, in memory and on disk. Nothing here is a pickle.

FOLDER/model.safetensors   the weights
FOLDER/vocabulary.json     the words, in the order of their rows; <pad> is the first
FOLDER/settings.json       the network's arguments, and where the weights come from
FOLDER/metrics.json        accuracies, where it was trained here
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

from common.errors import UserError, in_short
from common.files import write_folder, write_json
from common.reading import expanded, read_json
from data.emotions import EMOTIONS
from data.prepare.cleaning import tokenize
from model.text_emotion import PAD, build_text_emotion
from model.weights.tensor_files import read_tensors

PADDING, UNKNOWN = "<pad>", "<unk>"
NO_EMOTION = -1
MAX_WORDS = 128  # of a text; it loses what is behind them
MADE_BY = "python -m trainer.text_emotion"
WEIGHTS, VOCABULARY, SETTINGS, METRICS = FILES = (
    "model.safetensors",
    "vocabulary.json",
    "settings.json",
    "metrics.json",
)


class Vocabulary:
    """Words and their rows in the embedding.

    Raises:
        UserError: the first is not <pad>, there is no <unk>, or a word comes twice.
    """

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
        """The words that come at least `min_count` times, the commonest first and equally common ones by alphabet."""
        counts = Counter(word for words in texts for word in words)
        kept = sorted((-count, word) for word, count in counts.items() if count >= min_count)
        return cls([PADDING, UNKNOWN, *(word for _, word in kept)])

    def __len__(self) -> int:
        return len(self.words)

    def encode(self, words: Iterable[str]) -> list[int]:
        return [self.rows.get(word, self.unknown) for word in words]


class Encoded:
    """Texts as rows of the vocabulary, one behind the other.

    Args:
        texts: the words of each text; the first MAX_WORDS of them are kept.
    """

    def __init__(self, texts: Iterable[Sequence[str]], vocabulary: Vocabulary) -> None:
        rows = [vocabulary.encode(words[:MAX_WORDS]) for words in texts]
        self.lengths = torch.tensor([len(row) for row in rows], dtype=torch.int64)
        self.tokens = torch.tensor([token for row in rows for token in row], dtype=torch.int32)
        self.starts = self.lengths.cumsum(0) - self.lengths
        self.unknown = int((self.tokens == vocabulary.unknown).sum())

    def __len__(self) -> int:
        return len(self.lengths)

    def batch(self, texts: Tensor) -> tuple[Tensor, Tensor]:
        """(N,) indices of texts with a word → (N, L) int64 rows, padded on the right, and (N,) lengths."""
        lengths = self.lengths[texts]
        column = torch.arange(int(lengths.max()))
        places = (self.starts[texts, None] + column).clamp(max=len(self.tokens) - 1)
        return self.tokens[places].long().masked_fill(column >= lengths[:, None], PAD), lengths


class Reading(NamedTuple):
    """What a classifier makes of N texts."""

    log_probabilities: Tensor  # (N, 9) float64, natural logarithms; uniform for a text without a word
    emotions: Tensor  # (N,) int64, the likeliest; NO_EMOTION for a text without a word
    unknown_words: float  # share of all words that are not in the vocabulary


@torch.no_grad()
def read(network: nn.Module, texts: Encoded, device: torch.device, *, batch_size: int = 2048) -> Reading:
    """All on the CPU, in the order of the texts."""
    result = torch.full((len(texts), len(EMOTIONS)), -math.log(len(EMOTIONS)), dtype=torch.float64)
    by_length = torch.argsort(texts.lengths, stable=True)  # texts of about one length need little padding
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
    """Says how likely each of the nine emotions is behind an explanation."""

    network: nn.Module
    vocabulary: Vocabulary
    settings: dict[str, Any]
    metrics: dict[str, Any] = field(default_factory=dict)
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    folder: Path | None = None

    def encode(self, texts: Iterable[str]) -> Encoded:
        """The words as ArtEmis makes them: lower-case, without punctuation, contractions expanded."""
        return Encoded(map(tokenize, texts), self.vocabulary)

    def read(self, texts: Iterable[str]) -> Reading:
        """How likely each emotion is, and which is the likeliest, for every text."""
        return read(self.network, self.encode(texts), self.device)

    def describe(self) -> dict[str, Any]:
        """What a score that was made with this classifier says of it."""
        return {
            "folder": None if self.folder is None else str(self.folder),
            "network": self.settings["network"]["name"],
            "words": len(self.vocabulary),
            "embeddings": self.settings.get("embeddings"),
            "source": self.settings.get("source"),
            "accuracy": {split: found["nine_way"] for split, found in self.metrics.get("accuracies", {}).items()},
        }

    def save(self, folder: Path) -> None:
        """Write the four files at once, in place of those of an earlier classifier.

        Raises:
            UserError: the folder cannot be written.
        """

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
    """Raises UserError where a classifier would replace anything else, or, without `overwrite`, another classifier."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--out {folder} is a file; give a folder")
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if foreign := sorted(names - set(FILES)):
        raise UserError(f"--out {folder} holds other files ({foreign[0]}); give a folder of its own")
    if names and not overwrite:
        raise UserError(f"--out {folder} holds a classifier already; give --overwrite to replace it")


def load_classifier(folder: Path | str, *, device: str = "auto") -> TextClassifier:
    """A classifier that `python -m trainer.text_emotion train` or `import` wrote.

    Raises:
        UserError: a file is missing or damaged, or the files do not belong together; names it.
    """
    folder = expanded(folder)
    if not (folder / SETTINGS).is_file():
        raise UserError(
            f"{folder} is no text→emotion classifier: it has no {SETTINGS}; make one with {MADE_BY} train or import"
        )
    settings, words = _read_json(folder / SETTINGS, dict), _read_json(folder / VOCABULARY, list)
    metrics = _read_json(folder / METRICS, dict) if (folder / METRICS).is_file() else {}
    if not all(isinstance(word, str) for word in words):
        raise UserError(f"{folder / VOCABULARY} must be a list of words")
    try:
        vocabulary = Vocabulary(words)
        network = build_text_emotion(settings["network"])
    except UserError as error:
        raise UserError(f"{folder / VOCABULARY}: {error}") from None
    except (KeyError, TypeError, ValueError, RuntimeError, ArithmeticError, AssertionError) as error:
        reason = in_short(error)
        raise UserError(f"{folder / SETTINGS} does not describe a network ({reason})") from error
    _load_weights(network, folder / WEIGHTS)
    if network.embedding.num_embeddings != len(vocabulary):
        raise UserError(
            f"{folder}: {VOCABULARY} has {len(vocabulary)} words and the network {network.embedding.num_embeddings}"
        )
    found = pick_device(device)
    return TextClassifier(network.to(found).eval(), vocabulary, settings, metrics, found, folder)


def _load_weights(network: nn.Module, path: Path) -> None:
    weights = read_tensors(path)
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:  # torch lists what is missing, unexpected or of another shape
        raise UserError(f"{path} does not fit {SETTINGS} beside it: {in_short(error)}") from error


def _read_json(path: Path, kind: type) -> Any:
    try:
        value = read_json(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error})") from error
    if not isinstance(value, kind):
        raise UserError(f"{path} must hold a JSON {'object' if kind is dict else 'list'}")
    return value


def pick_device(name: str) -> torch.device:
    """auto: a GPU where there is one.

    Raises:
        UserError: a device that is not there.
    """
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return torch.device(next(kind for kind, usable in there.items() if usable))
    if not there[name]:
        raise UserError(f"--device {name}: torch sees no such device here; take cpu")
    return torch.device(name)
