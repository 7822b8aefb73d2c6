"""Explanations without the emotion that their annotator chose.

`I feel sad because the man is alone` becomes `The man is alone`: what is removed is the smallest part that names the
class and leaves whole clauses. In this order: an adverb (sadly), one of two coordinated words (`pale and sad`), an
adjective before its noun (`a sad boy`), and otherwise the clause, with the clauses that depend on it (`it has a sadness
| that is hard to bear`). A remainder of fewer than two content words is dropped. There is no parser: clauses are found
by the words that begin them, and text is only changed next to what is removed.
"""

from __future__ import annotations

import re
from functools import cache, partial

from data.prepare.instructions import clauses
from data.prepare.instructions.class_words import ClassWords, class_words, parts_of_speech
from data.prepare.instructions.clauses import BOUNDARY, CUT, FUNCTION, INTENSIFIER


def without_class(text: str, label: str) -> str | None:
    """Return `text` without the words that name the class; None if too little is left.

    Args:
        text: as `tidy` returns it.
    """
    words = class_words(label)
    if words.named_in(text) is None:
        return text
    edited = (_edited(sentence, words) for sentence in re.split(r"(?<=[.!?])\s+", text))
    left = " ".join(sentence for sentence in edited if sentence)
    return left if left and words.named_in(left) is None else None


def tidy(text: str) -> str:
    """Return `text` with single spaces and standard spacing around punctuation; tokenized `painting 's` is joined."""
    text = re.sub(rf"[\s{CUT}]+", " ", text).strip()
    text = re.sub(r" (?=['’]s\b)| (?=[,;:!?](?:\s|$))| (?=\.(?:\s|$))", "", text)
    text = re.sub(r"(?<=[^\W\d_]{2}[.!?])(?=[^\W\d_]{2})(?<![Ww]{3}\.)(?=[A-Z])", " ", text)  # "A scene.Not detailed"
    return re.sub(r"(?<=[^\W\d_][,;!?])(?=[^\W\d_])", " ", text)


def _edited(sentence: str, words: ClassWords) -> str | None:
    if words.named_in(sentence) is None:
        return sentence
    rules = _rules(words)
    text = rules.adverb.sub(" ", sentence).strip()
    text = rules.second.sub(_without_second, text)
    text = rules.first.sub(_without_first, text)
    text = rules.attribute.sub(_without_attribute, text)
    if words.named_in(text) is not None:
        text = rules.without_clauses(text)
    pieces = [piece for part in text.split(CUT) if (piece := _trimmed(part)) and _is_informative(piece)]
    return _joined(pieces, sentence) if pieces else None


_pattern = partial(re.compile, flags=re.IGNORECASE)


class _Rules:
    """The patterns for the words of one class."""

    def __init__(self, words: ClassWords) -> None:
        self.words = words
        compound = r"(?:[- ](?:looking|inspiring|inducing|struck|stricken|provoking|filled))?"
        form = rf"(?<![^\W_])(?P<form>(?:{words.either}){compound})(?![^\W_])(?!-)"
        adverbs = [form for form in words.forms if form.endswith("ly") and "ADJ" not in parts_of_speech(form)]
        following = r"(?= (?P<next>\w+)|\W|$)"
        self.adverb = _pattern(rf"(?:,? and | |^)(?:{'|'.join(adverbs) or '(?!)'})(?:,? |(?=[.,;!?]|$))")
        self.second = _pattern(rf"(?:(?P<x>\w+), )?(?P<a>[\w'’]+),? (?:and|or|but|yet) {INTENSIFIER}*{form}{following}")
        self.first = _pattern(rf"{form}(?P<and>,? and |,? or |,? but |,? yet |, )(?P<b>[\w'’]+){following}")
        self.attribute = _pattern(rf"(?P<before>(?:^|[\w'’]+,?) ?){INTENSIFIER}*{form} (?P<noun>[\w'’]+)")
        self.statement = _pattern(
            rf"(?:^{INTENSIFIER}*|\b(?:i|we|you|one)(?:['’]m)? (?:[^\W\d_]+ ){{0,6}}?){form} {clauses.ABOUT} "
            rf"(?!{clauses.VERB}\b)"
        )
        self.state = _pattern(
            rf"(?P<subject>[\w'’]+) {clauses.STATE} {INTENSIFIER}*{form}(?= (?:in|on|under|beside|\w+ing)\b)"
        )

    def without_clauses(self, text: str) -> str:
        """Return the clauses that remain, with CUT where others were removed between them."""
        text = self.state.sub(_without_state, self.statement.sub(CUT, text))
        starts = [0, *sorted({match.start() for match in BOUNDARY.finditer(text)} - {0})]
        kept: list[str] = []
        for start, end in zip(starts, [*starts[1:], len(text)], strict=True):
            clause = text[start:end]
            if self.words.named_in(clause) is None:
                kept.append(clause)
                continue
            if len(kept) > 1 and clauses.PREDICATE.match(clause) and clauses.SUBJECT.match(kept[-1]):
                kept.pop()  # `, and the whole picture | looks sad`
            kept.append(CUT)
        pieces = re.split(rf"{CUT}+", "".join(kept))
        *others, last = [_without_link(piece, after_cut=place > 0) for place, piece in enumerate(pieces)]
        return CUT.join([*(clauses.TRAILING.sub("", piece) for piece in others), last])


_rules = cache(_Rules)


def _without_second(match: re.Match) -> str:
    """`pale and sad` → pale; `death, loss and fear` → death and loss."""
    if not _alike(match["form"], match["a"], match["next"]):
        return match[0]
    return match["a"] if match["x"] is None else f"{match['x']} and {match['a']}"


def _without_first(match: re.Match) -> str:
    """`sad, lost and beaten` → lost and beaten."""
    alike = _alike(match["form"], match["b"], match["next"], after_comma=match["and"] == ", ")
    return match["b"] if alike else match[0]


def _alike(form: str, other: str, following: str | None, *, after_comma: bool = False) -> bool:
    """Return whether two words may be coordinated; otherwise one of them begins a clause."""
    form, other, following = form.lower(), other.lower(), (following or "").lower()
    openers = clauses.DETERMINERS | clauses.PRONOUNS - clauses.RELATIVE
    if other in FUNCTION or (not _is_adjective_only(form) and following in openers):
        return False
    parts = parts_of_speech(other)
    if _is_adjective(form) and (_is_adjective(other) or other == "alone"):
        return other == "alone" or "ADV" not in parts
    inflected = "VERB" in parts and other.endswith(("s", "ed", "ing"))
    return "NOUN" in parts and not inflected and not after_comma and not _is_adjective_only(form)


def _without_attribute(match: re.Match) -> str:
    """`a sad old man` → an old man."""
    before, noun = match["before"].strip(" ,").lower(), match["noun"].lower()
    if (before and not _may_precede_an_adjective(before)) or not _is_adjective(match["form"].lower()):
        return match[0]
    parts = parts_of_speech(noun)
    of = match.string.startswith(" of ", match.end())  # a sad picture of a boy
    hollow = clauses.HOLLOW if of else clauses.HOLLOW | clauses.COMMON
    is_head = noun not in FUNCTION | hollow and not noun.endswith(("ing", "ed")) and parts & {"NOUN", "ADJ"}
    if not is_head or (not before and "ADJ" not in parts):
        return match[0]
    if match["before"].strip().lower() not in ("a", "an"):
        return match["before"] + match["noun"]
    article = "an" if noun[0] in "aeiou" and not noun.startswith(("eu", "uni", "one")) else "a"
    return f"{article.capitalize() if match['before'][0].isupper() else article} {match['noun']}"


def _without_state(match: re.Match) -> str:
    return match[0] if match["subject"].lower() in FUNCTION else match["subject"]


def _may_precede_an_adjective(word: str) -> bool:
    owner, *possessive = re.split("['’]s$", word)  # a woman's, but not it's
    is_owner = bool(possessive) and owner not in FUNCTION
    return word in clauses.DETERMINERS | clauses.JOINING or is_owner or _is_adjective_only(word)


def _is_adjective(word: str) -> bool:
    return "ADJ" in parts_of_speech(word) or word.endswith(("ed", "ing")) or bool(re.search(r"[- ]", word))


def _is_adjective_only(word: str) -> bool:
    return _is_adjective(word) and "NOUN" not in parts_of_speech(word)


def _without_link(piece: str, *, after_cut: bool) -> str:
    """Return a piece without the words that linked it to a removed clause."""
    while True:
        piece = piece.lstrip(" ,;:)–—-.")
        following = BOUNDARY.search(piece, 1)
        rest = piece[following.start() :] if following else ""
        if clauses.CONDITION.match(piece):
            return ""
        if after_cut and clauses.HANGING.match(piece):
            piece = rest
        elif match := (clauses.LEADING if after_cut else clauses.OPENING).match(piece):
            piece = piece[match.end() :]
        elif clauses.OPENING.match(rest.lstrip(" ,;")) and not _content_words(piece[: following.start()]):
            piece = rest  # `this picture | because it is so calm`
        else:
            return piece


def _trimmed(piece: str) -> str:
    """Return a piece without loose punctuation and repeated spaces."""
    piece = re.sub(r"\s+", " ", piece).strip(" ,;:–—-")
    end = re.search(r"[.!?…)\"”']*$", piece)[0]
    return re.sub(r" (?=[,;.!?])", "", piece[: len(piece) - len(end)].rstrip(" ,;:–—-") + end)


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W\d_][\w'’-]*", text.lower())


def _content_words(text: str) -> set[str]:
    return set(_words(text)) - FUNCTION - clauses.COMMON


def _is_informative(piece: str) -> bool:
    """A sentence (`it looks unfinished`) needs fewer content words than a fragment (`her lost gaze`)."""
    return len(_words(piece)) >= 3 and len(_content_words(piece)) >= (1 if clauses.SENTENCE.match(piece) else 2)


def _joined(pieces: list[str], sentence: str) -> str:
    """Return the pieces as sentences, or separated by commas if the original is in lower case without punctuation."""
    if sentence == sentence.lower() and not re.search(r"[.,;!?]", sentence):
        return ", ".join(pieces)
    ends = ["."] * (len(pieces) - 1) + [re.search(r"[.!?]*$", sentence)[0]]
    ended = [piece if piece[-1] in ".!?" else piece + end for piece, end in zip(pieces, ends, strict=True)]
    return " ".join(piece[0].upper() + piece[1:] if sentence[0].isupper() else piece for piece in ended)
