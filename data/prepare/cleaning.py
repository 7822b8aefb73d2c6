"""Clean ArtEmis utterances in English: lower case, no punctuation, contractions expanded.

The steps are those of the ArtEmis preprocessing (Achlioptas et al., 2021) with maintained libraries: contractions are
expanded by rule, NLTK splits words, SymSpell corrects them if wanted. The differences:

- Spelling is corrected on request only, since about one correction in eight is another word (`speach` becomes peach).
  There is no table of hand-made corrections. Words of the painters' and paintings' names and words of several rows are
  correct too, so `giverny` stays, and corrections are words of the data.
- `'s` of a pronoun is `is` (`has` before got and been), and `'d` is `would` or `had`, unless the next word allows both,
  as in `it's sprouted` and `he'd put`: then they stay. Forms without their apostrophe (`dont`, `im`) are expanded too.
- Everything that is neither a letter nor a digit separates words and is removed, also NLTK's tokens `` and '' for
  quotation marks. The possessive remains a token of its own, `'s`.
"""

from __future__ import annotations

import re
import sys
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

from common.errors import UserError
from common.progress import progress
from common.reading import require_file

COMMON = 5  # rows; a word in at least as many is no misspelling
SHORTEST = 4  # letters; shorter words are within one edit of too many others to be corrected
LETTERS = re.compile(r"[^\W\d_]+")
ENGLISH = re.compile(r"[a-z]+")

APOSTROPHES = str.maketrans(dict.fromkeys("’‘ʼ´`′＇", "'"))
QUOTED_WORD = re.compile(r"(?<![\w'])'(\w+)'(?![\w'])")
SEPARATORS = re.compile(r"[^\w']|_")

CLITICS = {"m": "am", "re": "are", "ve": "have", "ll": "will"}
IRREGULAR = {
    "let's": "let us", "y'all": "you all", "'tis": "it is", "'twas": "it was", "'em": "them", "'cause": "because",
    "gonna": "going to", "wanna": "want to", "gotta": "got to", "gimme": "give me", "lemme": "let me",
    "alot": "a lot", "aswell": "as well", "atleast": "at least", "eachother": "each other", "infront": "in front",
    "noone": "no one", "todo": "to do",
    "im": "i am", "ive": "i have",
    **{f"{word}s": f"{word}'s" for word in ("he", "she", "that", "there", "here", "what")},
    **{f"{word}{clitic}": f"{word} {CLITICS[clitic]}" for word in ("you", "they") for clitic in ("re", "ve", "ll")},
}  # fmt: skip
STEMS = {"ca": "can", "wo": "will", "sha": "shall", "ai": "is"}  # before n't; no words by themselves
AUXILIARIES = "is|are|was|were|do|does|did|has|have|had|ca|wo|could|would|should|must|need"
ADVERBS = "also|already|always|almost|even|ever|finally|just|never|now|obviously|only|probably|really|recently|still"
NEXT = rf"(?=((?: (?:{ADVERBS}))*)(?: (\w+))?)"  # the word after adverbs
PRONOUNS = "it|he|she|that|there|here|what|who|where|when|why|how|everything|something|nothing"


def _not(match: re.Match) -> str:
    return f"{STEMS.get(match[1], match[1])} not"


def _is_or_has(match: re.Match) -> str:
    """`it's` is left alone before a participle: "it's lost" may be either."""
    word = match[3] or ""
    if word in ("been", "got"):
        return f"{match[1]} has"
    return match[0] if _forms(word)[1] else f"{match[1]} is"


def _would_or_had(match: re.Match) -> str:
    word = match[3] or ""
    base, participle = _forms(word)
    if word in ("better", "been") or (participle and not base):
        return f"{match[1]} had"
    return f"{match[1]} would" if word in ("rather", "not", "be") or (base and not participle) else match[0]


@cache
def _forms(word: str) -> tuple[bool, bool]:
    """Return whether an English word may be the base form, and whether it may be the past participle, of a verb."""
    from lemminflect import getAllLemmas, getInflection

    lemmas = getAllLemmas(word, upos="VERB").get("VERB", ()) if word else ()
    return word in lemmas, word.endswith("ed") or any(word in getInflection(lemma, "VBN") for lemma in lemmas)


# Applied in this order, to lower-case text with straight apostrophes.
CONTRACTIONS = (
    (re.compile(rf"(?<![\w'])(?:{'|'.join(IRREGULAR)})(?![\w'])"), lambda match: IRREGULAR[match[0]]),
    (re.compile(r"\b(\w+)'nt\b"), r"\1n't"),
    (re.compile(rf"\b({PRONOUNS})'s\b{NEXT}"), _is_or_has),
    (re.compile(r"\b(what|where|why|how)'d\b"), r"\1 did"),
    (re.compile(rf"\b(\w+)'d\b{NEXT}"), _would_or_had),
    (re.compile(r"(?<=\w)'(m|re|ve|ll)\b"), lambda match: f" {CLITICS[match[1]]}"),
    (re.compile(r"\b(\w+)n't\b"), _not),
    (re.compile(rf"\b({AUXILIARIES})nt\b"), _not),
)


class Cleaned(NamedTuple):
    texts: list[str]  # tokens joined by spaces
    corrections: Counter[tuple[str, str]]  # (as written, as corrected) → number


def normalise(text: str) -> str:
    """Return `text` in lower case, contractions expanded, with letters, digits, apostrophes and spaces only."""
    text = unicodedata.normalize("NFC", text).lower().translate(APOSTROPHES).replace("&", " and ")
    text = QUOTED_WORD.sub(r"\1", " ".join(text.split()))
    for pattern, expansion in CONTRACTIONS:
        text = pattern.sub(expansion, text)
    return SEPARATORS.sub(" ", text)


def plain(text: str) -> str:
    """Return a text of any language as it was written, in NFC and with single spaces."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def tokenize(text: str) -> list[str]:
    """Return NLTK's word tokens of `normalise(text)` that contain a letter or a digit."""
    from nltk.tokenize import NLTKWordTokenizer  # its patterns belong to the class

    return [token for token in NLTKWordTokenizer().tokenize(normalise(text)) if any(map(str.isalnum, token))]


@cache
def _english() -> frozenset[str]:
    """Return SymSpell's list of English words."""
    from importlib.resources import files

    text = (files("symspellpy") / "frequency_dictionary_en_82_765.txt").read_text(encoding="utf-8-sig")
    return frozenset(line.split()[0] for line in text.splitlines() if line)


class Speller:
    """Correct rare unknown words to the most frequent word within one edit.

    Known are the words of SymSpell's English list, the words and inflections of lemminflect's dictionary, `known`,
    adjectives in -y of these (`pillowy`), and every word that is common in the data. Corrections are known words that
    are common in the data; frequencies in English would make `relections` elections. Words with other characters than
    English letters, or with fewer than four, are never changed.

    Args:
        uses: number of rows with each word of the data.
        known: further correct words.
    """

    def __init__(self, uses: Counter[str], known: Collection[str] = ()) -> None:
        from lemminflect import getAllLemmas
        from symspellpy import SymSpell, Verbosity

        self._uses = uses
        self._known = known
        self._lemmas = getAllLemmas
        self._closest = Verbosity.CLOSEST
        self._symspell = SymSpell(max_dictionary_edit_distance=1)
        for word, count in uses.items():
            if count >= COMMON and self._is_word(word):
                self._symspell.create_dictionary_entry(word, count)

    def is_known(self, word: str) -> bool:
        common = self._uses[word] >= COMMON
        return common or self._is_word(word) or (word.endswith("y") and self._is_word(word[:-1]))

    def _is_word(self, word: str) -> bool:
        return word in self._known or word in _english() or bool(self._lemmas(word))

    def correct(self, word: str) -> str:
        if len(word) < SHORTEST or not ENGLISH.fullmatch(word) or self.is_known(word):
            return word
        near = sorted(found.term for found in self._symspell.lookup(word, self._closest, max_edit_distance=1))
        return max(near, key=self._uses.__getitem__, default=word)


def clean(
    utterances: Collection[str], *, names: Iterable[str] = (), vocabulary: Path | None = None, spelling: bool = True
) -> Cleaned:
    """Return the cleaned utterances in their order, with the corrections.

    Args:
        names: of painters, paintings and styles; their words are correct.
        vocabulary: UTF-8 file whose lines begin with a correct word, such as GloVe's.
        spelling: False: correct nothing.

    Raises:
        UserError: the vocabulary cannot be read.
    """
    texts, uses = _tokenized(utterances)
    if not spelling:
        return Cleaned(texts, Counter())
    known = {word for name in names for word in words_of(name)}
    if vocabulary is not None:
        known |= _first_column(vocabulary) & uses.keys()
    speller = Speller(uses, known)
    wrong = {word: right for word in uses if (right := speller.correct(word)) != word}
    corrections: Counter[tuple[str, str]] = Counter()
    for i, text in enumerate(texts):
        tokens = text.split()
        if not wrong.keys().isdisjoint(tokens):
            corrections.update((token, wrong[token]) for token in tokens if token in wrong)
            texts[i] = " ".join(wrong.get(token, token) for token in tokens)
    return Cleaned(texts, corrections)


def words_of(name: str) -> Iterator[str]:
    """`claude-monet_the-avenue` → claude, monet, the, avenue."""
    return (word.lower() for word in LETTERS.findall(name))


def _tokenized(utterances: Collection[str]) -> tuple[list[str], Counter[str]]:
    """Return the tokens of each utterance joined by spaces, and the number of utterances with each token."""
    texts: list[str] = []
    uses: Counter[str] = Counter()
    with progress(len(utterances), "cleaning", unit="row") as bar:
        for utterance in utterances:
            tokens = tokenize(utterance)
            texts.append(" ".join(tokens))
            uses.update(set(tokens))
            bar.update()
    return texts, uses


def _first_column(path: Path) -> set[str]:
    try:
        require_file(path, largest=sys.maxsize)
        with path.open(encoding="utf-8", errors="replace") as lines:
            return {fields[0].lower() for line in lines if (fields := line.split(maxsplit=1))}
    except OSError as error:
        raise UserError(f"the vocabulary {path} cannot be read ({error.strerror}); give a text file") from None
