"""Lexicon lookup by surface form and lemma, and the normalization of words."""

from __future__ import annotations

import random
import sys
import unicodedata
from multiprocessing.reduction import ForkingPickler

import pytest

from data.vad.lexicon import Lexicon, _dictionary, lemmas_of, normalize_word


@pytest.fixture(scope="module")
def small() -> Lexicon:
    words = ("yellow", "paint", "see", "saw", "good", "leaf", "leave", "feel", "don't", "naïve", "sky")
    return Lexicon({word: (i / 16, 0.0, 0.0) for i, word in enumerate(words)} | {"meh": (0.0, 0.0, 0.0)})


@pytest.mark.parametrize(
    ("word", "entry"),
    [
        ("yellow", "yellow"),
        ("Yellows", "yellow"),
        ("PAINTED", "paint"),
        ("skies", "sky"),
        ("better", "good"),
        ("felt", "feel"),
        ("saw", "saw"),  # the surface form comes before the lemma of the verb
        ("leaves", "leaf"),  # the noun comes before the verb
        ("leaving", "leave"),
        ("don’t", "don't"),
        ("nai\u0308ve", "naïve"),
        ("NAÏVE", "naïve"),
    ],
)
def test_lookup_uses_surface_form_then_lemma(small: Lexicon, word: str, entry: str) -> None:
    assert small.lookup(word) == small.table[normalize_word(entry)]


def test_unknown_differs_from_neutral(small: Lexicon) -> None:
    assert small.lookup("meh") == (0.0, 0.0, 0.0)
    for word in ("pastel", "", " ", "yell", "paintish", "7"):
        assert small.lookup(word) is None


def test_lexicon_can_be_pickled(small: Lexicon) -> None:
    small.lookup("yellows")
    copy = ForkingPickler.loads(ForkingPickler.dumps(small))
    assert copy.table == small.table
    assert copy.lookup("yellows") == small.lookup("yellows")


def test_dictionary_equals_lemminflect() -> None:
    from lemminflect import getAllLemmas

    words = random.Random(0).sample(sorted(_dictionary()), 500)
    for word in [*words, "leaves", "wolves", "none", "better", "saw", "purées"]:
        found = getAllLemmas(unicodedata.normalize("NFC", word))
        ours = lemmas_of(normalize_word(word))
        theirs = [normalize_word(lemma) for part in ("NOUN", "VERB", "ADJ", "ADV") for lemma in found.get(part, ())]
        assert sorted(ours) == sorted(theirs)
        assert list(ours) == theirs or word.endswith("ves")
    assert lemmas_of("leaves") == ("leaf", "leave", "leave") and "paris" not in _dictionary()


def test_words_are_normalized_character_by_character() -> None:
    """Normalization of a character does not depend on its neighbors, so a prefix can be looked up during generation."""
    every = [chr(code) for code in range(sys.maxunicode + 1)]
    letters = [c for c in every if c.isalpha() or unicodedata.category(c)[0] == "M"]
    rng = random.Random(0)
    for _ in range(1000):
        word = "".join(rng.choices(letters, k=rng.randint(1, 6)))
        assert normalize_word(word) == "".join(normalize_word(char) for char in word)
        assert normalize_word(normalize_word(word)) == normalize_word(word)
    for word in ("NAÏVE", "ΟΔΌΣ", "Straße", "İstanbul", "ﬁeld", "Ångström", "don’t", "well‑being", "각"):
        spellings = {unicodedata.normalize(form, word) for form in ("NFC", "NFD")}
        spellings |= {spelling.lower() for spelling in spellings if word != "İstanbul"} | spellings
        assert len({normalize_word(spelling) for spelling in spellings}) == 1, word
