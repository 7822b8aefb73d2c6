"""What somebody said of a picture, without the class that they gave it.

`I feel sad because the man is alone` becomes `The man is alone`: taken away is the smallest part that names the class
and can go without leaving a torn sentence. In this order: an adverb (sadly), one of two words that stand side by side
(`pale and sad`), an adjective before its noun (`a sad boy`), and else the whole clause. Of a clause that goes, those
that hang on it go too (`it has a sadness | that is hard to bear`). What then says less than two words of substance is
dropped. No parser is asked: where a clause begins is told by the words that begin one, and no text is changed but next
to what goes.
"""

from __future__ import annotations

import re
from functools import cache

from data.prepare.instructions.clauses import (
    ABOUT,
    BOUNDARY,
    COMMON,
    CONDITION,
    CUT,
    DETERMINERS,
    FUNCTION,
    HANGING,
    HOLLOW,
    INTENSIFIER,
    JOINING,
    LEADING,
    OPENING,
    PREDICATE,
    PRONOUNS,
    RELATIVE,
    SENTENCE,
    STATE,
    SUBJECT,
    TRAILING,
    VERB,
)
from data.prepare.instructions.words import ClassWords, class_words, parts_of_speech


def without_class(text: str, label: str) -> str | None:
    """`text` without the words that name the class; None where too little would be left.

    Args:
        text: as `tidy` gives it.
    """
    words = class_words(label)
    if words.named_in(text) is None:
        return text
    edited = (_edited(sentence, words) for sentence in re.split(r"(?<=[.!?])\s+", text))
    left = " ".join(sentence for sentence in edited if sentence)
    return left if left and words.named_in(left) is None else None


def tidy(text: str) -> str:
    """Single spaces, and those that belong around punctuation; `painting 's`, as prepared texts have it, in one."""
    text = re.sub(rf"[\s{CUT}]+", " ", text).strip()
    text = re.sub(r" (?=['’]s\b)| (?=[,;:!?](?:\s|$))| (?=\.(?:\s|$))", "", text)
    text = re.sub(r"(?<=[^\W\d_]{2}[.!?])(?=[^\W\d_]{2})(?<![Ww]{3}\.)(?=[A-Z])", " ", text)  # "A scene.Not detailed"
    return re.sub(r"(?<=[^\W\d_][,;!?])(?=[^\W\d_])", " ", text)


# --- one sentence -----------------------------------------------------------------------------------------------------


def _edited(sentence: str, words: ClassWords) -> str | None:
    if words.named_in(sentence) is None:
        return sentence
    rules = _rules(words)
    text = rules.without_adverbs(sentence)
    text = rules.without_coordinated(text)
    text = rules.without_attributes(text)
    if words.named_in(text) is not None:
        text = rules.without_clauses(text)
    pieces = [piece for part in text.split(CUT) if (piece := _tight(part)) and _says_something(piece)]
    return _joined(pieces, sentence) if pieces else None


class _Rules:
    """The patterns for the words of one class."""

    def __init__(self, words: ClassWords) -> None:
        self.words = words
        compound = r"(?:[- ](?:looking|inspiring|inducing|struck|stricken|provoking|filled))?"
        form = rf"(?<![^\W_])(?P<form>(?:{words.either}){compound})(?![^\W_])(?!-)"
        adverbs = [form for form in words.forms if form.endswith("ly") and "ADJ" not in parts_of_speech(form)]
        following = r"(?= (?P<next>\w+)|\W|$)"
        self.adverb = _pattern(rf"(?:,? and | |^)(?:{'|'.join(adverbs) or '(?!)'})(?:,? |(?=[.,;!?]|$))")
        self.after = _pattern(rf"(?:(?P<x>\w+), )?(?P<a>[\w'’]+),? (?:and|or|but|yet) {INTENSIFIER}*{form}{following}")
        self.before = _pattern(rf"{form}(?P<and>,? and |,? or |,? but |,? yet |, )(?P<b>[\w'’]+){following}")
        self.attribute = _pattern(rf"(?P<before>(?:^|[\w'’]+,?) ?){INTENSIFIER}*{form} (?P<noun>[\w'’]+)")
        self.statement = _pattern(
            rf"(?:^{INTENSIFIER}*|\b(?:i|we|you|one)(?:['’]m)? (?:[^\W\d_]+ ){{0,6}}?){form} {ABOUT} (?!{VERB}\b)"
        )
        self.state = _pattern(rf"(?P<subject>[\w'’]+) {STATE} {INTENSIFIER}*{form}(?= (?:in|on|under|beside|\w+ing)\b)")

    def without_adverbs(self, text: str) -> str:
        return self.adverb.sub(" ", text).strip()

    def without_coordinated(self, text: str) -> str:
        """`pale and sad` → pale; `sad, lost and beaten` → lost and beaten; `death, loss and fear` → death and loss."""

        def after(match: re.Match) -> str:
            if not self._alike(match["form"], match["a"], match["next"]):
                return match[0]
            return match["a"] if match["x"] is None else f"{match['x']} and {match['a']}"

        def before(match: re.Match) -> str:
            comma_only = match["and"] == ", "
            if not self._alike(match["form"], match["b"], match["next"], after_comma=comma_only):
                return match[0]
            return match["b"]

        return self.before.sub(before, self.after.sub(after, text))

    def _alike(self, form: str, other: str, following: str | None, *, after_comma: bool = False) -> bool:
        """Whether two words may be coordinated, rather than one of them begin a clause of its own."""
        form, other, following = form.lower(), other.lower(), (following or "").lower()
        if other in FUNCTION or (not _is_adjective_only(form) and following in DETERMINERS | PRONOUNS - RELATIVE):
            return False
        parts = parts_of_speech(other)
        if _is_adjective(form) and (_is_adjective(other) or other == "alone"):
            return other == "alone" or "ADV" not in parts
        inflected = "VERB" in parts and other.endswith(("s", "ed", "ing"))
        return "NOUN" in parts and not inflected and not after_comma and not _is_adjective_only(form)

    def without_attributes(self, text: str) -> str:
        """`a sad old man` → an old man."""

        def shortened(match: re.Match) -> str:
            before, noun = match["before"].strip(" ,").lower(), match["noun"].lower()
            if before and not _may_precede_an_adjective(before):
                return match[0]
            parts = parts_of_speech(noun)
            hollow = HOLLOW if text.startswith(" of ", match.end()) else HOLLOW | COMMON  # a sad picture of a boy
            is_head = noun not in FUNCTION | hollow and not noun.endswith(("ing", "ed")) and parts & {"NOUN", "ADJ"}
            if not is_head or not _is_adjective(match["form"].lower()) or (not before and "ADJ" not in parts):
                return match[0]
            return _with_article(match["before"], match["noun"])

        return self.attribute.sub(shortened, text)

    def without_clauses(self, text: str) -> str:
        """The clauses that stay, with CUT between those that did not stand side by side."""
        text = self.state.sub(self._without_state, self.statement.sub(CUT, text))
        starts = [0, *sorted({match.start() for match in BOUNDARY.finditer(text)} - {0})]
        clauses = [text[start:end] for start, end in zip(starts, [*starts[1:], len(text)], strict=True)]
        kept: list[str] = []
        for clause in clauses:
            if self.words.named_in(clause) is None:
                kept.append(clause)
                continue
            if len(kept) > 1 and PREDICATE.match(clause) and SUBJECT.match(kept[-1]):
                kept.pop()  # `, and the whole picture | looks sad`
            kept.append(CUT)
        pieces = re.split(rf"{CUT}+", "".join(kept))
        begun = [_begun(piece, after_cut=place > 0) for place, piece in enumerate(pieces)]
        return CUT.join([*(TRAILING.sub("", piece) for piece in begun[:-1]), begun[-1]])

    def _without_state(self, match: re.Match) -> str:
        return match[0] if match["subject"].lower() in FUNCTION else match["subject"]


@cache
def _rules(words: ClassWords) -> _Rules:
    return _Rules(words)


def _pattern(text: str) -> re.Pattern:
    return re.compile(text, re.IGNORECASE)


def _may_precede_an_adjective(word: str) -> bool:
    owner = re.split("['’]s$", word)  # a woman's, but not it's
    return word in DETERMINERS | JOINING or (len(owner) > 1 and owner[0] not in FUNCTION) or _is_adjective_only(word)


def _is_adjective(word: str) -> bool:
    return "ADJ" in parts_of_speech(word) or word.endswith(("ed", "ing")) or bool(re.search(r"[- ]", word))


def _is_adjective_only(word: str) -> bool:
    return _is_adjective(word) and "NOUN" not in parts_of_speech(word)


def _with_article(before: str, noun: str) -> str:
    """`a ` or `an ` as the next word, whose adjective is gone, wants it."""
    if before.strip().lower() not in ("a", "an"):
        return before + noun
    article = "an" if noun[0].lower() in "aeiou" and not noun.lower().startswith(("eu", "uni", "one")) else "a"
    return f"{article.capitalize() if before[0].isupper() else article} {noun}"


# --- what is left of it -----------------------------------------------------------------------------------------------


def _begun(piece: str, *, after_cut: bool) -> str:
    """A piece without what tied it to the clause that is gone."""
    while True:
        piece = piece.lstrip(" ,;:)–—-.")
        following = BOUNDARY.search(piece, 1)
        rest = piece[following.start() :] if following else ""
        if CONDITION.match(piece):
            return ""
        if after_cut and HANGING.match(piece):
            piece = rest
        elif match := (LEADING if after_cut else OPENING).match(piece):
            piece = piece[match.end() :]
        elif OPENING.match(rest.lstrip(" ,;")) and not _substance(piece[: following.start()]):
            piece = rest  # `this picture | because it is so calm`
        else:
            return piece


def _tight(piece: str) -> str:
    """Without torn ends and doubled spaces."""
    piece = re.sub(r"\s+", " ", piece).strip(" ,;:–—-")
    end = re.search(r"[.!?…)\"”']*$", piece)[0]
    return re.sub(r" (?=[,;.!?])", "", piece[: len(piece) - len(end)].rstrip(" ,;:–—-") + end)


def _substance(text: str) -> set[str]:
    return set(_words(text)) - FUNCTION - COMMON


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W\d_][\w'’-]*", text.lower())


def _says_something(piece: str) -> bool:
    """A sentence (`it looks unfinished`) does with less than what is only a part of one (`her lost gaze`)."""
    sentence = SENTENCE.match(piece) is not None
    return len(_words(piece)) >= 3 and len(_substance(piece)) >= (1 if sentence else 2)


def _joined(pieces: list[str], sentence: str) -> str:
    """Sentences where the original was one; texts in lower case without punctuation stay so."""
    plain = sentence == sentence.lower() and not re.search(r"[.,;!?]", sentence)
    if plain:
        return ", ".join(pieces)
    end = re.search(r"[.!?]*$", sentence)[0]
    ended = [piece if piece[-1] in ".!?" else piece + "." for piece in pieces[:-1]]
    last = pieces[-1] if pieces[-1][-1] in ".!?" else pieces[-1] + end
    return " ".join(_capital(piece) if sentence[0].isupper() else piece for piece in (*ended, last))


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]
