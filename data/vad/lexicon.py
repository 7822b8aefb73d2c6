"""A table of words with their valence, arousal and dominance (VAD), and the lookup of a word in it."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from functools import cache, lru_cache, partial

Vad = tuple[float, float, float]  # valence, arousal, dominance

LEMMA_ORDER = ("NOUN", "VERB", "ADJ", "ADV")
APOSTROPHES = str.maketrans({"’": "'", "‐": "-", "‑": "-"})
CACHED_WORDS = 1 << 16


def normalize_word(word: str) -> str:
    """Return the form in which words are stored and looked up: case-folded, NFD, ASCII apostrophe and hyphen.

    Each character is folded independently of its neighbors, so that a prefix of a word can be looked up during
    generation. NFC and NFD spellings give the same result.
    """
    word = word.strip()
    if word.isascii():
        return word.lower()
    folded = (unicodedata.normalize("NFD", char).casefold() for char in word.translate(APOSTROPHES))
    return "".join(unicodedata.normalize("NFD", char) for char in folded)


class Lexicon:
    """Words with their valence, arousal and dominance in −1..1.

    Args:
        table: the values of every term, including terms of several words.
        layout: the layout of the file; scale: its scale; notes: further remarks for the user, a sentence each.
    """

    def __init__(
        self, table: Mapping[str, Vad], *, layout: str = "table", scale: str = "-1..1", notes: tuple[str, ...] = ()
    ) -> None:
        self.table: dict[str, Vad] = {normalize_word(term): tuple(values) for term, values in table.items()}
        self.layout, self.scale, self.notes = layout, scale, notes
        self.lookup = lru_cache(maxsize=CACHED_WORDS)(self._find)

    def __len__(self) -> int:
        return len(self.table)

    def __contains__(self, word: str) -> bool:
        """Return whether `word` itself is a term, in any case; `lookup` finds inflected forms too."""
        return normalize_word(word) in self.table

    def __reduce__(self) -> tuple:
        # Worker processes of a loader get a copy without the cache, which cannot be pickled.
        return partial(Lexicon, layout=self.layout, scale=self.scale, notes=self.notes), (self.table,)

    def _find(self, word: str) -> Vad | None:
        """Return the values of `word` (any case), or of the first of its lemmas that is in the table.

        Lemmas are those of lemminflect's dictionary as noun, verb, adjective, adverb, in this order; a word that is not
        in it has none. None means that the word is not in the lexicon, unlike (0, 0, 0).
        """
        key = normalize_word(word)
        if key in self.table or not key:
            return self.table.get(key)
        return next((self.table[lemma] for lemma in lemmas_of(key) if lemma in self.table), None)


def lemmas_of(word: str) -> tuple[str, ...]:
    """Return the lemmas of a normalized word in LEMMA_ORDER; none for a word that is not in the dictionary."""
    return _in_order(word, _dictionary().get(word, {}))


@cache
def _dictionary() -> dict[str, Mapping[str, tuple[str, ...]]]:
    """Return lemminflect's dictionary without proper names: the lemmas of each word by part of speech."""
    from lemminflect import config  # takes half a second, and is needed only for a word that is not a term
    from lemminflect.codecs.LemmaLUCodec import LemmaLUCodec
    from lemminflect.codecs.OverridesCodec import OverridesCodec

    entries = LemmaLUCodec.load(config.lemma_lu_fn)
    for word, overrides in OverridesCodec.load(config.lemma_overrides_fn).items():
        entries[word] = entries.get(word, {}) | overrides
    return {
        word if word.isascii() else normalize_word(word): found
        for word, found in entries.items()
        if word == word.lower()
    }


def _in_order(word: str, found: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
    lemmas = {part: [normalize_word(lemma) for lemma in found.get(part, ())] for part in LEMMA_ORDER}
    if word.endswith("ves"):  # the dictionary gives the noun "leaves" as leave, leaf
        lemmas["NOUN"].sort(key=lambda lemma: not lemma.endswith(("f", "fe")))
    return tuple(lemma for part in LEMMA_ORDER for lemma in lemmas[part])
