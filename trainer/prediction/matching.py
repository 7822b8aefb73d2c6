"""Which pictures and sentences mode=test compares to see whether explanations depend on the picture."""

from __future__ import annotations

import random
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from data.readers.facts import Facts

OF = 16  # pictures that an explanation is compared with, its own included
TIE = 1e-4  # a difference of log-probabilities that may be rounding
SUBJECT = "subject"  # kind of fact

Row = Mapping[str, Any]
Pair = tuple[str, str, str | None]  # true sentence, false sentence, emotion


def blocks_of(rows: Sequence[Row], *, count: int, seed: int) -> tuple[list[list[str]], set[str]]:
    """Return up to `count` random image ids, and random blocks of OF ids of the same predicted emotion that hold them.

    A block has fewer ids only if the emotion has; an emotion of one image has no block. Nor are languages mixed, as an
    image with texts in several would be compared with itself.
    """
    order = random.Random(f"{seed}/match").sample([row["id"] for row in rows], len(rows))
    chosen, kinds = set(order[:count]), {row["id"]: (row["emotion"], row.get("language")) for row in rows}
    groups: dict[tuple[str | None, str | None], list[str]] = defaultdict(list)
    for id in order:
        groups[kinds[id]].append(id)  # the chosen ones first
    blocks = []
    for group in groups.values():
        for start in range(0, len(chosen.intersection(group)) if len(group) > 1 else 0, OF):
            end = min(start + OF, len(group))
            blocks.append(group[max(end - OF, 0) : end])  # the last one overlaps with the one before
    return blocks, chosen


def rank_of(own: int, scores: Tensor) -> float:
    """Return the rank from 1 of scores[own] in `scores` (N,), highest first; a tie counts half."""
    above = scores - scores[own]
    ties = int((above.abs() <= TIE).sum()) - 1
    return 1 + int((above > TIE).sum()) + ties / 2


def swapped_sentences(rows: Sequence[Row], facts: Facts, *, seed: int) -> dict[str, Pair]:
    """Return, by image id, an annotator's sentence that names the true subject once, and the same with another subject.

    Of several the first of the predicted emotion, else the first. Annotators' sentences, since those of the network
    would be selected by what it writes. The false phrase is random among those that agree in number and article.
    """
    owners = {phrase.lower(): value for value, found in facts.phrases.get(SUBJECT, {}).items() for phrase in found}
    if not owners:
        return {}
    longest_first = "|".join(map(re.escape, sorted(owners, key=len, reverse=True)))
    names = re.compile(rf"(?<!\w)(?:{longest_first})(?!\w)", re.IGNORECASE)
    pairs = {}
    for row in rows:
        true = facts.images.get(row["id"], {}).get(SUBJECT, ())
        texts = row.get("references") or ()
        emotions = row.get("reference_emotions") or [None] * len(texts)
        for text, emotion in sorted(zip(texts, emotions, strict=True), key=lambda pair: pair[1] != row["emotion"]):
            named = list(names.finditer(text))
            if len(named) != 1 or owners[named[0][0].lower()] not in true:
                continue
            others = [phrase for phrase, value in owners.items() if value not in true]
            article = re.search(r"\ban?\s+$", text[: named[0].start()], re.IGNORECASE) is not None
            alike = [phrase for phrase in others if _grammar(phrase, article) == _grammar(named[0][0], article)]
            if others:
                false = random.Random(f"{seed}/swap/{row['id']}").choice(alike or others)
                changed = text[: named[0].start()] + false + text[named[0].end() :]
                pairs[row["id"]] = (text, changed, emotion)
                break
    return pairs


def _grammar(phrase: str, article: bool) -> tuple[bool, bool]:
    """Return whether the first noun ends in s, and, after "a" or "an", whether the phrase starts with a vowel."""
    noun = re.split(r"\s(?:of|in)\s", phrase.lower())[0]
    return noun.endswith("s"), article and noun[0] in "aeiou"
