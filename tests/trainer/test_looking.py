"""Whether explanations depend on the picture: ranks, swapped subjects, the nearest training picture."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from omegaconf import OmegaConf

from data.collate import collate, collate_texts
from data.emotions import EMOTIONS
from data.loaders import make_loader
from data.readers.facts import Facts, read_facts
from data.samples import Samples
from model.decoding.scoring import text_log_probs
from tests.helpers.tiny import (
    GPT2,
    WORDS,
    make_aligner,
    make_captioner,
    make_dataset,
    run_mode,
    write_run,
    write_splits,
)
from trainer.prediction.looking import FIELDS, Looking
from trainer.prediction.matching import OF, blocks_of, rank_of, swapped_sentences
from trainer.setup.parts import Parts

SUBJECTS = {
    "boat": ("boat", "sailing boat", "boats"),
    "cat": ("cat", "kittens"),
    "owl": ("owl", "owls"),
    "fruit": ("plate of apples",),
}


def rows_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


# --- which pictures and sentences are compared -----------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 17, 70, 1000])
def test_blocks_hold_the_chosen_images_with_others_of_their_emotion(count):
    emotions = ["awe"] * 40 + ["fear"] * 20 + ["anger"] * 3 + ["sadness"]
    rows = [{"id": str(i), "emotion": emotion} for i, emotion in enumerate(emotions)]
    blocks, chosen = blocks_of(rows, count=count, seed=1)
    assert len(chosen) == min(count, len(rows))
    emotion_of = {row["id"]: row["emotion"] for row in rows}
    sizes = Counter(emotions)
    for block in blocks:
        (emotion,) = {emotion_of[id] for id in block}
        assert len(set(block)) == len(block) == min(OF, sizes[emotion])
    assert {id for id in chosen if emotion_of[id] != "sadness"} <= {id for block in blocks for id in block}
    assert (blocks, chosen) == blocks_of(rows, count=count, seed=1)
    assert chosen != blocks_of(rows, count=count, seed=2)[1] or count > len(rows)


@pytest.mark.parametrize(
    ("own", "scores", "rank"),
    [
        (0, [-1.0, -2.0, -3.0], 1.0),
        (1, [-1.0, -2.0, -3.0], 2.0),
        (2, [-1.0, -2.0, -2.0], 2.5),
        (1, [-7.0] * 16, 8.5),
        (0, [-7.0, -7.00001, -6.99999], 2.0),  # rounding
        (0, [-7.0], 1.0),
    ],
)
def test_rank_counts_ties_half(own, scores, rank):
    assert rank_of(own, torch.tensor(scores)) == rank


def swap(references, emotions=(), *, true=("boat",), emotion="awe", seed=0):
    row = {"id": "7", "emotion": emotion, "references": references, "reference_emotions": list(emotions)}
    facts = Facts(Path("facts.json"), {"subject": SUBJECTS}, {"7": {"subject": true}})
    return swapped_sentences([row], facts, seed=seed).get("7")


def test_one_subject_is_swapped_in_an_annotators_sentence():
    true, false, emotion = swap(["the Sailing boat is calm"], ["fear"])
    assert (true, emotion) == ("the Sailing boat is calm", "fear")
    assert false in {"the cat is calm", "the owl is calm", "the plate of apples is calm"}
    assert {swap(["the boats are calm"], ["fear"], seed=seed)[1] for seed in range(20)} == {
        "the kittens are calm",
        "the owls are calm",
    }
    assert {swap(["a boat"], ["fear"], seed=seed)[1] for seed in range(20)} == {"a cat", "a plate of apples"}
    assert swap(["an owl"], ["fear"], true=("owl",))[1] in {
        "an boat",
        "an cat",
        "an sailing boat",
        "an plate of apples",
    }


def test_sentence_of_the_predicted_emotion_comes_first():
    references = ["a boat at sea", "the boat is far", "my boat"]
    assert swap(references, ["fear", "awe", "awe"])[0] == "the boat is far"
    assert swap(references, ["fear", "anger", "fear"])[0] == "a boat at sea"
    assert swap(references)[0] == "a boat at sea", "captions without emotions"


@pytest.mark.parametrize(
    "references",
    [[], ["the sky"], ["a boat and a cat"], ["a boat, and a boat"], ["the cat"], ["boatswain and catalogue"]],
    ids=str,
)
def test_sentences_that_do_not_name_exactly_the_subject_are_left_out(references):
    assert swap(references, ["awe"] * len(references)) is None


def test_facts_without_subjects_give_no_pairs():
    rows = [{"id": "7", "emotion": None, "references": ["a boat"], "reference_emotions": []}]
    for phrases, images in (
        ({"place": SUBJECTS}, {"7": {}}),
        ({"subject": {"boat": ("boat",)}}, {"7": {"subject": ("boat",)}}),
    ):
        assert swapped_sentences(rows, Facts(Path(), phrases, images), seed=0) == {}


# --- measured by a network -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def captioner(template):
    """Large random weights, so that texts differ in likelihood between pictures."""
    return make_captioner(template, gates=0.9, seed=5, text__config={**GPT2, "initializer_range": 0.3})


@pytest.fixture
def looking(tmp_path, template, captioner):
    """20 test pictures, and 12 training pictures that equal the first of them, in other files."""

    def make(network=captioner, **keys) -> Looking:
        loaders = []
        for folder, count in (("test", 20), ("train", 12)):
            dataset = make_dataset(tmp_path / folder, template, network, count, texts_per_image=0)
            dataset.samples = Samples.pack(dataset.samples)
            loaders.append(make_loader(dataset, batch_size=4, num_workers=0, shuffle=False)[0])
        config = OmegaConf.create({
            "seed": 3, "dataset": {"facts": None}, "model": {"vision": {"trainable": False}},
            "trainer": {"test": {"match_images": 400}},
        })  # fmt: skip
        for key, value in keys.items():
            OmegaConf.update(config, key.replace("__", "."), value)
        parts = Parts(network, template, make_aligner(template), with_emotions=True)
        return Looking(config, parts, Accelerator(cpu=True), *loaders)

    return make


def predictions(looking, *, emotion=lambda i: EMOTIONS[i % 2]) -> list[dict]:
    words = random.Random(0)
    return [
        {
            "id": sample.id,
            "image": str(sample.path),
            "emotion": emotion(i),
            "explanation": " ".join(words.choices(WORDS, k=5)),
        }
        | {"references": list(sample.texts), "reference_emotions": [EMOTIONS[e] for e in sample.emotions]}
        for i, sample in enumerate(looking.loader.dataset.samples)
    ]


def log_prob(looking, id: str, explanation: str, emotion: str, *, picture: bool = True) -> float:
    """Of one text after one picture, alone in its batch."""
    captioner, template, dataset = looking.parts.captioner, looking.parts.template, looking.loader.dataset
    index = [sample.id for sample in dataset.samples].index(id)
    batch = collate([dataset[0, index]])
    text = collate_texts([explanation], [EMOTIONS.index(emotion)], template=template, aligner=looking.parts.aligner)
    visual = captioner.look(batch.frames, batch.frame_mask)
    return float(text_log_probs(captioner, visual if picture else visual.without_picture(), text))


@torch.no_grad()
def test_rank_equals_a_direct_comparison(looking):
    looking = looking()
    rows = predictions(looking)
    assert looking.add_to(rows) == []
    blocks, _ = blocks_of(rows, count=400, seed=3)
    assert [len(block) for block in blocks] == [10, 10] and all(row["match"]["of"] == 10 for row in rows)
    for row in rows:
        (others,) = (block for block in blocks if row["id"] in block)
        scores = {id: log_prob(looking, id, row["explanation"], row["emotion"]) for id in others}
        assert row["match"]["rank"] == rank_of(others.index(row["id"]), torch.tensor([*scores.values()]))
    assert len({row["match"]["rank"] for row in rows}) > 4


@torch.no_grad()
def test_a_network_that_ignores_the_picture_ranks_at_random(looking, template):
    blind = make_captioner(template, seed=2, mapper__trainable=False)
    for parameter in blind.mapper.parameters():
        torch.nn.init.zeros_(parameter)
    looking = looking(blind)
    rows = predictions(looking)
    looking.add_to(rows)
    assert all(row["match"] == {"rank": 5.5, "of": 10} for row in rows)


@torch.no_grad()
def test_swap_equals_a_direct_comparison(looking, tmp_path):
    looking = looking(dataset__facts=str(tmp_path / "facts.json"))
    rows = predictions(looking)
    phrases = {word: [word] for word in ("boat", "storm", "sky", "calm")}
    images = {}
    for row in rows:
        named = [word for word in phrases if word in " ".join(row["references"])]
        images[row["id"]] = {"subject": random.Random(row["id"]).choice(named or [*phrases])}
    (tmp_path / "facts.json").write_text(json.dumps({"phrases": {"subject": phrases}, "images": images}))
    assert looking.add_to(rows) == []
    pairs = swapped_sentences(rows, read_facts(tmp_path / "facts.json"), seed=3)
    assert 3 < len(pairs) < 20 and {row["id"] for row in rows if "swap" in row} == {*pairs}
    for row in (row for row in rows if "swap" in row):
        true, false, emotion = pairs[row["id"]]
        for name, picture in (("right", True), ("blind", False)):
            better = log_prob(looking, row["id"], true, emotion, picture=picture)
            assert row["swap"][name] == (better > log_prob(looking, row["id"], false, emotion, picture=picture))
    assert len({row["swap"]["right"] for row in rows if "swap" in row}) == 2


@torch.no_grad()
def test_nearest_picture_is_that_of_the_highest_cosine(looking, captioner):
    """The same file is no neighbor; the explanation is of the predicted emotion if the neighbor has one."""
    looking = looking()
    rows = predictions(looking)
    looking.add_to(rows)
    training = looking.training.dataset.samples

    def feature(dataset, i):
        return captioner.look(dataset[0, i].frames[None], torch.ones(1, 1, dtype=torch.bool)).mean[0]

    known = torch.stack([feature(looking.training.dataset, i) for i in range(12)])
    alike = 0
    for i, row in enumerate(rows):
        cosines = torch.nn.functional.cosine_similarity(known, feature(looking.loader.dataset, i)[None])
        nearest = training[int(cosines.argmax())]
        texts = [text for text, e in zip(nearest.texts, nearest.emotions, strict=True) if EMOTIONS[e] == row["emotion"]]
        assert row["nearest"] in (texts or nearest.texts)
        alike += bool(texts)
    assert 0 < alike < 20
    looking.loader = looking.training  # tested on the training pictures
    rows = predictions(looking)
    looking.add_to(rows)
    assert not any(row["nearest"] in row["references"] for row in rows)


def test_results_are_repeatable_and_replaced(looking):
    looking = looking(trainer__test__match_images=6)
    rows = predictions(looking)
    texts = []
    for _ in range(2):  # a test that was killed after writing them begins with its rows
        looking.add_to(rows)
        for row in rows:
            row |= {"pointing": {"hit": True}, "group": "Cubism"}  # as mode=test does next
        texts.append(json.dumps(rows))
    assert texts[0] == texts[1] and sum("match" in row for row in rows) == 6
    looking.config.trainer.test.match_images, looking.training = 0, "there is none"
    assert looking.add_to(rows) == ["nearest training picture left out: there is none"]
    assert not any(field in row for row in rows for field in FIELDS)


def test_what_cannot_be_measured_is_left_out_with_the_reason(looking, template, tmp_path):
    one_each = looking(dataset__facts=str(tmp_path / "none.json"), model__vision__trainable=True)
    rows = predictions(one_each, emotion=lambda i: EMOTIONS[i % 2] if i < 2 else None)
    notes = one_each.add_to(rows)
    assert [note.partition(":")[0] for note in notes[:2]] == ["match left out", "swap left out"]
    assert "no two images have the same predicted emotion" in notes[0] and "none.json" in notes[1]
    assert notes[2] == "nearest training picture by features of the image encoder that was trained in this run"
    assert not any("match" in row or "swap" in row for row in rows)
    later = looking(make_captioner(template, vad__encoder="bidirectional"), dataset__facts="facts.json")
    assert [note.count("reads later words") for note in later.add_to(predictions(later))] == [1, 1]
    for row in (silent := predictions(later)):
        row["explanation"] = None
    assert later.add_to(silent) == []


def test_a_picture_that_is_gone_costs_no_more_than_its_own_values(looking):
    looking = looking()
    rows = predictions(looking)
    Path(rows[4]["image"]).unlink()
    assert looking.add_to(rows) == []
    assert not {"match", "nearest"} & rows[4].keys()
    assert all(row["match"]["of"] == (9 if i % 2 == 0 else 10) for i, row in enumerate(rows) if i != 4)


# --- mode=test -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(write_splits(tmp_path_factory.mktemp("run"), test=9), "run")


def test_mode_test_writes_the_values_into_the_rows(run, tmp_path):
    keys = {"pretrained_name": run, "dataset.test_ds.batch_size": 2}
    run_mode("test", keys)
    file = run / "test" / "predictions.jsonl"
    first, rows = file.read_bytes(), rows_of(file)
    assert all("nearest" in row for row in rows) and any("match" in row for row in rows)
    references = json.loads((run.parents[1] / "train" / "annotations.json").read_text())
    assert {row["nearest"] for row in rows} <= {text for one in references.values() for text in one["explanations"]}
    run_mode("test", {**keys, "dataset.feature_cache": tmp_path / "cache"})
    cached = rows_of(file)
    assert [row["nearest"] for row in cached] == [row["nearest"] for row in rows]
    run_mode("test", keys)
    assert file.read_bytes() == first


def test_an_interrupted_test_ends_with_the_same_rows(run, monkeypatch):
    keys = {"pretrained_name": run, "name": "again", "trainer.exp_dir": run.parent}
    run_mode("test", keys)
    file = run.parent / "again" / "test" / "predictions.jsonl"
    whole = file.read_bytes()
    file.unlink()

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Looking, "_add_nearest", stop)
        run_mode("test", keys)
    assert b"nearest" not in file.read_bytes() and (file.parent / "unfinished.json").exists()
    run_mode("test", keys)
    assert file.read_bytes() == whole and not (file.parent / "unfinished.json").exists()


def test_missing_training_data_is_noted(run, tmp_path):
    run_mode(
        "test",
        {"pretrained_name": run, "dataset.train_ds.json_path": tmp_path / "gone.json", "trainer.test.novelty": False},
    )
    notes = json.loads((run / "test" / "metrics.json").read_text())["notes"]
    assert any(note.startswith("nearest training picture left out: ") and "gone.json" in note for note in notes)


def test_large_training_data_without_cache_is_noted(run, monkeypatch):
    monkeypatch.setattr("trainer.prediction.nearest.MOST_IMAGES", 7)
    run_mode("test", {"pretrained_name": run, "trainer.test.match_images": 0})
    notes = json.loads((run / "test" / "metrics.json").read_text())["notes"]
    assert any("encoding 8 training images takes long; set dataset.feature_cache=FOLDER" in note for note in notes)
    assert not any(field in row for row in rows_of(run / "test" / "predictions.jsonl") for field in FIELDS)
