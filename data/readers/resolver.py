"""The image that a data file names, found on disk whatever became of the name's spelling on the way.

Archives, unzip programs and file systems change names that are not ASCII: `é` is one character (NFC) or two (NFD), an
escape (`#U00e9`), its UTF-8 bytes read as another encoding (`Ã©`, often lower-cased to `ã©`; `├⌐`), a `?`, or gone.
WikiArt has some 700 such names. Two spellings are the same name if one can have become the other in these ways.
"""

from __future__ import annotations

import contextlib
import os
import re
import unicodedata
from collections.abc import Iterable, Iterator
from functools import cached_property, lru_cache
from pathlib import Path, PurePath
from typing import NamedTuple

from common.errors import UserError
from common.reading import expanded

EXACT, OTHER_SPELLING, MISSING, AMBIGUOUS = "exact", "other spelling", "missing", "ambiguous"
MISREADINGS = ("latin-1", "cp1252", "cp437", "cp850", "mac-roman")  # as which UTF-8 names have been read
VARIABLE = re.compile(r"[^\x00-\x7f]|[?_ ]")  # what may have come, gone or been replaced
MARKS, MOST_MARKS = "?_\ufffd", 4  # what replaces a character, or each of its bytes
LONGEST = 2048  # characters of a name: 255 bytes, each misread or escaped in the longest way
MOST_ALIKE = 200  # names that differ in characters that are not ASCII only; among more nothing is guessed
ESCAPE = re.compile(r"#U([0-9a-fA-F]{4})|#L([0-9a-fA-F]{6})")  # Info-ZIP's unzip in a locale without UTF-8


class Found(NamedTuple):
    path: Path  # absolute: where the image is, or where it would be
    how: str  # EXACT, OTHER_SPELLING, MISSING or AMBIGUOUS
    candidates: tuple[str, ...] = ()  # the names between which it cannot be decided
    refused: str = ""  # why it is not opened

    @property
    def reason(self) -> str:
        """Why there is no image to be used."""
        if self.how == AMBIGUOUS:
            return f"its name may stand for any of {', '.join(map(repr, self.candidates))}; rename the right one"
        return self.refused or "there is no such file"


def relative_name(root: Path, name: str) -> PurePath:
    """`name` as a path below `root`.

    Raises:
        UserError: the name is empty or absolute, or leads out of `root` by `..`.
    """
    relative = PurePath(name)
    if not relative.parts or "\0" in name:
        raise UserError(f"image name {name!r} names no file")
    if relative.anchor or ".." in relative.parts:
        raise UserError(f"image name {name!r} leads out of {root}; names are relative to that folder, without '..'")
    return relative


class ImageFolder:
    """A folder of images; each of its folders is listed once.

    Raises:
        UserError: there is no such folder.
    """

    def __init__(self, root: Path) -> None:
        self.root = Path(os.path.realpath(expanded(root)))
        if not self.root.is_dir():
            raise UserError(f"there is no folder {root}")
        self._folders: dict[str, tuple[_Listing, bool]] = {}

    def find(self, name: str) -> Found:
        """The image called `name`, relative to the root.

        Raises:
            UserError: the name is empty, absolute, or leads out of the root, by `..` or by a symbolic link.
        """
        return self._find(relative_name(self.root, name))

    def _find(self, relative: PurePath) -> Found:
        listing, exactly = self._listing(relative.parts[:-1])
        names = listing.matches(relative.name)
        if not names:
            return Found(self.root / relative, MISSING)
        if len(names) > 1:
            return Found(self.root / relative, AMBIGUOUS, tuple(names))
        path = listing.path / names[0]
        if names[0] in listing.links:
            self._require_inside(path, relative)
        return Found(path, EXACT if exactly and names[0] == relative.name else OTHER_SPELLING)

    def _listing(self, parts: tuple[str, ...]) -> tuple[_Listing, bool]:
        """The folder of these parts, and whether it is spelled so; an empty one if it cannot be told."""
        key = "/".join(parts)
        if key not in self._folders:
            self._folders[key] = self._descend(parts) if parts else (_Listing(self.root), True)
        return self._folders[key]

    def _descend(self, parts: tuple[str, ...]) -> tuple[_Listing, bool]:
        parent, exactly = self._listing(parts[:-1])
        names = parent.matches(parts[-1])
        if len(names) != 1:
            return _Listing(None), False
        path = parent.path / names[0]
        if names[0] in parent.links:
            self._require_inside(path, PurePath(*parts))
        return _Listing(path), exactly and names[0] == parts[-1]

    def _require_inside(self, path: Path, relative: PurePath) -> None:
        if not Path(os.path.realpath(path)).is_relative_to(self.root):
            raise UserError(
                f"image name {str(relative)!r} is a symbolic link out of {self.root}; put the pictures themselves "
                "there, or make visual_dir the folder that they are in"
            )


class _Listing:
    """The names in one folder; None: a folder that is not there."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.names: set[str] = set()
        self.links: set[str] = set()
        try:
            with os.scandir(path) if path is not None else contextlib.nullcontext(()) as entries:
                for entry in entries:
                    self.names.add(entry.name)
                    if entry.is_symlink():
                        self.links.add(entry.name)
        except OSError:  # no folder, or one that may be entered but not listed
            pass

    def matches(self, name: str) -> list[str]:
        """The entry called `name`, else all that are another spelling of it."""
        if name in self.names:
            return [name]
        if self.path is None or len(name) > LONGEST:
            return []
        if _exists(self.path / name):  # a file system that does not care for case, or a file of this minute
            if (self.path / name).is_symlink():
                self.links.add(name)
            return [name]
        near = sorted({other for key in _skeletons(name) for other in self._by_skeleton.get(key, ())})
        if len(near) > MOST_ALIKE:
            near = [other for other in near if _composed(other) == _composed(name)]
        return [other for other in near if same_name(name, other)]

    @cached_property
    def _by_skeleton(self) -> dict[str, list[str]]:
        index: dict[str, list[str]] = {}
        for name in self.names:
            for key in _skeletons(name):
                index.setdefault(key, []).append(name)
        return index


def same_name(a: str, b: str) -> bool:
    """Whether one of two file names can have become the other by what happens to names that are not ASCII."""
    if _unescaped(a).isascii() and _unescaped(b).isascii():
        return a == b  # nothing has happened to it
    return _became(a, b) or _became(b, a)


def _became(short: str, full: str) -> bool:
    """Whether `short` is `full` after characters that are not ASCII were misread, replaced or dropped."""
    readings = {unicodedata.normalize(form, _unescaped(short)) for form in ("NFC", "NFD")}
    return any(_matches(reading, form) for form in _renderings(_unescaped(full)) for reading in readings)


def _matches(short: str, form: str) -> bool:
    """Whether `short` is `form` with characters that are not ASCII in another case, behind marks, or gone.

    All places of `short` that can be reached are kept at once, a bit for each: a backtracking match would take time
    without end for a name of many marks.
    """
    places, marks = 1, sum(_bits(short, mark) for mark in MARKS)
    for char in form:
        if char.isascii():
            places = (places & _bits(short, char)) << 1
        else:
            same = {char, char.lower(), char.upper(), " " if char == "\xa0" else char}
            after = places
            for text in same:
                after |= _step(places, (_bits(short, letter) for letter in text))
            for count in range(1, MOST_MARKS + 1):
                after |= _step(places, [marks] * count)
            places = after
        if not places:
            return False
    return bool(places >> len(short) & 1)


def _step(places: int, letters: Iterable[int]) -> int:
    """The places behind these letters, each given by where it stands."""
    for where in letters:
        places = (places & where) << 1
    return places


@lru_cache(maxsize=1 << 12)
def _bits(text: str, char: str) -> int:
    """A bit for each place in `text` where `char` stands."""
    return sum(1 << place for place, found in enumerate(text) if found == char)


def _renderings(name: str) -> set[str]:
    """`name` composed and decomposed, as it is and with its UTF-8 bytes taken for those of other encodings."""
    forms = {unicodedata.normalize(form, text) for text in _readings(name) for form in ("NFC", "NFD")}
    return forms | {_misread(form, encoding) for form in forms for encoding in MISREADINGS}


def _readings(name: str) -> set[str]:
    """`name`, and what it was before its UTF-8 bytes were misread, once or twice, where they were."""
    found = {unicodedata.normalize("NFC", name)}
    for _ in range(2):
        found |= {reading for text in found for encoding in MISREADINGS for reading in _decoded(text, encoding)}
    return found


def _decoded(name: str, encoding: str) -> Iterator[str]:
    if UNDECODED.search(name):  # bytes of that encoding itself
        yield os.fsencode(name).decode(encoding, "replace")
    for text in (name, LOWERED.sub(lambda match: match[0].upper(), name)):
        with contextlib.suppress(UnicodeError):
            yield text.encode(encoding).decode("utf-8")


UNDECODED = re.compile(r"[\udc80-\udcff]")
LOWERED = re.compile(r"[\xe2-\xfe](?=[\x80-\xbf])")  # the first byte of a character, as a lower-cased Latin-1 letter


def _misread(name: str, encoding: str) -> str:
    # A byte that the encoding does not know is kept as the character of its number.
    return "".join(
        char if char.isascii() else "".join(_character(byte, encoding) for byte in char.encode("utf-8", "replace"))
        for char in name
    )


def _character(byte: int, encoding: str) -> str:
    try:
        return bytes([byte]).decode(encoding)
    except UnicodeDecodeError:
        return chr(byte)


def _skeletons(name: str) -> set[str]:
    """What is left of `name` when all that may have changed is gone; equal for any two spellings of a name."""
    if name.isascii() and "#" not in name:
        return {VARIABLE.sub("", name)}
    plain = _unescaped(name)
    forms = {unicodedata.normalize(form, text) for text in (plain, *_readings(plain)) for form in ("NFC", "NFD")}
    return {VARIABLE.sub("", form) for form in forms}


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", _unescaped(name))


def _unescaped(name: str) -> str:
    def char(match: re.Match[str]) -> str:
        code = int(match[1] or match[2], 16)
        return chr(code) if 0x80 <= code <= 0x10FFFF and not 0xD800 <= code < 0xE000 else match[0]

    return ESCAPE.sub(char, name)


def _exists(path: Path) -> bool:
    try:
        path.stat()
    except (OSError, ValueError):  # ValueError: a name that the file system cannot hold
        return False
    return True
