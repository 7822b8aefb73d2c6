"""Normalize answers as the evaluation of VQA does (Antol et al., 2015; Goyal et al., 2017), and score them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable
from functools import lru_cache

# Each is replaced by a space or, if it is next to a space anywhere in the text, removed.
PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
THOUSANDS = re.compile(r"\d,\d")  # with it, all punctuation is removed: 1,000 is 1000
PERIOD = re.compile(r"\.(?!\d)")
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
DIGITS = {"none": "0"} | {word: str(number) for number, word in enumerate(NUMBERS)}
ARTICLES = ("a", "an", "the")
FULL = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've he's
how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've o'clock
oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd
someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've there're there's
they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's what've when's
where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't wouldn't've
y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""
# Contractions by what is left of them without one of their apostrophes.
CONTRACTIONS = {
    full[:i] + full[i + 1 :]: full for full in FULL.split() for i, letter in enumerate(full) if letter == "'"
}
SCORES = (0.0, 0.3, 0.6, 0.9)  # by the number of annotators who gave an answer; 1 from four on


@lru_cache(maxsize=1 << 16)
def normalize_answer(text: str) -> str:
    """Return an answer without case, punctuation and articles, with digits for number words and with apostrophes.

    The quirks of the original are kept, since vocabularies of published checkpoints depend on them: "a/c" is "c" (an
    article after the split), "none" is "0", "ten" is "10", and "eleven" stays.
    """
    removed = THOUSANDS.search(text) is not None
    plain = text
    for mark in PUNCTUATION:
        beside_space = f"{mark} " in text or f" {mark}" in text
        plain = plain.replace(mark, "" if removed or beside_space else " ")
    words = (DIGITS.get(word, word) for word in PERIOD.sub("", plain).lower().split())
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


def soft_scores(answers: Iterable[str], vocabulary: Collection[str]) -> dict[str, float]:
    """Return the score of each answer in `vocabulary`: 0.3, 0.6, 0.9 and 1 for one, two, three and more annotators.

    Args:
        answers: normalized, one per annotator.
    """
    counts = Counter(answer for answer in answers if answer in vocabulary)
    return {answer: SCORES[count] if count < len(SCORES) else 1.0 for answer, count in counts.items()}
