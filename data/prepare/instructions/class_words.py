"""The words that name a class: its label, the words derived from it, and their inflections.

Synonyms (`scared` for fear, `gloomy` for sadness) are not among them: descriptions need them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache

# Words derived from the labels of common data sets. They are listed because rules that find them (angry, sadden) also
# find wrong ones (passion from pass). lemminflect inflects them.
FAMILIES = {
    "amusement": ("amuse", "amusement", "amusedly", "amusingly"),
    "awe": ("awe", "awing", "awesome", "awesomely", "awesomeness", "awestruck", "awestricken"),
    "contentment": ("content", "contentment", "contently", "contentedly", "contentedness"),
    "excitement": ("excite", "excitement", "excitable", "excitedly", "excitedness", "excitingly"),
    "anger": ("anger", "angry", "angrily", "angriness"),
    "disgust": ("disgust", "disgustedly", "disgustful", "disgustingly"),
    "fear": ("fear", "fearful", "fearfully", "fearfulness", "fearless", "fearlessly", "fearsome", "fearsomely"),
    "sadness": ("sad", "sadness", "sadly", "sadden"),
    "joy": ("joy", "joyful", "joyfully", "joyfulness", "joyless", "joyous", "joyously", "joyousness"),
    "surprise": ("surprise", "surprisedly", "surprisingly"),
    "happiness": ("happy", "happiness", "happily"),
    "love": ("love", "lovable", "loveless", "lovely", "lovingly"),
    "trust": ("trust", "trustful", "trusting", "trustingly", "trusty"),
    "anticipation": ("anticipate", "anticipation", "anticipatory"),
    "boredom": ("bore", "boredom", "boringly"),
    "nostalgia": ("nostalgia", "nostalgic", "nostalgically"),
    "pride": ("pride", "proud", "proudly"),
    "positive": ("positive", "positively", "positiveness", "positivity"),
    "negative": ("negative", "negatively", "negativeness", "negativity"),
}
ENDINGS = ("", "d", "ed", "er", "ful", "fully", "ing", "ingly", "less", "lessly", "ly", "ness", "s", "some", "y")
NOUN_ENDINGS = {"ness": "", "ment": "", "ful": "", "ation": "ate", "ity": "e"}  # and the ending of the base


class ClassWords:
    """The words that name one class.

    Args:
        label: as in the data, such as "sadness", "something else", "Fear".
    """

    def __init__(self, label: str) -> None:
        self.forms = tuple(sorted(_forms(" ".join(re.split(r"[\s_-]+", label.strip().lower())))))
        longest_first = sorted(self.forms, key=lambda form: (-len(form), form))
        self.either = "|".join(re.escape(form).replace(r"\ ", r"[\s_-]+") for form in longest_first)
        self._pattern = re.compile(rf"(?<![^\W\d_])(?:{self.either})(?![^\W\d_])", re.IGNORECASE)

    def named_in(self, text: str) -> str | None:
        """Return the first of these words in `text`, as written there; parts of hyphenated words count."""
        match = self._pattern.search(text)
        return match[0] if match else None


class_words = cache(ClassWords)


@cache
def parts_of_speech(word: str) -> frozenset[str]:
    """Return those of NOUN, VERB, ADJ and ADV that lemminflect's dictionary lists for the word."""
    from lemminflect import getAllLemmas

    return frozenset(getAllLemmas(word.lower()))


def _forms(label: str) -> set[str]:
    for words in FAMILIES.values():
        family = {form for word in words for form in _inflections(word)}
        if label in family:  # a class may be called angry, or amused
            return family
    if " " in label:
        return {label}
    return {form for word in {label, *_bases(label)} for form in (*_inflections(word), *_derived(word))}


def _inflections(word: str) -> Iterator[str]:
    from lemminflect import getAllInflections

    yield word
    for spellings in getAllInflections(word).values():
        yield from spellings


def _bases(label: str) -> Iterator[str]:
    """Yield the words that a noun is derived from: disappointment → disappoint, serenity → serene."""
    for ending, instead in NOUN_ENDINGS.items():
        if label.endswith(ending):
            base = label.removesuffix(ending) + instead
            yield from filter(parts_of_speech, {base, f"{base[:-1]}y" if base.endswith("i") else base})


def _derived(word: str) -> Iterator[str]:
    """Yield the words that are derived from a word by an ending: hopeful, hopefully, hopeless, hoping."""
    for ending in ENDINGS:
        stem = word.removesuffix("e") if ending[:1] in set("eiy") else word
        stem = f"{word[:-1]}i" if word.endswith("y") and ending[:1] in set("efln") else stem
        if parts_of_speech(stem + ending):
            yield stem + ending
