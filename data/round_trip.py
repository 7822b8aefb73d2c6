"""Whether a tokenizer can write the letters of a data set's texts."""

from __future__ import annotations

import unicodedata

from common.errors import UserError
from data.samples import Samples
from data.text import Template

TEXTS = 200  # of a data set, evenly spaced
NOTED, REFUSED = 0.01, 0.5  # shares of lost letters


def lost_letters(template: Template, samples: Samples, *, where: str) -> str | None:
    """Return a sentence if tokenizing loses 1 % or more of the letters, as those that become <unk>; else None.

    Raises:
        UserError: it loses half of them.
    """
    letters = lost = 0
    example = ""
    for row in range(0, len(samples.texts), max(1, len(samples.texts) // TEXTS)):
        text = samples.texts[row].decode()
        written = set(_folded(template.decode(template.tokenizer(text, add_special_tokens=False).input_ids)))
        missing = [letter for letter in _folded(text) if letter.isalpha() and letter not in written]
        letters += sum(map(str.isalpha, _folded(text)))
        lost, example = lost + len(missing), example or "".join(missing[:1])
    if not letters or lost / letters < NOTED:
        return None
    sentence = (
        f"dataset.tokenizer: {template.tokenizer.name_or_path} cannot write {lost / letters:.0%} of the letters of "
        f"{where}, such as {example!r}; use a language model of the language"
    )
    if lost / letters >= REFUSED:
        raise UserError(sentence)
    return sentence


def _folded(text: str) -> str:
    return unicodedata.normalize("NFKC", text).casefold()
