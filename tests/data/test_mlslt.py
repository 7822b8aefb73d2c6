"""MLSLT annotations of sign-language clips, and the frames of a video."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from common.errors import UserError
from data.images import ImageError
from data.readers.mlslt import SIGN_LANGUAGES, read_frames, read_mlslt
from tests.helpers.clips import turn, write_clip, write_picture_clip
from tests.helpers.tiny import ROOT


def item(id: Any, **texts: str) -> dict[str, Any]:
    return {"id": id, "sign_list": [{"lang": lang, "text": text} for lang, text in texts.items()]}


def indices(frames: list[Image.Image]) -> list[int]:
    """Return the indices of the frames of `write_clip` from their brightness."""
    return [round(float(np.asarray(frame).mean()) / 8) for frame in frames]


@pytest.fixture
def read(tmp_path: Path):
    """Return a function that writes a value to mlslt.json and reads it with the folder videos."""
    (tmp_path / "videos").mkdir()

    def reader(data: object, *sign_languages: str) -> list:
        path = tmp_path / "mlslt.json"
        path.write_text(json.dumps(data))
        return read_mlslt(path, tmp_path / "videos", sign_languages=sign_languages or ("en",))

    return reader


# --- read_mlslt


def test_one_sample_per_item_and_language(read, tmp_path: Path) -> None:
    data = [item(12, zh="你好", en=" Hello. ", de="Hallo"), item("b", en="Bye", zh="再见")]
    samples = read(data, "de", "zh", "de")
    assert [sample.id for sample in samples] == ["12/de", "12/zh", "b/zh"]
    assert [sample.texts for sample in samples] == [("Hello.",), ("Hello.",), ("Bye",)]
    assert samples[0].path == tmp_path.resolve() / "videos/12/de.mp4"
    assert samples[0].emotions == () and samples[0].histogram is None


@pytest.mark.parametrize("language", ["fr", "EN", ""])
def test_unknown_language_error_lists_all_ten(read, language: str) -> None:
    with pytest.raises(UserError) as caught:
        read([item(1, en="a")], "en", language)
    assert f"dataset.sign_languages: {language!r} is not one of zh, uk, ru, bg, is, de, it, sv, lt, en" == str(
        caught.value
    )
    assert len(SIGN_LANGUAGES) == 10


def test_empty_languages(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="sign_languages: give at least one of zh, uk"):
        read_mlslt(tmp_path / "x.json", tmp_path, sign_languages=[])


def test_single_language_as_text(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps([item(1, en="a")]))
    assert [sample.id for sample in read_mlslt(path, tmp_path, sign_languages="en")] == ["1/en"]


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ([], "an MLSLT file is a list of objects, each with id and sign_list, but this is an empty list"),
        ({"images": [], "annotations": []}, "it looks like one for dataset.name=coco"),
        ([3], "[0]: must be an object, not a number"),
        ([{"sign_list": []}], "[0]: the key 'id' is missing"),
        ([{"id": None}], "[0]: 'id' must be a whole number or text, not None"),
        ([{"id": 1}], "item '1': the key 'sign_list' is missing"),
        ([{"id": 1, "sign_list": {}}], "item '1': 'sign_list' must be a list, not an empty object"),
        ([{"id": 1, "sign_list": ["en"]}], "item '1': 'sign_list[0]': must be an object, not text"),
        ([{"id": 1, "sign_list": [{"text": "a"}]}], "item '1': 'sign_list[0]': the key 'lang' is missing"),
        ([{"id": 1, "sign_list": [{"lang": "en"}]}], "item '1': 'sign_list[0]': the key 'text' is missing"),
        ([{"id": 1, "sign_list": [{"lang": "en", "text": 5}]}], "'text' must be text, not a number"),
        ([item(1, de="Hallo")], "item '1': 'sign_list' has no text for 'lang' 'en'"),
        ([item(1, en=" ")], "item '1': 'sign_list' has no text for 'lang' 'en'"),
        (
            [{"id": 1, "sign_list": [{"lang": "en", "text": "a"}] * 2}],
            "'sign_list[1]': the language 'en' appears twice",
        ),
        ([item(1, en="a"), item("1", en="b")], "[1]: the id '1' appears twice"),
        ([item("../1", en="a")], "item '../1': image name '../1/en.mp4' leads out of"),
        ([item("/tmp", en="a")], "item '/tmp': image name '/tmp/en.mp4' leads out of"),
    ],
)
def test_faults(read, data: object, expected: str) -> None:
    with pytest.raises(UserError) as caught:
        read(data)
    assert expected in str(caught.value).split("mlslt.json: ", 1)[1]


def test_no_item_in_the_requested_languages(read) -> None:
    with pytest.raises(UserError, match=r"none of its 2 items is signed in de, lt$"):
        read([item(1, en="a"), item(2, en="b")], "de", "lt")


# --- read_frames


def test_short_clip_gives_all_frames(tmp_path: Path) -> None:
    frames = read_frames(write_clip(tmp_path / "a.mp4", 20), max_frames=20)
    assert indices(frames) == list(range(20))
    assert all(frame.mode == "RGB" and frame.size == (32, 32) for frame in frames)


@pytest.mark.parametrize(("limit", "expected"), [(1, [10]), (2, [0, 19]), (4, [0, 6, 13, 19]), (19, None)])
def test_long_clip_is_sampled_evenly(tmp_path: Path, limit: int, expected: list[int]) -> None:
    got = indices(read_frames(write_clip(tmp_path / "a.mp4", 20), max_frames=limit))
    assert len(got) == limit and got == sorted(set(got))
    assert expected is None or got == expected
    gaps = np.diff(got)
    assert not len(gaps) or gaps.max() - gaps.min() <= 1


def test_transform_is_applied_to_each_frame(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mp4", 12)
    for limit in (12, 5):
        frames = read_frames(path, max_frames=limit)
        small = read_frames(path, max_frames=limit, transform=lambda image: image.resize((4, 4)))
        assert [frame.size for frame in small] == [(4, 4)] * limit and indices(small) == indices(frames)


@pytest.mark.parametrize("container", ["mkv", "avi"])
def test_other_container_with_suffix_mp4(tmp_path: Path, container: str) -> None:
    path = write_clip(tmp_path / f"a.{container}", 5).rename(tmp_path / "en.mp4")
    assert len(read_frames(path, max_frames=10)) == 5


@pytest.fixture
def corner() -> np.ndarray:
    """A black picture, 96 x 64, with a white quarter at the top left."""
    picture = np.zeros((64, 96, 3), np.uint8)
    picture[:32, :48] = 255
    return picture


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_clip_is_upright_as_in_a_player(tmp_path: Path, corner: np.ndarray, degrees: int) -> None:
    (frame,) = read_frames(turn(write_picture_clip(tmp_path / "a.mp4", corner), degrees), max_frames=1)
    expected = np.rot90(corner, -degrees // 90)
    assert frame.size == expected.shape[1::-1]
    assert np.abs(np.asarray(frame).astype(int) - expected).mean() < 10


def test_pixels_that_are_not_square(tmp_path: Path, corner: np.ndarray) -> None:
    path = write_picture_clip(tmp_path / "a.mp4", corner, pixel_aspect=2)
    assert read_frames(path, max_frames=1)[0].size == (192, 64)
    with pytest.raises(ImageError, match="too many pixels"):
        read_frames(path, max_frames=1, max_pixels=96 * 64)


def test_cover_is_not_the_film(tmp_path: Path, corner: np.ndarray) -> None:
    path = write_picture_clip(tmp_path / "a.mp4", corner, cover=True)
    assert [frame.size for frame in read_frames(path, max_frames=4)] == [(96, 64)]


def test_cases_of_turned_clips() -> None:
    cases = ROOT.parent / "shared/cases/video_rotation"
    if not cases.is_dir():
        pytest.skip(f"there is no {cases}")
    upright = np.asarray(Image.open(cases / "upright.png").convert("RGB")).astype(int)
    (frame,) = read_frames(cases / "phone.mp4", max_frames=1)
    assert frame.size == (128, 96) and np.abs(np.asarray(frame) - upright).mean() < 12
    assert read_frames(cases / "sar_2to1.mp4", max_frames=1)[0].size == (192, 64)


def test_unusable_clips(tmp_path: Path) -> None:
    cut, noise, empty, sound, playlist = (
        tmp_path / f"{name}.mp4" for name in ("cut", "noise", "empty", "sound", "playlist")
    )
    write_clip(cut, 20).write_bytes(cut.read_bytes()[:-200])  # removes the frame index at the end
    noise.write_bytes(np.random.default_rng(0).bytes(5000))
    empty.touch()
    write_clip(sound, 0, audio_only=True)
    write_clip(tmp_path / "real.mp4", 5)
    playlist.write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\nfile://{tmp_path}/real.mp4\n#EXT-X-ENDLIST\n")
    for path, reason in (
        (cut, "damaged"),
        (noise, "damaged or in an unknown format"),
        (empty, "empty"),
        (sound, "has no video stream"),
        (playlist, "damaged or in an unknown format"),
        (tmp_path, "not a file"),
        (tmp_path / "missing.mp4", "no such file"),
    ):
        with pytest.raises(ImageError, match=reason) as caught:
            read_frames(path, max_frames=5)
        assert str(tmp_path) not in str(caught.value)


def test_max_frames_of_zero(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"max_frames=0: must be at least 1"):
        read_frames(write_clip(tmp_path / "a.mp4", 2), max_frames=0)


@pytest.mark.parametrize(("name", "count", "size"), [("clip_a", 57, (340, 256)), ("clip_b", 250, (640, 272))])
def test_real_clips(shared_data: Path, name: str, count: int, size: tuple[int, int]) -> None:
    path = shared_data / "video" / f"{name}.mp4"
    if not path.is_file():
        pytest.skip(f"{path} is absent")
    frames = read_frames(path, max_frames=500)
    assert len(frames) == count and {frame.size for frame in frames} == {size}
    some = read_frames(path, max_frames=6)
    expected = [frames[round(i * (count - 1) / 5)] for i in range(6)]
    assert all((np.asarray(a) == np.asarray(b)).all() for a, b in zip(some, expected, strict=True))


def test_frames_that_are_too_large_or_too_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_clip(tmp_path / "a.mp4", 12, size=64)
    assert len(read_frames(path, max_frames=5, max_pixels=64 * 64)) == 5
    with pytest.raises(ImageError, match=r"too many pixels \(64 x 64; the limit is 4,095\)"):
        read_frames(path, max_frames=5, max_pixels=64 * 64 - 1)
    monkeypatch.setattr("data.readers.mlslt.LONGEST", 11)
    with pytest.raises(ImageError, match="more than 11 frames"):
        read_frames(path, max_frames=5)


@pytest.mark.parametrize(
    "content",
    [
        "ffconcat version 1.0\nfile 'real.mp4'\n",
        "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\nhttp://127.0.0.1:9/x.ts\n#EXT-X-ENDLIST\n",
        "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 9999 RTP/AVP 96\n",
        '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011"><BaseURL>http://127.0.0.1:9/</BaseURL></MPD>',
        ";FFMETADATA1\ntitle=x\n",
    ],
    ids=["concat", "HLS", "SDP", "DASH", "metadata"],
)
def test_playlist_with_suffix_of_a_video_is_refused(tmp_path: Path, content: str) -> None:
    write_clip(tmp_path / "real.mp4", 5)
    for suffix in ("mp4", "mkv", "avi"):
        (tmp_path / f"x.{suffix}").write_text(content)
        with pytest.raises(ImageError, match="damaged or in an unknown format"):
            read_frames(tmp_path / f"x.{suffix}", max_frames=5)
