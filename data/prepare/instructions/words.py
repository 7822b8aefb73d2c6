"""The words that name a class: its label, the words made from it, and their inflections.

A text that must not give its class away may hold none of them. Synonyms are not among them: `scared` for fear, `gloomy`
for sadness are what a description is made of.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache

# What English makes from the labels of the usual data sets. No rule gives these without giving wrong ones too (angry,
# sadden; but passion is not made from pass), so they are written out; lemminflect inflects them.
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
NOUN_ENDINGS = {"ness": "", "ment": "", "ful": "", "ation": "ate", "ity": "e"}  # and what stood in their place


class ClassWords:
    """The words that name one class.

    Args:
        label: as the data has it, such as "sadness", "something else", "Fear".
    """

    def __init__(self, label: str) -> None:
        self.label = label
        self.forms = tuple(sorted(_forms(" ".join(re.split(r"[\s_-]+", label.strip().lower())))))
        longest_first = sorted(self.forms, key=lambda form: (-len(form), form))
        self.either = "|".join(re.escape(form).replace(r"\ ", r"[\s_-]+") for form in longest_first)
        self._pattern = re.compile(rf"(?<![^\W\d_])(?:{self.either})(?![^\W\d_])", re.IGNORECASE)

    def named_in(self, text: str) -> str | None:
        """The first of these words in `text`, as it stands there; parts of hyphenated words count."""
        match = self._pattern.search(text)
        return match[0] if match else None


@cache
def class_words(label: str) -> ClassWords:
    return ClassWords(label)


@cache
def parts_of_speech(word: str) -> frozenset[str]:
    """NOUN, VERB, ADJ, ADV: what lemminflect's dictionary has the word as; nothing for words of other kinds."""
    from lemminflect import getAllLemmas

    return frozenset(getAllLemmas(word.lower()))


def _forms(label: str) -> set[str]:
    for words in FAMILIES.values():
        family = {form for word in words for form in _inflections(word)}
        if label in family:  # a folder may be called angry, or amused
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
    """What a noun is made from: disappointment → disappoint, serenity → serene, loneliness → lonely."""
    for ending, instead in NOUN_ENDINGS.items():
        if label.endswith(ending):
            base = label.removesuffix(ending) + instead
            yield from filter(_is, {base, f"{base[:-1]}y" if base.endswith("i") else base})


def _derived(word: str) -> Iterator[str]:
    """What is made from a word by an ending: hopeful, hopefully, hopeless, hoping."""
    for ending in ENDINGS:
        stem = word.removesuffix("e") if ending[:1] in set("eiy") else word
        stem = f"{word[:-1]}i" if word.endswith("y") and ending[:1] in set("efln") else stem
        if _is(stem + ending):
            yield stem + ending


def _is(word: str) -> bool:
    return bool(parts_of_speech(word))
