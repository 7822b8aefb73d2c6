"""The explanations as language: similes, variety, and novelty relative to the training texts.

The measures are those of ArtEmis (Achlioptas et al., 2021). Tokens are the words of data/languages.py.

- similes: share of texts with one of 13 phrases as a substring of the tokens joined by spaces ("is likely" has one);
- distinct: share of different explanations ("unique" in ArtEmis); vocabulary: number of different tokens;
- commonest_of_emotion: share of images with the commonest explanation among those of the same predicted emotion;
- novelty: longest common subsequence of an explanation with training texts, in tokens. max_lcs is the mean over the
  explanations of the longest with any of the texts, mean_lcs that of the mean over the texts; lower is more novel.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from common.progress import progress
from data.languages import words as tokens
from trainer.metrics.bootstrap import SEED, Statistic, mean

SIMILES = ("could be", "appears to be", "appear to be", "reminds me", "remind me", "seems like", "looks like",
           "look like", "is like", "are like", "think of", "resembles", "resembling")  # fmt: skip
NOVELTY_TEXTS, NOVELTY_CAPTIONS = 25_000, 800  # sampled for the novelty, as in ArtEmis
SHOWN_FROM = 1 << 22  # pairs of a caption and a training text from which a progress bar is shown
WORD_BITS = 64


def has_simile(words: Sequence[str]) -> bool:
    text = " ".join(words)
    return any(phrase in text for phrase in SIMILES)


def explanation_scores(
    texts: Mapping[str, str],
    references: Mapping[str, Sequence[str]],
    *,
    emotions: Mapping[str, str | None] | None = None,
    training_texts: Iterable[str] | None = None,
    seed: int = SEED,
) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Return the section "explanations" of metrics.json, and the values of each image.

    Args:
        texts: image id → explanation; references: image id → human texts, of the same images or fewer.
        emotions: image id → predicted emotion; without any, commonest_of_emotion is None.
        training_texts: of the model; None leaves out the novelty.

    Returns:
        The section; shares and means of an empty set are None. An empty explanation counts: 0 tokens and no simile.
        Empty references do not. By image id: simile, tokens and, for the sampled images, max_lcs and mean_lcs.
    """
    words = {image: tokens(text) for image, text in sorted(texts.items())}
    people = [found for group in references.values() for text in group if (found := tokens(text))]
    rows = {image: {"simile": has_simile(found), "tokens": len(found)} for image, found in words.items()}
    counts = Counter(" ".join(found) for found in words.values())
    common = min(counts.items(), key=lambda item: (-item[1], item[0]), default=None)
    novelty = None
    if training_texts is not None and words:
        novelty, lengths = novelty_scores(words, training_texts, seed=seed)
        for image, found in lengths.items():
            rows[image] |= found
    section = {
        "similes": _mean([row["simile"] for row in rows.values()]),
        "human_similes": _mean([has_simile(found) for found in people]),
        "distinct": len(counts) / len(words) if words else None,
        "commonest_of_emotion": _commonest_share(words, emotions or {}),
        "vocabulary": len({word for found in words.values() for word in found}),
        "mean_length": _mean([row["tokens"] for row in rows.values()]),
        "human_mean_length": _mean([len(found) for found in people]),
        "most_common": None if common is None else {"text": common[0], "count": common[1]},
        "captions": len(words),
        "human_texts": len(people),
        "novelty": novelty,
    }
    return section, {image: rows[image] for image in texts}


def _commonest_share(words: Mapping[str, Sequence[str]], emotions: Mapping[str, str | None]) -> float | None:
    by_emotion: dict[str, Counter[str]] = {}
    for image, found in words.items():
        if emotion := emotions.get(image):
            by_emotion.setdefault(emotion, Counter())[" ".join(found)] += 1
    total = sum(counts.total() for counts in by_emotion.values())
    return sum(max(counts.values()) for counts in by_emotion.values()) / total if total else None


def statistics(rows: Sequence[Mapping[str, Any]]) -> dict[str, Statistic]:
    """Return the scores that are means over images, from the values of each image."""
    found = {"similes": mean([row["simile"] for row in rows]), "mean_length": mean([row["tokens"] for row in rows])}
    if any("max_lcs" in row for row in rows):
        found |= {f"novelty.{name}": mean([row.get(name) for row in rows]) for name in ("max_lcs", "mean_lcs")}
    return found


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def novelty_scores(
    captions: Mapping[str, Sequence[str]],
    training_texts: Iterable[str],
    *,
    seed: int = SEED,
    texts_drawn: int = NOVELTY_TEXTS,
    captions_drawn: int = NOVELTY_CAPTIONS,
) -> tuple[dict[str, Any] | None, dict[str, dict[str, float]]]:
    """Return max_lcs and mean_lcs of a sample of captions (tokens) against a sample of the distinct training texts.

    The samples depend on the seed and on the texts, not on their order.

    Returns:
        For metrics.json (std: the sample standard deviation over the captions), None without a training text or
        caption; and max_lcs, mean_lcs by the id of each sampled caption.
    """
    rng = np.random.default_rng(seed)
    distinct = _drawn(sorted({" ".join(found) for text in training_texts if (found := tokens(text))}), texts_drawn, rng)
    images = _drawn(sorted(captions), captions_drawn, rng)
    if not distinct or not images:
        return None, {}
    found: dict[tuple[str, ...], dict[str, float]] = {}
    texts = TextIndex((text.split() for text in distinct), {word for image in images for word in captions[image]})
    with progress(len(images), "novelty", unit="caption", enabled=len(images) * len(distinct) >= SHOWN_FROM) as bar:
        for image in images:
            words = tuple(captions[image])
            if words not in found:
                lengths = texts.longest_common(words)
                found[words] = {"max_lcs": int(lengths.max()), "mean_lcs": float(lengths.mean())}
            bar.update()
    each = {image: found[tuple(captions[image])] for image in images}
    summary: dict[str, Any] = {}
    for name in ("max_lcs", "mean_lcs"):
        values = np.array([row[name] for row in each.values()], dtype=np.float64)
        summary[name] = float(values.mean())
        summary[f"{name}_std"] = float(values.std(ddof=1)) if len(values) > 1 else None
    return {**summary, "training_texts": len(distinct), "captions": len(images), "seed": seed}, each


def _drawn(items: list[str], count: int, rng: np.random.Generator) -> list[str]:
    return items if len(items) <= count else [items[i] for i in rng.choice(len(items), count, replace=False)]


class TextIndex:
    """Many texts, stored by token position, for the longest common subsequence of a caption with all of them at once.

    Args:
        texts: their tokens.
        vocabulary: of the captions; other tokens match nothing and are left out.
    """

    def __init__(self, texts: Iterable[Sequence[str]], vocabulary: set[str]) -> None:
        self._ids = {word: i for i, word in enumerate(sorted(vocabulary))}
        rows = [[self._ids[word] for word in text if word in self._ids] for text in texts]
        self._order = sorted(range(len(rows)), key=lambda i: -len(rows[i]))  # texts that reach a column come first
        longest_first = [rows[i] for i in self._order]
        self._columns = []
        having = len(rows)
        for column in range(len(longest_first[0]) if rows else 0):
            while len(longest_first[having - 1]) <= column:
                having -= 1
            self._columns.append(np.array([row[column] for row in longest_first[:having]], dtype=np.intp))

    def longest_common(self, caption: Sequence[str]) -> np.ndarray:
        """Return the lengths (texts,), exact for captions and texts of any length.

        Hyyrö's bit-parallel algorithm (2004): one bit per token of the caption, 0 where the LCS with the text so far
        grows; 64 tokens per machine word, with carry.
        """
        words = -(-len(caption) // WORD_BITS)
        matches = np.zeros((words, len(self._ids)), dtype=np.uint64)  # bit i: the token is the caption's i-th
        for i, token in enumerate(caption):
            matches[i // WORD_BITS, self._ids[token]] |= np.uint64(1 << (i % WORD_BITS))
        state = np.full((words, len(self._order)), ~np.uint64(0))
        for column in self._columns:
            carry = np.uint64(0)
            for word in range(words):
                v = state[word, : len(column)]
                matched = matches[word, column] & v
                total = v + matched + carry
                if word + 1 < words:
                    carry = ((total < v) | ((total == v) & (carry > 0))).astype(np.uint64)  # overflow
                v[:] = total | (v & ~matched)
        lengths = np.empty(len(self._order), dtype=np.int64)
        bits = np.unpackbits((~state).view(np.uint8).reshape(*state.shape, 8), axis=-1)
        lengths[self._order] = bits.sum(axis=(0, 2), dtype=np.int64)
        return lengths
