"""Rows of predictions.jsonl, and the settings that score them without Java and CLIP."""

from __future__ import annotations

import random

import numpy as np

from data.emotions import EMOTIONS
from data.vad.lexicon import Lexicon
from model.text_emotion import build_text_emotion
from tests.helpers.tiny import LEXICON, sentences
from trainer.metrics.calibration import softmax
from trainer.score.scores import Settings
from trainer.text_emotion.text_classifier import TextClassifier, Vocabulary

PLAIN = Settings(metrics=("bleu", "rouge_l", "cider"), tokenizer="whitespace")  # no Java


def row(id: str, emotion: str | None, shares: dict[str, float] | None, explanation: str = "the boat is calm") -> dict:
    distribution = [0.9 if name == emotion else 0.0125 for name in EMOTIONS]
    return {
        "id": id,
        "emotion": emotion,
        "emotion_distribution": distribution if emotion else None,
        "explanation": explanation,
        "references": ["the boat is calm", "a gloomy storm"],
        "reference_emotions": ["contentment", "fear"] if shares else [],
        "histogram": shares and [shares.get(name, 0.0) for name in EMOTIONS],
    }


def many(count: int = 40, *, right: float = 0.7, seed: int = 0) -> list[dict]:
    """Return predictions with words of their references, and the right emotion with probability `right`."""
    rng = random.Random(seed)
    rows = []
    for i in range(count):
        felt = EMOTIONS[i % len(EMOTIONS)]
        said = felt if rng.random() < right else rng.choice(EMOTIONS)
        references = sentences(3, seed=1000 + i)
        words = references[0].split()[: rng.randint(2, 8)] + rng.choices(["boat", "sky", "gloomy"], k=rng.randint(0, 4))
        shares = {felt: rng.choice([0.4, 0.5, 0.6, 1.0])}
        shares["awe"] = shares.get("awe", 0) + 1 - sum(shares.values())
        found = row(f"{i:03d}", said, shares, " ".join(words))
        rows.append({**found, "references": references, "reference_emotions": ["fear", felt, "awe"]})
    return rows


def at(metrics: dict, key: str):
    """Return the value of a key of metrics["intervals"]."""
    section, _, rest = key.partition(".")
    value = metrics[section]["scores"] if section == "captions_filtered" else metrics[section]
    for part in rest.split("."):
        value = value[part]
    return value


def everything(rows: list[dict]) -> Settings:
    """Return settings with every score that needs neither Java nor CLIP."""
    classifier = TextClassifier(
        build_text_emotion({"name": "transformer", "vocabulary": 6, "classes": 9, "max_words": 128}).eval(),
        Vocabulary(["<pad>", "<unk>", "calm", "storm", "sky", "gloomy"]),
        {"network": {"name": "transformer"}},
    )
    return Settings(
        metrics=PLAIN.metrics,
        tokenizer=PLAIN.tokenizer,
        training_texts=[text for row in rows for text in row["references"]],
        lexicon=Lexicon(LEXICON),
        lexicon_name="lexicon.csv",
        classifier=classifier,
    )


def peak(name: str, share: float = 0.6) -> list[float]:
    return [share if emotion == name else (1 - share) / 8 for emotion in EMOTIONS]


def image(id: str, felt: str | None, language_model: str, student: str, fused: str, **more) -> dict:
    """Return a row of predictions.jsonl with an expert; 80 % of the annotators feel `felt`."""
    return {
        "id": id,
        "emotion": fused,
        "emotion_distribution": peak(fused),
        "explanation": "the boat is calm",
        "references": ["the boat is calm", "a gloomy storm"],
        "histogram": felt and peak(felt, 0.8),
        "sources": {"language_model": peak(language_model), "student": peak(student, 0.7)},
        "gates": {"average": peak(student), "concat_linear": peak(fused)},
        "gate": {"name": "concat_linear", "weights": {"language_model": 0.25, "student": 0.75}},
    } | more


def drawn(images: int = 300, *, seed: int = 0) -> list[dict]:
    """Return rows in which the student is right more often than the language model, and the gate more than either."""
    rng = np.random.default_rng(seed)

    def guess(felt: int, accuracy: float) -> str:
        return EMOTIONS[felt if rng.random() < accuracy else rng.integers(9)]

    rows = []
    for i in range(images):
        felt = int(rng.integers(9))
        names = [guess(felt, accuracy) for accuracy in (0.3, 0.5, 0.9)]
        row = image(f"{i:03d}", EMOTIONS[felt], *names)
        row["sources"] |= {"probe": peak(guess(felt, 0.2)), "teacher": peak(guess(felt, 0.7))}
        rows.append(row)
    return rows


def both_explanations(rows: list[dict]) -> list[dict]:
    """Return the rows with own explanations, which differ where the emotions differ."""
    found = []
    for row, words in zip(rows, many(len(rows)), strict=True):
        own = EMOTIONS[int(np.argmax(row["sources"]["language_model"]))]
        text = words["references"][0] if own == row["emotion"] else "nothing at all"
        said = {"explanation": words["references"][0], "references": words["references"]}
        found.append(row | said | {"own": {"emotion": own, "explanation": text}})
    return found


def model_and_answers(count: int, *, factor: float, people: int | None = None, seed: int = 0):
    """Return log-probabilities `factor` times too sharp, and the true shares or counts of `people` answers."""
    rng = np.random.default_rng(seed)
    right = softmax(rng.normal(size=(count, 9)) * 1.5)
    answers = right if people is None else np.stack([rng.multinomial(people, p) for p in right])
    return np.log(softmax(np.log(right) * factor)), answers
