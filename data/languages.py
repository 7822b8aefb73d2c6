"""Words of texts in any script, and the names of languages in data sets."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

ENGLISH = ("english", "en", "")  # "": a data set that does not name its language
# Thai, Lao, Tibetan, Burmese, Khmer; Chinese characters and Japanese kana: scripts without spaces between words.
_WITH_MARKS = "\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff"
_HAN_KANA = "\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_UNSPACED = _WITH_MARKS + _HAN_KANA
_MARKS = "".join(chr(code) for code in range(0x0E00, 0x1800) if unicodedata.category(chr(code))[0] == "M")
_WORD = re.compile(f"[{_UNSPACED}][{_MARKS}]*|[^{_UNSPACED}\\s]+")


class _Separators(dict):
    """Map of characters: punctuation and symbols become spaces, apostrophes the ASCII one."""

    def __missing__(self, code: int) -> str:
        char = chr(code)
        self[code] = "'" if char in "'’" else " " if unicodedata.category(char)[0] in "PS" else char
        return self[code]


_SEPARATORS = _Separators()


def words(text: str) -> list[str]:
    """Return the lower-case words of a text; in a script without spaces, each character with its marks is one.

    Words are separated by white space, after every punctuation mark and symbol except the apostrophe became a space.
    """
    return _WORD.findall(unicodedata.normalize("NFC", text.lower()).translate(_SEPARATORS))


def language_name(value: object) -> str:
    """Return the name of a language as it is compared: in lower case, with single spaces."""
    return " ".join(str(value or "").lower().split())


def is_english(language: str) -> bool:
    """Return whether the language is English, or is not named."""
    return language in ENGLISH


def in_latin_script(texts: Iterable[str]) -> bool:
    """Return whether at least half of the letters of the texts are Latin."""
    letters = [letter for text in texts for letter in text if letter.isalpha()]
    return 2 * sum(letter < "\u0250" for letter in letters) >= len(letters)
