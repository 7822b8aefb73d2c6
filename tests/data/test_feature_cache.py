"""The feature cache returns the encoder's output, after any failure and with any number of processes."""

from __future__ import annotations

import copy
import json
import multiprocessing
import os
import shutil
import tempfile
import time
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import data.cache.digests
import data.cache.feature_cache
import data.cache.token_files
from common.errors import UserError
from data.cache.feature_cache import FeatureCache, FrozenEncoder
from data.frames import FrameReader
from data.images import ImageError
from model.vision import VisionEncoder, build_vision
from tests.data.test_token_files import largest_file
from tests.helpers.clips import write_clip
from tests.helpers.launch import died_at_change
from tests.helpers.tiny import RESNET, VISION, write_pictures

fork = multiprocessing.get_context("fork")


@pytest.fixture(autouse=True)
def small_groups(monkeypatch):
    """Small groups and files, so that a few images need several; one thread, so that processes may fork."""
    monkeypatch.setattr(data.cache.feature_cache, "GROUP", 4)
    monkeypatch.setattr(data.cache.token_files, "SECONDS", 0.0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def make_tower(seed: int = 0, **changes) -> VisionEncoder:
    torch.manual_seed(seed)
    return build_vision(pretrained_name=None, config={**VISION, **changes}).eval()


@pytest.fixture(scope="module")
def tower() -> VisionEncoder:
    return make_tower()


@pytest.fixture
def pictures(tmp_path) -> list[Path]:
    """Write noise, so that all frames and tokens differ."""
    paths = write_pictures(tmp_path / "pictures", 18)
    for i, path in enumerate(paths):
        write_noise(path, seed=i)
    return paths


def write_noise(path: Path, *, seed: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


class Encoded:
    """A cache that counts the encoded frames."""

    def __init__(self, root: Path, tower: VisionEncoder, *, precision: str = "fp32", workers: int = 0, **reading):
        self.frames = 0
        encoder = FrozenEncoder(
            description={"precision": precision, **tower.fingerprint()},
            shape=(tower.num_tokens, tower.dim),
            encode=self.encode,
        )
        read = FrameReader(tower.preprocess, **{"max_frames": 4, **reading})
        self.tower = tower
        self.cache = FeatureCache(root, encoder=encoder, read=read, num_workers=workers, show=False)

    @torch.no_grad()
    def encode(self, frames: torch.Tensor) -> torch.Tensor:
        self.frames += int(frames.flatten(1).any(dim=1).sum())
        return self.tower(frames[:, None])[:, 0]

    def __call__(self, paths: list[Path]) -> list[torch.Tensor | str]:
        """Return tokens, or the reason why there are none."""
        found = self.cache.tokens(paths)
        return [self.one(found, index) for index in range(len(paths))]

    @staticmethod
    def one(found, index: int) -> torch.Tensor | str:
        try:
            return found[index]
        except ImageError as error:
            return str(error)


@torch.no_grad()
def encoded_now(tower: VisionEncoder, path: Path, max_frames: int = 4) -> torch.Tensor:
    return tower(FrameReader(tower.preprocess, max_frames=max_frames)(path)[None])[0]


def same(left: list, right: list) -> bool:
    return len(left) == len(right) and all(
        torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in zip(left, right, strict=True)
    )


# --- what it gives ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [VISION, RESNET], ids=["ViT", "ResNet"])
def test_tokens_equal_the_encoders_output_in_float16(tmp_path, pictures, config):
    torch.manual_seed(1)
    tower = build_vision(pretrained_name=None, config=config).eval()
    found = Encoded(tmp_path / "cache", tower)(pictures)
    for tokens, path in zip(found, pictures, strict=True):
        assert tokens.dtype == torch.float16 and tokens.shape == (1, tower.num_tokens, tower.dim)
        torch.testing.assert_close(tokens.float(), encoded_now(tower, path), rtol=2**-10, atol=1e-4)


def test_second_call_encodes_nothing(tmp_path, tower, pictures):
    first = Encoded(tmp_path / "cache", tower)
    tokens = first(pictures)
    again = Encoded(tmp_path / "cache", make_tower())
    assert first.frames == len(pictures) and same(again(pictures[::-1]), tokens[::-1]) and again.frames == 0


def test_only_new_images_are_encoded(tmp_path, tower, pictures):
    some = Encoded(tmp_path / "cache", tower)(pictures[:7])
    rest = Encoded(tmp_path / "cache", tower)
    assert same(rest(pictures)[:7], some) and rest.frames == len(pictures) - 7


def test_same_image_is_stored_once(tmp_path, tower, pictures):
    copies = [Path(shutil.copy(path, tmp_path / f"copy of {path.name}")) for path in pictures[:5]]
    encoded = Encoded(tmp_path / "cache", tower)
    tokens = encoded([*pictures, *copies])
    assert encoded.frames == len(pictures) and same(tokens[-5:], tokens[:5])


def test_workers_make_no_difference(tmp_path, tower, pictures):
    pictures[3].write_bytes(b"no picture")
    alone = Encoded(tmp_path / "a", tower)(pictures)
    helped = Encoded(tmp_path / "b", tower, workers=2)(pictures)
    assert same(alone, helped)
    assert files(tmp_path / "a") == files(tmp_path / "b")


def files(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.glob("*/*.safetensors")}


def test_tokens_do_not_depend_on_the_group(tmp_path, tower, pictures):
    one = Encoded(tmp_path / "a", tower)(pictures)
    for start in (0, 1, 3):
        other = Encoded(tmp_path / str(start), tower)(pictures[start::2][::-1])
        assert same(other, one[start::2][::-1])


def test_random_state_is_unchanged(tmp_path, tower, pictures):
    state = torch.get_rng_state()
    Encoded(tmp_path / "cache", tower, workers=2)(pictures)
    assert torch.equal(torch.get_rng_state(), state)


# --- what is told from what ------------------------------------------------------------------------------------------


def test_changed_file_is_a_new_image(tmp_path, tower, pictures):
    before = Encoded(tmp_path / "cache", tower)(pictures)
    write_noise(pictures[2], seed=100)
    pictures[3].replace(pictures[4])
    encoded = Encoded(tmp_path / "cache", tower)
    after = encoded([*pictures[:3], pictures[4]])
    assert encoded.frames == 1, "a moved image is found"
    assert same([*after[:2], after[3]], [*before[:2], before[3]]) and not same(after[2:3], before[2:3])
    torch.testing.assert_close(after[2].float(), encoded_now(tower, pictures[2]), rtol=2**-10, atol=1e-4)


def another_activation() -> VisionEncoder:
    tower = make_tower()
    for block in tower.visual.transformer.resblocks:
        block.mlp.gelu = torch.nn.ReLU()
    return tower


def another_weight() -> VisionEncoder:
    tower = make_tower()
    with torch.no_grad():
        tower.visual.transformer.resblocks[1].mlp.c_proj.bias[3] += 1e-3
    return tower


def another_transform() -> VisionEncoder:
    tower = make_tower()
    tower.preprocess["mean"] = (0.5, 0.4, 0.4)
    return tower


@pytest.mark.parametrize(
    "other",
    [another_weight, another_activation, another_transform, lambda: make_tower(head_width=32)],
    ids=["weights", "activation", "transform", "heads"],
)
def test_other_encoder_has_its_own_tokens(tmp_path, tower, pictures, other):
    ours = Encoded(tmp_path / "cache", tower)(pictures[:3])
    changed = Encoded(tmp_path / "cache", other())
    theirs = changed(pictures[:3])
    assert changed.frames == 3 and not any(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    back = Encoded(tmp_path / "cache", tower)
    assert same(back(pictures[:3]), ours) and back.frames == 0


def test_other_precision_has_its_own_tokens(tmp_path, tower, pictures):
    Encoded(tmp_path / "cache", tower)(pictures[:3])
    changed = Encoded(tmp_path / "cache", tower, precision="bf16")
    changed(pictures[:3])
    assert changed.frames == 3


def test_encoder_json_describes_the_encoder(tmp_path, tower, pictures):
    cache = Encoded(tmp_path / "cache", tower).cache
    cache.tokens(pictures[:1])
    assert cache.folder.parent == tmp_path / "cache"
    words = json.loads((cache.folder / "encoder.json").read_text())
    assert words["precision"] == "fp32" and words["transform"]["size"] == 32 and words["tokens of a frame"] == [5, 32]
    assert any("QuickGELU" in line or "GELU" in line for line in words["structure"]) and len(words["weights"]) == 32


# --- clips -----------------------------------------------------------------------------------------------------------


def test_clip_tokens_depend_on_max_frames(tmp_path, tower, pictures):
    clips = [write_clip(tmp_path / f"{n}.mp4", n) for n in (3, 9, 1)]
    encoded = Encoded(tmp_path / "cache", tower)
    found = encoded([clips[0], pictures[0], *clips[1:], pictures[1]])
    assert [len(tokens) for tokens in found] == [3, 1, 4, 1, 1]
    for tokens, path in zip(found, [clips[0], pictures[0], *clips[1:], pictures[1]], strict=True):
        torch.testing.assert_close(tokens.float(), encoded_now(tower, path), rtol=2**-10, atol=1e-4)
    longer = Encoded(tmp_path / "cache", tower, max_frames=6)
    assert len(longer([clips[1], pictures[0]])[0]) == 6
    assert longer.frames == 6, "images are not sampled"


# --- what cannot be used ---------------------------------------------------------------------------------------------


def test_unusable_images_have_the_usual_reason(tmp_path, tower, pictures):
    pictures[1].write_bytes(pictures[1].read_bytes()[:900])
    pictures[5].write_bytes(b"")
    pictures[6].unlink()
    pictures[7].unlink()
    pictures[7].mkdir()
    read = FrameReader(tower.preprocess, max_frames=4)
    for _ in range(2):
        found = Encoded(tmp_path / "cache", tower)(pictures)
        for index, path in enumerate(pictures):
            if index not in (1, 5, 6, 7):
                assert isinstance(found[index], torch.Tensor)
                continue
            with pytest.raises(ImageError) as error:
                read(path)
            assert found[index] == str(error.value)
    write_noise(pictures[5], seed=5)
    assert isinstance(Encoded(tmp_path / "cache", tower)(pictures)[5], torch.Tensor), "the file is valid again"


def test_file_changed_while_reading_is_not_stored(tmp_path, tower, pictures):
    encoded = Encoded(tmp_path / "cache", tower)
    read = encoded.cache.read

    def late(path: Path) -> torch.Tensor:
        if path == pictures[4]:
            write_noise(path, seed=100)
        return read(path)

    late.max_frames = 4
    encoded.cache.read = late
    found = encoded(pictures)
    assert found[4] == "the file changed while it was read"
    assert sum(isinstance(tokens, torch.Tensor) for tokens in found) == len(pictures) - 1
    again = Encoded(tmp_path / "cache", tower)(pictures)
    torch.testing.assert_close(again[4].float(), encoded_now(tower, pictures[4]), rtol=2**-10, atol=1e-4)


def test_tokens_outside_float16_are_rejected(tmp_path, pictures):
    tower = make_tower()
    with torch.no_grad():
        tower.visual.transformer.resblocks[1].mlp.c_proj.bias[3] = 1e5
    with pytest.raises(UserError, match=r"picture-000\.png are NaN or outside the range of float16 \(65504\).*=null"):
        Encoded(tmp_path / "cache", tower)(pictures)


# --- accidents -------------------------------------------------------------------------------------------------------


def killed(root: Path, tower: VisionEncoder, pictures: list[Path], moment: int) -> bool:
    """Return whether the process was killed at that file change; False: it finished before."""
    root.mkdir(exist_ok=True)
    return died_at_change(moment, root, lambda: Encoded(root, tower).cache.tokens(pictures))


@pytest.fixture
def remembered(monkeypatch):
    """Make files old enough for their digests to be remembered."""
    monkeypatch.setattr(data.cache.digests, "TICK_NS", -(10**18))


def test_restart_after_a_kill_at_any_file_change(tmp_path, tower, pictures, remembered):
    pictures = pictures[:5]
    pictures[2].write_bytes(b"no picture")
    unbroken = Encoded(tmp_path / "unbroken", tower)(pictures)
    moment = 0
    while killed(tmp_path / "once", tower, pictures, moment := moment + 1):
        assert same(Encoded(tmp_path / "once", tower)(pictures), unbroken), moment
        shutil.rmtree(tmp_path / "once")
    assert moment > 2 * 4, "creation and renaming of a file per image"


def test_repeated_kills_still_make_progress(tmp_path, tower, pictures, remembered):
    unbroken = Encoded(tmp_path / "unbroken", tower)(pictures)
    deaths = 0
    while killed(tmp_path / "often", tower, pictures, 25):
        deaths += 1
    last = Encoded(tmp_path / "often", tower)
    assert deaths > 2 and same(last(pictures), unbroken) and last.frames == 0


def test_damaged_file_is_recomputed(tmp_path, tower, pictures):
    unbroken = Encoded(tmp_path / "cache", tower)(pictures)
    cut, gone, *_ = sorted((tmp_path / "cache").glob("*/*.safetensors"))
    os.truncate(cut, 100)
    gone.unlink()
    mended = Encoded(tmp_path / "cache", tower)
    assert same(mended(pictures), unbroken) and 2 <= mended.frames < len(pictures)
    assert same(Encoded(tmp_path / "cache", tower)(pictures), unbroken)


def test_full_disk_keeps_stored_tokens(tmp_path, tower, pictures):
    encoded = Encoded(tmp_path / "cache", tower)
    with ExitStack() as full:

        def encode(frames: torch.Tensor) -> torch.Tensor:
            if encoded.frames == 8:
                full.enter_context(largest_file(100))
            return encoded.encode(frames)

        encoded.cache.encoder = replace(encoded.cache.encoder, encode=encode)
        with pytest.raises(UserError) as error:
            encoded(pictures)
    message = str(error.value)
    assert (
        f"dataset.feature_cache={tmp_path / 'cache'} cannot be written (File too" in message
        and "7 of 18 images" in message
    )
    assert "which stay stored" in message and "dataset.feature_cache=null" in message and "\n" not in message
    rest = Encoded(tmp_path / "cache", tower)
    assert same(rest(pictures), Encoded(tmp_path / "other", tower)(pictures)) and rest.frames == 11


def test_too_little_space_is_an_error_at_start(tmp_path, tower, pictures):
    encoded = Encoded(tmp_path / "cache", tower)
    huge = FrozenEncoder(description={}, shape=(10**7, 10**6), encode=encoded.encode)
    cache = FeatureCache(tmp_path / "cache", encoder=huge, read=encoded.cache.read, num_workers=0, show=False)
    with pytest.raises(UserError) as error:
        cache.tokens(pictures)
    message = str(error.value)
    assert "the tokens of 18 images need 360,000,000,000,000 bytes and " in message and "\n" not in message
    assert f"{shutil.disk_usage(tmp_path).free:,}"[:3] in message and "dataset.feature_cache=null" in message
    assert encoded.frames == 0


def test_space_for_clips_is_estimated_from_their_length(tmp_path, tower):
    clips = [write_clip(tmp_path / f"{n}.mp4", n) for n in (2, 4)]
    huge = FrozenEncoder(description={}, shape=(10**7, 10**6), encode=lambda frames: frames)
    read = FrameReader(tower.preprocess, max_frames=100)
    cache = FeatureCache(tmp_path / "cache", encoder=huge, read=read, num_workers=0, show=False)
    with pytest.raises(UserError, match=r"2 images need 120,000,000,000,000 bytes"):
        cache.tokens(clips)


@pytest.mark.parametrize("name", ["file", "file/below"])
def test_path_that_is_a_file_is_rejected(tmp_path, tower, name):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=rf"feature_cache={tmp_path / name} is not a folder and cannot be created"):
        Encoded(tmp_path / name, tower)


@contextmanager
def without_rights():
    """Runs as another user, since root may write everywhere."""
    mighty = os.geteuid() == 0
    if mighty:
        os.seteuid(65534)
    try:
        yield
    finally:
        if mighty:
            os.seteuid(0)


def test_read_only_cache(tower):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        pictures = write_pictures(folder, 6)
        pictures[3].write_bytes(b"no picture")
        tokens = Encoded(folder / "cache", tower)(pictures[:5])
        for path in [folder / "cache", *(folder / "cache").rglob("*")]:
            path.chmod(0o555 if path.is_dir() else 0o444)
        before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
        with without_rights():
            assert same(Encoded(folder / "cache", tower)(pictures[:5]), tokens)
            with pytest.raises(UserError, match=r"cannot be written \(Permission denied.* after 4 of 6 images"):
                Encoded(folder / "cache", tower)(pictures)
        assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
        for path in [folder / "cache", *(folder / "cache").glob("*/")]:
            path.chmod(0o755)


# --- several at once -------------------------------------------------------------------------------------------------


def fill_slowly(root: Path, tower: VisionEncoder, pictures: list[Path], start, results) -> None:
    encoded = Encoded(root, tower)
    encode = encoded.cache.encoder.encode

    def slow(frames: torch.Tensor) -> torch.Tensor:
        time.sleep(0.1)
        return encode(frames)

    encoded.cache.encoder = replace(encoded.cache.encoder, encode=slow)
    start.wait()
    tokens = encoded(pictures)
    results.put((encoded.frames, [t.numpy() for t in tokens]))


def at_once(root: Path, tower: VisionEncoder, pictures: list[Path], count: int = 2) -> tuple[list[int], list[list]]:
    """Return for each process the number of encoded frames and the tokens."""
    start, results = fork.Barrier(count), fork.Queue()
    processes = [fork.Process(target=fill_slowly, args=(root, tower, pictures, start, results)) for _ in range(count)]
    for process in processes:
        process.start()
    found = [results.get(timeout=300) for _ in processes]
    for process in processes:
        process.join()
    return [frames for frames, _ in found], [[torch.from_numpy(t) for t in tokens] for _, tokens in found]


def test_second_process_waits_for_the_first(tmp_path, tower, pictures, capfd):
    frames, tokens = at_once(tmp_path / "cache", tower, pictures)
    assert sorted(frames) == [0, len(pictures)]
    assert all(same(found, Encoded(tmp_path / "alone", tower)(pictures)) for found in tokens)
    assert "waiting for process" in (printed := capfd.readouterr().err) and "filling the feature cache since" in printed


def test_moved_cache_stays_valid(tmp_path, tower, pictures):
    before = Encoded(tmp_path / "cache", tower)(pictures)
    shutil.move(tmp_path / "cache", tmp_path / "moved")
    moved = Encoded(tmp_path / "moved", copy.deepcopy(tower))
    assert same(moved(pictures), before) and moved.frames == 0
