"""Train a text→emotion classifier and compute its accuracies. Recipe: Achlioptas et al., 2021."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from common.errors import UserError
from common.progress import progress
from data.emotions import EMOTIONS
from data.prepare.cleaning import tokenize
from data.readers.artemis import read_artemis
from model.text_emotion import PAD, build_text_emotion
from trainer.runs.checkpoint import provenance
from trainer.runs.state import seed_everything
from trainer.text_emotion.text_classifier import MAX_WORDS, Encoded, TextClassifier, Vocabulary, pick_device, read
from trainer.text_emotion.word_vectors import read_vectors

POSITIVE, NEGATIVE, ELSE = range(3)
POLARITY = torch.tensor([POSITIVE] * 4 + [NEGATIVE] * 4 + [ELSE])  # of each of EMOTIONS
HALVE_AT = (10, 20, 30)  # epochs


@dataclass(frozen=True, slots=True)
class Recipe:
    """Hyperparameters of a training."""

    network: str = "lstm"
    embeddings: Path | None = None  # GloVe's file of vectors, which stay frozen; None: learned
    epochs: int = 50
    batch_size: int = 1024
    learning_rate: float = 5e-4  # halved before the epochs HALVE_AT, counted from 0
    min_count: int = 5  # rarer words are <unk>
    seed: int = 2021


@dataclass(slots=True)
class Explanations:
    """N explanations and their emotions."""

    path: Path
    words: list[list[str]] = field(repr=False)
    emotions: Tensor = field(repr=False)  # (N,) int64


def read_explanations(path: Path) -> Explanations:
    """Return all explanations of an ArtEmis JSON file with their emotions, in order; no image is read.

    Raises:
        UserError: the file is invalid, or none of its explanations has a word.
    """
    words, emotions = [], []
    samples = read_artemis(path, path.parent)
    with progress(len(samples), f"reading {path.name}", unit="image") as bar:
        for sample in samples:
            words += map(tokenize, sample.texts)
            emotions += sample.emotions
            bar.update()
    if not any(words):
        raise UserError(f"{path}: no explanation has a word in it")
    return Explanations(path, words, torch.tensor(emotions))


def accuracies(predicted: Tensor, emotions: Tensor) -> dict[str, float | int | None]:
    """Return accuracies of N predictions, as indices into EMOTIONS; -1 stands for no prediction and is wrong.

    nine_way: of the emotion. ternary: of its polarity (positive, negative, something else). binary: of the polarity,
    over the explanations of positive and negative emotions only. majority: nine_way of a constant prediction of the
    most frequent emotion.
    """
    polarity = POLARITY[emotions]
    correct = (POLARITY[predicted.clamp(min=0)] == polarity) & (predicted >= 0)
    polar = polarity != ELSE
    return {
        "nine_way": (predicted == emotions).double().mean().item(),
        "ternary": correct.double().mean().item(),
        "binary": correct[polar].double().mean().item() if polar.any() else None,
        "majority": emotions.bincount().max().item() / len(emotions),
        "count": len(emotions),
        "polar": int(polar.sum()),
    }


def evaluate(classifier: TextClassifier, explanations: Explanations) -> dict[str, float | int | None]:
    """Return the `accuracies` of a classifier."""
    encoded = Encoded(explanations.words, classifier.vocabulary)
    return accuracies(read(classifier.network, encoded, classifier.device).emotions, explanations.emotions)


def train(
    training: Explanations,
    validation: Explanations,
    recipe: Recipe,
    *,
    out: Path,
    test: Explanations | None = None,
    device: str = "auto",
) -> TextClassifier:
    """Return the classifier of the first epoch with the best nine-way accuracy on `validation`.

    After every epoch the folder `out` holds the best classifier so far. On a CPU, the same recipe, data and number of
    threads give identical weights.

    Raises:
        UserError: too few words or texts, unreadable word vectors, or a loss that is not finite.
    """
    started = time.monotonic()
    seed_everything(recipe.seed)
    classifier = _new_classifier(training, validation, recipe, pick_device(device))
    learned, held_out = (Encoded(split.words, classifier.vocabulary) for split in (training, validation))
    count = int(learned.lengths.count_nonzero())
    if count < 2 or recipe.batch_size < 2:
        raise UserError("a batch needs at least two explanations (BatchNorm); give more, or a larger --batch-size")
    classifier.metrics = {"best_epoch": None, "accuracies": {}, "epochs": []}
    best: dict[str, Tensor] = {}
    top = -1.0
    with progress(recipe.epochs * count, "training", unit="text") as bar:
        for epoch, loss in enumerate(_epochs(classifier, learned, training.emotions, recipe, bar)):
            found = accuracies(read(classifier.network, held_out, classifier.device).emotions, validation.emotions)
            accuracy = found["nine_way"]
            classifier.metrics["epochs"].append({"epoch": epoch, "loss": loss, "validation": accuracy})
            if accuracy > top:
                top, best = accuracy, copy.deepcopy(classifier.network.state_dict())
                classifier.metrics |= {"best_epoch": epoch, "accuracies": {"validation": found}}
                classifier.save(out)
            bar.set_postfix_str(f"epoch {epoch + 1}, accuracy {accuracy:.3f}, best {top:.3f}", refresh=False)
    classifier.network.load_state_dict(best)
    if test is not None:
        classifier.metrics["accuracies"]["test"] = evaluate(classifier, test)
    classifier.metrics["seconds"] = round(time.monotonic() - started, 1)
    classifier.save(out)
    return classifier


def learning_rate(epoch: int, start: float) -> float:
    """Return the learning rate of an epoch, counted from 0."""
    return start * 0.5 ** sum(epoch >= halved for halved in HALVE_AT)


def _epochs(classifier: TextClassifier, texts: Encoded, emotions: Tensor, recipe: Recipe, bar) -> Iterator[float]:
    """Train one epoch for each mean loss that is yielded; texts without a word are left out."""
    network, device = classifier.network, classifier.device
    nonempty = texts.lengths.nonzero().squeeze(1)
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=recipe.learning_rate)
    for epoch in range(recipe.epochs):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(epoch, recipe.learning_rate)
        network.train()
        total = 0.0
        for chosen in _batches(nonempty, recipe, epoch):
            tokens, lengths = texts.batch(chosen)
            logits = network(tokens.to(device), lengths.to(device))
            loss = nn.functional.cross_entropy(logits, emotions[chosen].to(device))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            total += loss.item() * len(chosen)
            bar.update(len(chosen))
        if not math.isfinite(total):
            raise UserError(f"the loss of epoch {epoch} is NaN or infinite; train with a smaller --learning-rate")
        yield total / len(nonempty)


def _batches(texts: Tensor, recipe: Recipe, epoch: int) -> Sequence[Tensor]:
    """Return shuffled batches; a last batch of one text joins the one before it, because BatchNorm needs two."""
    generator = torch.Generator().manual_seed(recipe.seed * 1_000_003 + epoch)
    batches = list(texts[torch.randperm(len(texts), generator=generator)].split(recipe.batch_size))
    if len(batches[-1]) == 1:
        batches[-2:] = [torch.cat(batches[-2:])]
    return batches


def _new_classifier(
    training: Explanations, validation: Explanations, recipe: Recipe, device: torch.device
) -> TextClassifier:
    vocabulary = Vocabulary.of(training.words, min_count=recipe.min_count)
    if len(vocabulary) == len(Vocabulary.of([], min_count=1)):
        raise UserError(f"{training.path}: no word occurs {recipe.min_count} times; give a lower --min-count")
    arguments = {"name": recipe.network, "vocabulary": len(vocabulary), "classes": len(EMOTIONS)}
    if recipe.network == "transformer":
        arguments["max_words"] = MAX_WORDS
    embeddings, vectors = "learned", None
    if recipe.embeddings is not None:
        vectors, known = _embedding(recipe.embeddings, vocabulary)
        arguments |= {"embedding_dim": vectors.shape[1], "trained_embedding": False}
        embeddings = f"{recipe.embeddings.name}, frozen: {known} of {len(vocabulary)} words, the others random"
    network = build_text_emotion(arguments)
    if vectors is not None:
        network.embedding.weight.data.copy_(vectors)
    settings = {
        "network": arguments,
        "embeddings": embeddings,
        "source": "trained",
        "recipe": {**asdict(recipe), "embeddings": recipe.embeddings and str(recipe.embeddings)},
        "data": {"train": str(training.path), "validation": str(validation.path), "explanations": len(training.words)},
        **provenance(),
    }
    return TextClassifier(network.to(device), vocabulary, settings, device=device)


def _embedding(path: Path, vocabulary: Vocabulary) -> tuple[Tensor, int]:
    """Return (V, D) vectors and the number of words in the file; the others are drawn from N(0, 1), padding is zero."""
    vectors = read_vectors(path, vocabulary.words)
    size = len(next(iter(vectors.values())))
    weights = torch.randn(len(vocabulary), size)
    for word, vector in vectors.items():
        weights[vocabulary.rows[word]] = torch.from_numpy(vector)
    weights[PAD] = 0
    return weights, len(vectors)
