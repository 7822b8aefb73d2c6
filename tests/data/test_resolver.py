"""Image names match files with another spelling, but not other files or files outside the folder."""

from __future__ import annotations

import os
import sys
import unicodedata
from pathlib import Path

import pytest

from common.errors import UserError
from data.readers.resolver import AMBIGUOUS, EXACT, MISSING, OTHER_SPELLING, ImageFolder, same_name
from tests.helpers.hostile import time_limit

NAME = "Rococo/josé-garcía-ö_portrait(1).jpg"


def nfd(text: str) -> str:
    return unicodedata.normalize("NFD", text)


def mojibake(text: str, encoding: str = "latin-1") -> str:
    return text.encode().decode(encoding)


def escaped(text: str) -> str:
    return "".join(char if char.isascii() else f"#U{ord(char):04x}" for char in text)


def replaced(text: str, mark: str = "?") -> str:
    return "".join(char if char.isascii() else mark for char in text)


LISTED = mojibake(NAME).lower().replace("rococo", "Rococo")  # the spelling of such a name in WikiArt's list
SPELLINGS = {
    "NFC": NAME,
    "NFD": nfd(NAME),
    "mojibake": mojibake(NAME),
    "lower-cased mojibake": LISTED,
    "lower-cased mojibake, NFD": nfd(LISTED),
    "cp437": mojibake(NAME, "cp437"),
    "mojibake read as cp437": mojibake(LISTED, "cp437"),
    "zip escapes": escaped(NAME),
    "zip escapes, NFD": escaped(nfd(NAME)),
    "zip escapes of mojibake": escaped(LISTED),
    "question marks": replaced(NAME),
    "question marks, one per byte": replaced(NAME, "??"),
    "underscores": replaced(NAME, "_"),
    "replacement characters": replaced(NAME, "\ufffd"),
    "soft hyphen lost": LISTED.replace("\xad", ""),
    "dropped": replaced(NAME, ""),
    "accents dropped": "Rococo/jose-garcia-o_portrait(1).jpg",
}
# Two names that have both lost characters cannot be matched.
WHOLE = [name for name in SPELLINGS if not any(word in name for word in ("mark", "under", "replace", "drop", "lost"))]


def touch(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


@pytest.mark.parametrize("stored", SPELLINGS)
@pytest.mark.parametrize("named", WHOLE)
def test_name_matches_every_spelling_of_its_file(tmp_path: Path, named: str, stored: str) -> None:
    file = touch(tmp_path / SPELLINGS[stored])
    touch(file.with_name("joséphine.jpg"))
    found = ImageFolder(tmp_path).find(SPELLINGS[named])
    assert found.path.is_absolute() and found.path.samefile(file)
    assert found.how == (EXACT if named == stored else OTHER_SPELLING)


@pytest.mark.parametrize("named", SPELLINGS)
def test_name_with_lost_characters_matches_the_intact_file(tmp_path: Path, named: str) -> None:
    file = touch(tmp_path / NAME)
    assert ImageFolder(tmp_path).find(SPELLINGS[named]).path.samefile(file)


def test_bytes_that_are_not_utf8_are_decoded_with_old_encodings(tmp_path: Path) -> None:
    folder = tmp_path / "Rococo"
    folder.mkdir()
    try:
        Path(os.fsdecode(os.fsencode(folder) + b"/jos\xe9.jpg")).touch()
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    assert ImageFolder(tmp_path).find("Rococo/josé.jpg").how == OTHER_SPELLING


def test_other_spellings_of_folders(tmp_path: Path) -> None:
    file = touch(tmp_path / escaped("Größe") / nfd("größer.jpg"))
    folder = ImageFolder(tmp_path)
    assert folder.find("Größe/größer.jpg").path.samefile(file)
    assert folder.find(f"{escaped('Größe')}/{nfd('größer.jpg')}").how == EXACT
    assert folder.find("Größe/kleiner.jpg").how == MISSING


def test_exact_name_comes_first(tmp_path: Path) -> None:
    names = [NAME, nfd(NAME), escaped(NAME), LISTED]
    for name in names:
        touch(tmp_path / name)
    folder = ImageFolder(tmp_path)
    assert all(str(folder.find(name).path) == str(tmp_path.resolve() / name) for name in names)


@pytest.mark.parametrize("stored", [("josé.jpg", nfd("josé.jpg")), ("josé.jpg", "josè.jpg"), ("jos.jpg", "jos_é.jpg")])
def test_two_matching_files_are_ambiguous(tmp_path: Path, stored: tuple[str, str]) -> None:
    for name in stored:
        touch(tmp_path / name)
    found = ImageFolder(tmp_path).find("jos??.jpg" if "_" not in stored[1] else "jos_?.jpg")
    if found.how == AMBIGUOUS:
        assert set(found.candidates) <= set(stored) and all(repr(name) in found.reason for name in found.candidates)
    else:
        assert stored[1] == "jos_é.jpg" and found.path.name == "jos_é.jpg"


@pytest.mark.parametrize(
    ("named", "stored"),
    [("josé", "josè"), ("josé", "josée"), ("a", "b"), ("a_b", "ab"), ("a b", "ab"), ("源氏", "平家"), ("jose", "jos")],
)
def test_different_names_do_not_match(named: str, stored: str) -> None:
    assert not same_name(named, stored) and not same_name(stored, named)


def test_missing_file_has_the_path_of_its_name(tmp_path: Path) -> None:
    folder = ImageFolder(tmp_path)
    for name in (NAME, "none/at/all.jpg", "x" * 5000):
        found = folder.find(name)
        assert found.how == MISSING and found.path == tmp_path.resolve() / name and "no such file" in found.reason


def test_relative_and_missing_roots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = touch(tmp_path / "a.jpg")
    monkeypatch.chdir(tmp_path)
    assert ImageFolder(Path()).find("a.jpg").path == file.resolve()
    with pytest.raises(UserError, match="no folder nowhere"):
        ImageFolder(Path("nowhere"))


@pytest.mark.parametrize("name", ["../secret.jpg", "a/../../secret.jpg", "a/..", "/etc/hostname"])
def test_names_outside_the_root_are_refused(tmp_path: Path, name: str) -> None:
    touch(tmp_path / "images" / "a" / "b.jpg")
    touch(tmp_path / "secret.jpg")
    with pytest.raises(UserError, match=f"{name}.*leads out of .*images"):
        ImageFolder(tmp_path / "images").find(name)


def test_escaped_dots_stay_inside_the_root(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    touch(tmp_path / "secret.jpg")
    assert ImageFolder(tmp_path / "images").find("#U002e#U002e#U002fsecret.jpg").how == MISSING


@pytest.mark.parametrize("name", ["", ".", "a\0b.jpg"])
def test_empty_and_invalid_names(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="is not the name of a file"):
        ImageFolder(tmp_path).find(name)


def test_symbolic_links_out_of_the_root_are_refused(tmp_path: Path) -> None:
    root, outside = tmp_path / "images", tmp_path / "outside"
    touch(root / "real.jpg")
    touch(outside / "far.jpg")
    (root / "near.jpg").symlink_to("real.jpg")
    (root / "folder").symlink_to(outside)
    (root / "gone.jpg").symlink_to(outside / "gone.jpg")
    (tmp_path / "also").symlink_to(root)
    assert ImageFolder(root).find("near.jpg").path.samefile(root / "real.jpg")
    assert ImageFolder(tmp_path / "also").find("real.jpg").path.samefile(root / "real.jpg")
    for name in ("folder/far.jpg", "gone.jpg"):
        with pytest.raises(UserError, match=f"{name.split('/')[0]}.*symbolic link out of"):
            ImageFolder(root).find(name)


@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() == 0, reason="root can list every folder")
def test_folder_without_permission_to_list(tmp_path: Path) -> None:
    file = touch(tmp_path / "closed" / "a.jpg")
    file.parent.chmod(0o100)
    try:
        assert ImageFolder(tmp_path).find("closed/a.jpg").how == EXACT
    finally:
        file.parent.chmod(0o700)


def test_long_names_of_marks_are_matched_in_linear_time(tmp_path: Path) -> None:
    """A backtracking match would take exponential time."""
    for i in range(30):
        touch(tmp_path / f"{'é' * 40}{'ü' * i}.jpg")
    folder = ImageFolder(tmp_path)
    with time_limit(20):
        for name in ("?" * 300, "_?" * 400, "?" * 100_000, "é" * 500, "#U00e9" * 300, "ã©" * 200):
            assert folder.find(f"{name}.jpg").how != EXACT


def test_escaped_spellings_among_hundreds_of_similar_names(tmp_path: Path) -> None:
    names = [f"{chr(0x4E00 + i)}{chr(0x5000 + i)}.jpg" for i in range(400)]
    for name in names:
        touch(tmp_path / escaped(name))
    folder = ImageFolder(tmp_path)
    assert all(folder.find(name).path.name == escaped(name) for name in names)
    assert folder.find("??.jpg").how == MISSING


@pytest.mark.parametrize("named", ["Style/a.png", "style/A.PNG", "STYLE/a.Png", r"Style\a.PNG", r"style\a.png"])
def test_case_and_backslashes_do_not_matter_where_one_file_can_be_meant(tmp_path: Path, named: str) -> None:
    (tmp_path / "Style").mkdir()
    (tmp_path / "Style/a.PNG").touch()
    found = ImageFolder(tmp_path).find(named)
    assert (found.path, found.how) == (tmp_path / "Style/a.PNG", OTHER_SPELLING)


def test_case_and_composition_at_once(tmp_path: Path) -> None:
    (tmp_path / "Été.JPG").touch()
    assert ImageFolder(tmp_path).find("e\u0301te\u0301.jpg").how == OTHER_SPELLING


def test_files_that_differ_in_case_alone(tmp_path: Path) -> None:
    for name in ("a.PNG", "A.png"):
        (tmp_path / name).touch()
    if len([*tmp_path.iterdir()]) < 2:
        pytest.skip("the file system ignores case")
    found = ImageFolder(tmp_path).find("a.png")
    assert (found.how, found.candidates) == (AMBIGUOUS, ("A.png", "a.PNG"))
    assert ImageFolder(tmp_path).find("a.PNG").how == EXACT


def test_backslashes_do_not_lead_out_of_the_root(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="leads out"):
        ImageFolder(tmp_path).find(r"Style\..\..\a.png")
    (tmp_path / r"a\b.png").touch()
    assert ImageFolder(tmp_path).find(r"a\b.png").how == EXACT
