"""Whether explanations name what their images show, given the facts of `data.readers.facts`.

A text names a value of a kind (the subject boat) if one of the value's phrases is in it: the longest match at word
boundaries, in the tokens of trainer.metrics.explanations. "murky green" does not name what "green" names.

- precision: share of the texts naming the kind that name true values only;
- recall: share of the images with a true value that has phrases whose text names it;
- hallucinations: how often each false value was named for each true one.

The same figures for people's references are a ceiling, as people do not name everything either.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from common.errors import UserError
from data.readers.facts import Facts
from trainer.metrics.bootstrap import Statistic, mean, score
from trainer.metrics.explanations import tokens

PRECISION, RECALL = FIGURES = ("precision", "recall")

Judged = dict[str, float | None]  # "subject.precision", …: 1 right, 0 wrong, None if it does not count


class Grounding:
    """Compares texts with the facts of their images."""

    def __init__(self, facts: Facts) -> None:
        self.facts = facts
        self._owners = {
            kind: {words: value for value in values for text in values[value] if (words := " ".join(tokens(text)))}
            for kind, values in facts.phrases.items()
        }
        self._patterns = {kind: _pattern(owners) for kind, owners in self._owners.items()}

    def named(self, text: str) -> dict[str, set[str]]:
        """Return the values that the text names, by kind."""
        words = " ".join(tokens(text))
        return {
            kind: {self._owners[kind][phrase] for phrase in pattern.findall(words)}
            for kind, pattern in self._patterns.items()
        }

    def judge(self, image: str, text: str) -> Judged:
        """Return precision and recall of each kind for one text."""
        found: Judged = {}
        for kind, named in self.named(text).items():
            true = {*self.facts.images.get(image, {}).get(kind, ())}
            nameable = any(self.facts.phrases[kind].get(value) for value in true)
            found[f"{kind}.{PRECISION}"] = float(named <= true) if named and true else None
            found[f"{kind}.{RECALL}"] = float(bool(named & true)) if nameable else None
        return found

    def statistics(self, texts: Mapping[str, str], images: Sequence[str]) -> dict[str, Statistic]:
        """Return the means over `images` ("subject.precision", …); an image without a text does not count."""
        judged = [self.judge(image, texts[image]) if image in texts else {} for image in images]
        keys = [f"{kind}.{figure}" for kind in self.facts.phrases for figure in FIGURES]
        return {key: mean([row.get(key) for row in judged]) for key in keys}


def grounding_scores(
    texts: Mapping[str, str], references: Mapping[str, Sequence[str]], grounding: Grounding
) -> tuple[dict[str, Any], dict[str, dict[str, Any]], dict[str, Statistic]]:
    """Return the section "grounding" of metrics.json, the values of each image, and the statistics.

    Args:
        texts: image id → explanation; references: image id → human texts.

    Returns:
        kinds: by kind precision and recall (None if nothing counts), named and count (the numbers of images behind
        them), people (precision and recall of the references); hallucinations: by kind, most frequent first, the value
        named, the true value, the count, and the number of images with that true value; file; images: those with facts.
        By image id: named, values by kind.

    Raises:
        UserError: no image has facts.
    """
    facts, images = grounding.facts, [image for image in texts if image in grounding.facts.images]
    if not images:
        raise UserError(f"{facts.path} has none of the images, such as {next(iter(texts))!r}")
    statistics = grounding.statistics(texts, [*texts])
    people = [grounding.judge(image, text) for image in images for text in references.get(image, ())]
    judged = [grounding.judge(image, texts[image]) for image in images]
    kinds: dict[str, Any] = {}
    for kind in facts.phrases:
        keys = {figure: f"{kind}.{figure}" for figure in FIGURES}
        counts = [sum(row[key] is not None for row in judged) for key in keys.values()]
        kinds[kind] = {figure: score(statistics[key], len(texts)) for figure, key in keys.items()}
        kinds[kind] |= dict(zip(("named", "count"), counts, strict=True))
        kinds[kind]["people"] = {figure: _mean(row[key] for row in people) for figure, key in keys.items()}
    named = {image: grounding.named(texts[image]) for image in images}
    lacking = len(texts) - len(images)
    section = {
        "kinds": kinds,
        "hallucinations": {kind: _hallucinations(named, kind, facts) for kind in kinds},
        "file": facts.path.name,
        "images": len(images),
        "notes": [f"{lacking} of {len(texts)} images are not in {facts.path}"] if lacking else [],
    }
    each = {image: {"named": {kind: sorted(values) for kind, values in found.items() if values}}
            for image, found in named.items()}  # fmt: skip
    return section, each, {f"kinds.{key}": statistic for key, statistic in statistics.items()}


def _pattern(phrases: Iterable[str]) -> re.Pattern[str]:
    longest_first = "|".join(map(re.escape, sorted(phrases, key=len, reverse=True))) or "(?!)"
    return re.compile(rf"(?<!\S)(?:{longest_first})(?!\S)")


def _hallucinations(named: Mapping[str, Mapping[str, set[str]]], kind: str, facts: Facts) -> list[dict[str, Any]]:
    true = {image: facts.images[image][kind] for image in named if facts.images[image].get(kind)}
    totals = Counter(true.values())
    false = Counter((value, values) for image, values in true.items() for value in named[image][kind] - {*values})
    order = sorted(false.items(), key=lambda item: (-item[1], item[0]))
    return [
        {"named": value, "true": ", ".join(values), "count": count, "of": totals[values]}
        for (value, values), count in order
    ]


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
