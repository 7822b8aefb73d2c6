"""A table of words with their valence, arousal and dominance, and how a word is looked up in it."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from functools import cache, lru_cache

Vad = tuple[float, float, float]  # valence, arousal, dominance

LEMMA_ORDER = ("NOUN", "VERB", "ADJ", "ADV")
APOSTROPHES = str.maketrans({"’": "'", "‐": "-", "‑": "-"})
CACHED_WORDS = 1 << 16


def normalise(word: str) -> str:
    """The form in which words are stored and looked up: without case, decomposed, plain apostrophe and hyphen.

    Every character is folded by itself (casefold of its canonical decomposition), whatever stands beside it, so a word
    can be folded while it is still being written. NFC and NFD spellings come out alike.
    """
    word = word.strip()
    return word.lower() if word.isascii() else "".join(_fold(char) for char in word.translate(APOSTROPHES))


def _fold(char: str) -> str:
    return unicodedata.normalize("NFD", unicodedata.normalize("NFD", char).casefold())


class Lexicon:
    """A table of words with their valence, arousal and dominance in −1..1.

    `table` maps every term, multi-word terms included, to its values; `layout` and `scale` say what the file was, and
    `notes` what else its user should know, a sentence each.
    """

    def __init__(
        self, table: Mapping[str, Vad], *, layout: str = "table", scale: str = "-1..1", notes: tuple[str, ...] = ()
    ) -> None:
        self.table: dict[str, Vad] = {normalise(term): tuple(values) for term, values in table.items()}
        self.layout, self.scale, self.notes = layout, scale, notes
        self.lookup = lru_cache(maxsize=CACHED_WORDS)(self._find)

    def __len__(self) -> int:
        return len(self.table)

    def __contains__(self, word: str) -> bool:
        """Whether `word` is a term as it stands, in any case; `lookup` knows its inflected forms as well."""
        return normalise(word) in self.table

    def __reduce__(self) -> tuple:
        # Loader processes are sent a copy; the cache cannot travel and need not.
        return _rebuild, (self.table, self.layout, self.scale, self.notes)

    def _find(self, word: str) -> Vad | None:
        """Values of `word` (any case) by its surface form, else by the first of its lemmas that is in the table.

        Lemmas are the dictionary's (lemminflect), as noun, verb, adjective, adverb, in this order; words that the
        dictionary does not know are not guessed at. None: not in the lexicon, which differs from (0, 0, 0).
        """
        key = normalise(word)
        values = self.table.get(key)
        return values if values is not None or not key else self._by_lemma(key)

    def _by_lemma(self, key: str) -> Vad | None:
        return next((self.table[lemma] for lemma in _dictionary().get(key, ()) if lemma in self.table), None)


def _rebuild(table: dict[str, Vad], layout: str, scale: str, notes: tuple[str, ...]) -> Lexicon:
    return Lexicon(table, layout=layout, scale=scale, notes=notes)


@cache
def _dictionary() -> dict[str, tuple[str, ...]]:
    """Word → its lemmas, in LEMMA_ORDER: all that lemminflect's own dictionary has, proper names apart."""
    from lemminflect import config  # half a second, only when a surface form has missed
    from lemminflect.codecs.LemmaLUCodec import LemmaLUCodec
    from lemminflect.codecs.OverridesCodec import OverridesCodec

    entries = LemmaLUCodec.load(config.lemma_lu_fn)
    for word, overrides in OverridesCodec.load(config.lemma_overrides_fn).items():
        entries[word] = entries.get(word, {}) | overrides
    return {normalise(word): _in_order(word, found) for word, found in entries.items() if word == word.lower()}


def _in_order(word: str, found: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
    lemmas = {part: [normalise(lemma) for lemma in found.get(part, ())] for part in LEMMA_ORDER}
    if word.endswith("ves"):  # the dictionary gives the noun "leaves" as leave, leaf
        lemmas["NOUN"].sort(key=lambda lemma: not lemma.endswith(("f", "fe")))
    return tuple(lemma for part in LEMMA_ORDER for lemma in lemmas[part])
