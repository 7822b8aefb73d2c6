"""Probabilities of the labels from the tokens of an answer that begins with a label."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from common.endpoint import Token
from data.emotions import normalize_label


def label_of(answer: str, labels: Sequence[str]) -> str | None:
    """Return the label that an answer consists of, else the only one that it contains as a word."""
    text = _plain(answer)
    if text in labels:
        return text
    found = [label for label in labels if re.search(rf"(?<!\w){re.escape(label)}(?!\w)", text)]
    return found[0] if len(found) == 1 else None


def label_shares(tokens: Sequence[Token], labels: Sequence[str]) -> list[float] | None:
    """Return the probability of each label; None if the answer does not begin with one.

    The first token of a label is the longest alternative that the label begins with, in any case and without
    punctuation around it. Its probability goes to the label, or in equal parts to the labels that share it. If the
    answer itself has a shared token, the alternatives of its next token divide it. Labels without a token get what
    remains in equal parts, each at most the probability of the least likely alternative. The sum is scaled to 1.
    """
    shares, most = dict.fromkeys(labels, 0.0), dict.fromkeys(labels, 0.0)
    if not _plain("".join(token.text for token in tokens)).startswith(tuple(labels)):
        return None
    open_labels, begun, reached = list(labels), "", 1.0
    for token in tokens:
        masses: Counter = Counter()
        for text, probability in token.alternatives.items():
            masses[_plain(begun + text)] += reached * probability
        first = {name: max(filter(name.startswith, masses), key=len, default=None) for name in open_labels}
        sharing = Counter(first.values())
        shares |= {name: 0.0 if text is None else masses[text] / sharing[text] for name, text in first.items()}
        most |= dict.fromkeys(open_labels, reached * min(token.alternatives.values()))
        begun += token.text
        open_labels, reached = [name for name in labels if first.get(name) == _plain(begun)], masses[_plain(begun)]
        if len(open_labels) < 2:
            break
    missing = [name for name in labels if not shares[name]]
    rest = max(1 - sum(shares.values()), 0.0)
    shares |= {name: min(rest / len(missing), most[name]) for name in missing}
    total = sum(shares.values())
    return [share / total for share in shares.values()] if total else None


def _plain(text: str) -> str:
    return re.sub(r"^\W+|\W+$", "", normalize_label(text))
