"""The demo generator: reproducible files, balanced labels, and explanations that match the pictures."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from common.errors import UserError
from common.reading import BACKBONES
from data.demo import annotations, clearest, example_of, write_demo
from data.demo.lexicon import lexicon
from data.demo.paint import paint
from data.demo.scenes import SPLITS, scene_of, stream
from data.demo.sentences import COLORS, NOUNS, STROKES, WHERE
from data.demo.subjects import SUBJECTS
from data.emotions import EMOTIONS
from data.tokenizer import load_tokenizer

SMALL = {"seed": 7, "num_train": 27, "num_val": 9, "num_test": 18, "image_size": 32}


def _files(root: Path) -> dict[str, bytes]:
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("demo") / "demo"
    write_demo(root, **SMALL)
    return root


@pytest.fixture(scope="module")
def examples() -> list:
    return [example_of(2021, "train", index) for index in range(900)]


def _annotations(root: Path, split: str) -> dict:
    return json.loads((root / f"artEmisX_{split}.json").read_text(encoding="utf-8"))


def test_same_seed_gives_same_bytes_in_another_process(demo: Path, tmp_path: Path) -> None:
    options = [f"--{key.replace('_', '-')}={value}" for key, value in SMALL.items()]
    command = [sys.executable, "-m", "data.demo", "--root", str(tmp_path / "again"), *options]
    subprocess.run(command, check=True, env={**os.environ, "PYTHONHASHSEED": "99"}, cwd=Path(__file__).parents[2])
    assert _files(tmp_path / "again") == _files(demo)


def test_picture_depends_on_seed_split_and_index_only() -> None:
    def pixels(seed: int, split: str, index: int) -> bytes:
        return paint(scene_of(seed, split, index), stream(seed, split, index, "paint"), image_size=32)[0].tobytes()

    first = pixels(1, "train", 5)
    assert pixels(1, "train", 6) != first and pixels(2, "train", 5) != first and pixels(1, "val", 5) != first
    assert pixels(1, "train", 5) == first
    assert example_of(1, "train", 5) == example_of(1, "train", 5) != example_of(2, "train", 5)


def test_annotation_files_and_images(demo: Path) -> None:
    names: list[str] = []
    for split, count in (("train", 27), ("val", 9), ("test", 18)):
        rows = _annotations(demo, split)
        assert len(rows) == count
        for key, row in rows.items():
            assert 0 <= int(key) < 2**63
            assert set(row) == {
                "emotions",
                "explanations",
                "image_name",
                "origin_emotion_distribution",
                "image_emotion_distribution",
            }
            assert 5 <= len(row["emotions"]) == len(row["explanations"]) <= 8
            shares = [row["emotions"].count(emotion) / len(row["emotions"]) for emotion in EMOTIONS]
            assert row["origin_emotion_distribution"] == row["image_emotion_distribution"] == pytest.approx(shares)
            assert sum(shares) == pytest.approx(1)
            with Image.open(demo / "images" / row["image_name"]) as picture:
                assert (picture.format, picture.mode, picture.size) == ("PNG", "RGB", (32, 32))
            names.append(row["image_name"])
    assert len({Path(name).stem for name in names}) == len(names) == 54
    assert {p.relative_to(demo / "images").as_posix() for p in demo.glob("images/*/*.png")} == set(names)


def test_splits_have_all_emotions_and_samples_are_test_pictures(demo: Path) -> None:
    for split in SPLITS:
        counts = Counter(emotion for row in _annotations(demo, split).values() for emotion in row["emotions"])
        assert set(counts) == set(EMOTIONS)
    test = {Path(row["image_name"]).name: row for row in _annotations(demo, "test").values()}
    samples = list((demo / "samples").iterdir())
    assert len(samples) == 9
    for sample in samples:
        assert sample.read_bytes() == (demo / "images" / test[sample.name]["image_name"]).read_bytes()


def test_samples_have_the_highest_agreement() -> None:
    tests = [example_of(2021, "test", index) for index in range(90)]
    chosen = clearest(tests)
    assert set(chosen) == set(EMOTIONS)
    for emotion, example in chosen.items():
        column = EMOTIONS.index(emotion)
        assert example.shares[column] == max(e.shares[column] for e in tests if e.scene.emotion == emotion) > 0.5


def test_labels_are_balanced_and_annotators_disagree(examples: list) -> None:
    majority = [max(EMOTIONS, key=example.emotions.count) for example in examples]
    shares = [count / len(majority) for count in Counter(majority).values()]
    assert len(shares) == 9 and min(shares) > 0.08 and max(shares) < 0.15
    agreed = [(m, e) for m, e in zip(majority, examples, strict=True) if e.emotions.count(m) * 2 > len(e.emotions)]
    assert 0.82 < len(agreed) / len(examples) < 0.92
    assert np.mean([m == e.scene.emotion for m, e in agreed]) > 0.98
    assert np.mean([len(set(example.emotions)) > 1 for example in examples]) > 0.75


def test_file_name_does_not_contain_the_emotion(examples: list) -> None:
    for example in examples:
        assert not any(emotion in example.name.lower() for emotion in EMOTIONS)


def test_attributes_together_determine_the_emotion(examples: list) -> None:
    for name, bound in (("palette", 0.9), ("subject", 0.95), ("composition", 0.7), ("brush", 0.7)):
        table = Counter((getattr(e.scene, name), e.scene.emotion) for e in examples)
        values = {value for value, _ in table}
        best = sum(max(table[value, emotion] for emotion in EMOTIONS) for value in values)
        assert best / len(examples) < bound
    right = [EMOTIONS[int(np.argmax(e.scene.likelihood))] == e.scene.emotion for e in examples]
    assert np.mean(right) > 0.97


def test_facts_name_what_each_picture_shows(demo: Path) -> None:
    facts = json.loads((demo / "facts.json").read_text(encoding="utf-8"))
    rows = {id: row for split in SPLITS for id, row in _annotations(demo, split).items()}
    assert facts["images"].keys() == rows.keys()
    phrases = {(kind, value): phrases for kind, values in facts["phrases"].items() for value, phrases in values.items()}
    for id, row in rows.items():
        shown = facts["images"][id]
        true = [phrase for kind in facts["phrases"] for phrase in phrases.get((kind, shown[kind]), ())]
        assert all(_contains(text, true) for text in row["explanations"])
        assert all(0 <= left < right <= 1 and 0 <= top < bottom <= 1 for left, top, right, bottom in shown["boxes"])
        assert len(shown["boxes"]) == (1 if shown["composition"] != "scattered" else len(shown["boxes"])) > 0


def _contains(text: str, phrases: Iterable[str]) -> bool:
    return re.search(rf"\b({'|'.join(map(re.escape, phrases))})\b", text) is not None


def test_explanations_are_true_of_the_picture(examples: list) -> None:
    subjects = {key: one + many for key, (one, many) in NOUNS.items()}
    for example in examples[:200]:
        scene = example.scene
        for text in example.explanations:
            assert 5 <= len(text.split()) <= 25 and "{" not in text and text == text.lower()
            facts = subjects[scene.subject] + COLORS[scene.palette] + STROKES[scene.brush]
            assert _contains(text, facts), text
            rest = text
            for phrase in sorted(facts + WHERE[scene.composition], key=len, reverse=True):
                rest = rest.replace(phrase, "")
            untrue = [phrase for k in subjects if k != scene.subject for phrase in subjects[k]]
            untrue += [phrase for k in STROKES if k != scene.brush for phrase in STROKES[k]]
            untrue += [phrase for k in WHERE if k != scene.composition for phrase in WHERE[k]]
            assert not _contains(rest, untrue), text


def test_explanations_vary(examples: list) -> None:
    texts = [text for example in examples for text in example.explanations]
    assert len(set(texts)) / len(texts) > 0.9

    def fours(text: str) -> set[tuple[str, ...]]:
        words = text.split()
        return {tuple(words[i : i + 4]) for i in range(len(words) - 3)}

    shared = [
        len(fours(e.explanations[0]) & set().union(*map(fours, e.explanations[1:]))) / len(fours(e.explanations[0]))
        for e in examples
    ]
    assert 0.02 < np.mean(shared) < 0.35


def test_sentences_cover_every_scene() -> None:
    assert set(SUBJECTS) == set(NOUNS)
    scenes = [scene_of(3, "train", index) for index in range(900)]
    assert {s.subject for s in scenes} == set(NOUNS) and {s.palette for s in scenes} == set(COLORS)
    assert {s.composition for s in scenes} == set(WHERE) and {s.brush for s in scenes} == set(STROKES)


def test_lexicon_is_consistent_and_covers_a_fifth_of_the_words(demo: Path, examples: list) -> None:
    with (demo / "vad_lexicon_synthetic.csv").open(encoding="utf-8", newline="") as file:
        rows = {row["Word"]: tuple(map(float, list(row.values())[1:])) for row in csv.DictReader(file)}
    assert rows == lexicon() and list(
        csv.reader([(demo / "vad_lexicon_synthetic.csv").read_text().split("\n")[0]])
    ) == [["Word", "Valence", "Arousal", "Dominance"]]
    assert all(-1 <= value <= 1 for values in rows.values() for value in values)
    assert rows["serene"][0] > 0.5 > -0.3 > rows["serene"][1]
    assert rows["terrifying"][0] < -0.5 < 0.5 < rows["terrifying"][1]
    assert {emotion for emotion in EMOTIONS if " " not in emotion} <= set(rows)
    words = [word for e in examples for text in e.explanations for word in re.findall(r"[a-z']+", text)]
    assert 0.15 < np.mean([word in rows for word in words]) < 0.35
    assert np.mean([any(word in rows for word in text.split()) for e in examples for text in e.explanations]) > 0.85


def test_gpt2_tokenizer_splits_some_lexicon_words(demo: Path) -> None:
    tokenizer = load_tokenizer(str(BACKBONES / "gpt2"))
    assert tokenizer.convert_tokens_to_ids("<|endoftext|>") == tokenizer.eos_token_id < len(tokenizer) <= 1200
    row = next(iter(_annotations(demo, "test").values()))
    for text in [*row["explanations"], " the emotion is awe because Ünseen, wörds 12!"]:
        assert tokenizer.decode(tokenizer.encode(text), clean_up_tokenization_spaces=False) == text
    assert len(tokenizer.encode(" the emotion is")) == 3
    pieces = {word: len(tokenizer.encode(f" {word}")) for word in lexicon()}
    assert min(pieces.values()) == 1 < max(pieces.values())


def test_demo_is_written_again_only_for_other_settings(tmp_path: Path) -> None:
    root, settings = tmp_path / "demo", {**SMALL, "num_train": 9, "num_test": 9}
    calls: list[tuple[int, int]] = []
    write_demo(root, **settings, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(done, 27) for done in range(1, 28)]
    before = {p: p.stat().st_mtime_ns for p in root.rglob("*")}
    write_demo(root, **settings, progress=lambda done, total: calls.append((done, total)))
    assert len(calls) == 27 and {p: p.stat().st_mtime_ns for p in root.rglob("*")} == before
    write_demo(root, **{**settings, "seed": 8})
    assert json.loads((root / "manifest.json").read_text())["seed"] == 8
    assert not set(map(str, before)) >= {str(p) for p in root.glob("images/*/*.png")}
    assert [p.name for p in tmp_path.iterdir()] == ["demo"]


def test_other_folder_is_not_changed(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    (tmp_path / "manifest.json").write_text('{"generator": "another"}')
    with pytest.raises(UserError, match=re.escape(f"{tmp_path} is not empty and contains no demo")):
        write_demo(tmp_path, **SMALL)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["manifest.json", "thesis.txt"]
    with pytest.raises(UserError, match=r"thesis\.txt is a file"):
        write_demo(tmp_path / "thesis.txt", **SMALL)


def test_interruption_keeps_the_old_demo(tmp_path: Path) -> None:
    root, settings = tmp_path / "demo", {**SMALL, "num_train": 9, "num_test": 9}
    write_demo(root, **settings)
    before = _files(root)

    def interrupt(done: int, total: int) -> None:
        if done == 12:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_demo(root, **{**settings, "seed": 8}, progress=interrupt)
    assert _files(root) == before and [p.name for p in tmp_path.iterdir()] == ["demo"]


def test_errors_name_settings_out_of_range(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="num_val=3 is too small"):
        write_demo(tmp_path / "a", **{**SMALL, "num_val": 3})
    with pytest.raises(UserError, match="image_size=4 is out of range"):
        write_demo(tmp_path / "a", **{**SMALL, "image_size": 4})
    assert not list(tmp_path.iterdir())


def test_image_ids_are_distinct_and_stable(examples: list) -> None:
    rows = annotations(examples)
    assert len(rows) == len(examples)
    assert list(rows) == list(annotations([example_of(2021, "train", index) for index in range(900)]))
