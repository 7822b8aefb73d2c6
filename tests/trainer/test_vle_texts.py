"""The texts beside each picture: pure functions of seed, epoch and index, with the right targets."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path

import pytest
import torch

from common.errors import UserError
from data.pairs import IGNORED, PairText
from data.readers.picture_rows import PictureRows
from data.readers.vcr import VcrRows
from data.samples import Samples
from data.schema import Sample
from model.vle.processor import PictureView, VLEProcessor
from tests.helpers.vle import WORDS, write_processor
from tests.helpers.vle_runs import BOX, COLORS, vcr_row, write_rows, write_vcr
from trainer.vle.texts import (
    EMOTION_QUESTION,
    WHOLE,
    Captions,
    EmotionTexts,
    Encoder,
    MatchTexts,
    PretrainTexts,
    RegionTexts,
    VcrTexts,
    VqaTexts,
    patch_labels,
    seen_boxes,
)

GRID = 4
CROP = (1 / 6, 0.0, 5 / 6, 1.0)  # of 60 × 40 pixels
CENTRE = [5, 6, 9, 10]  # patches of BOX in a square picture


@pytest.fixture(scope="module")
def processor(tmp_path_factory) -> VLEProcessor:
    return VLEProcessor.from_pretrained(write_processor(tmp_path_factory.mktemp("p"), 32, [*WORDS, *COLORS]))


@pytest.fixture(scope="module")
def encode(processor) -> Encoder:
    return Encoder(processor.tokenizer, 16)


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> PictureRows:
    root = tmp_path_factory.mktemp("rows")
    return PictureRows(write_rows(root, "train", 12), root / "images")


@pytest.fixture(scope="module")
def paintings() -> Samples:
    """30 pictures with two texts each; picture i has the emotions i % 3 and 8."""
    return Samples.pack(
        Sample(f"s{i}", Path(f"{i}.png"), (f"a boat {i}", f"the sea {i}"), (i % 3, 8), tuple([1 / 9] * 9))
        for i in range(30)
    )


def match(source: object, encode: Encoder, seed: int = 0, **changes) -> MatchTexts:
    return MatchTexts(Captions(source), encode, seed, **changes)


def pretrain(rows: PictureRows, encode: Encoder, seed: int = 0, masked: float = 0.15) -> PretrainTexts:
    objects = {name: label for label, name in enumerate(("boat", "house", "sky", "tree"))}
    return PretrainTexts(match(rows, encode, seed), GRID, masked, objects, rows)


def plain(texts: list[PairText]) -> list[tuple]:
    """Return the texts as comparable values."""
    return [
        (
            text.input_ids,
            {name: torch.as_tensor(value).tolist() for name, value in text.targets.items()},
            text.words,
            text.boxes,
            text.about,
        )
        for text in texts
    ]


@pytest.mark.parametrize("kind", ["match", "regions", "pretrain", "emotion"])
def test_texts_depend_on_seed_epoch_and_index_alone(kind, rows, paintings, encode):
    build = {
        "match": lambda seed: match(rows, encode, seed),
        "regions": lambda seed: RegionTexts(rows, encode, GRID, seed, count=1),
        "pretrain": lambda seed: pretrain(rows, encode, seed),
        "emotion": lambda seed: EmotionTexts(paintings, encode, seed, reasons=0.5),
    }[kind]
    calls = [(index, epoch) for epoch in range(4) for index in range(8)]
    one, other, reseeded = build(5), build(5), build(6)
    expected = {call: plain(one(*call)) for call in calls}
    state = torch.random.get_rng_state()
    random.seed(3)
    assert all(plain(other(*call)) == expected[call] for call in reversed(calls))
    assert torch.equal(torch.random.get_rng_state(), state), "dropout's generator was drawn from"
    if kind != "regions":  # each picture has one text with a region
        assert any(plain(reseeded(*call)) != expected[call] for call in calls)
        assert any(expected[index, 0] != expected[index, 1] for index in range(8))


def test_questions_have_the_soft_scores_of_the_vocabulary(rows, encode):
    answers = {"no": 0, "yes": 1, "blue": 2}  # "red" and the other colors are outside
    for index in (0, 1):
        color, boat = VqaTexts(rows, encode, answers)(index, 0)
        assert boat.targets["answers"].tolist() == pytest.approx([1.0, 0.3, 0.0])
        assert color.targets["answers"].tolist() == [0.0, 0.0, float(index == 1)]
        assert color.about["id"] == 10 * index and color.about["answers"] == {COLORS[index]: 1.0}


def test_texts_are_cut_to_the_limit(processor):
    short = Encoder(processor.tokenizer, 5)
    text = short("the boat is lost under an enormous sky")
    assert len(text.input_ids) == 5
    assert processor.decode(text.input_ids) == "[CLS] the boat is[SEP]"
    assert len(short("boat").input_ids) == 3


# --- matching --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("same_emotion", [False, True])
def test_the_foreign_text_is_never_true_of_the_picture(same_emotion, rows, paintings, encode):
    for source in (rows, paintings):
        texts, captions = match(source, encode, same_emotion=same_emotion), Captions(source)
        for epoch in range(10):
            for index in range(len(source)):
                own = {text for text, _ in captions(index)}
                right, wrong = texts(index, epoch)
                assert (right.targets["match"], wrong.targets["match"]) == (1, 0)
                assert right.about["text"] in own and wrong.about["text"] not in own


def test_the_foreign_text_has_the_same_emotion(paintings, encode):
    texts = match(paintings, encode, same_emotion=True)
    moods = {text: emotion for row in range(30) for text, emotion in Captions(paintings)(row)}
    pairs = [texts(index, epoch) for index in range(30) for epoch in range(4)]
    assert all(moods[right.about["text"]] == moods[wrong.about["text"]] for right, wrong in pairs)
    lax = [match(paintings, encode)(index, 0) for index in range(30)]
    assert any(moods[right.about["text"]] != moods[wrong.about["text"]] for right, wrong in lax)


def test_without_another_text_there_is_only_the_matching_one(encode):
    same = Samples.pack(Sample(f"s{i}", Path("x.png"), ("a boat",), (0,)) for i in range(3))
    assert [text.targets["match"] for text in match(same, encode)(0, 0)] == [1]
    lone = Samples.pack([Sample("a", Path("x.png"), ("a boat",)), Sample("b", Path("y.png"), ("", " "))])
    assert [text.targets["match"] for text in match(lone, encode)(0, 0)] == [1]
    assert match(lone, encode)(1, 0) == [], "a picture without a text"


# --- masked words ----------------------------------------------------------------------------------------------------


def test_words_are_masked_as_in_bert(processor):
    tokenizer, counts = processor.tokenizer, Counter()
    long = Samples.pack(Sample(f"s{i}", Path("x.png"), (" ".join(WORDS[i:]),)) for i in range(5))
    texts = PretrainTexts(match(long, Encoder(tokenizer, 80)), GRID, 0.15, {}, None)
    for index, epoch in ((index, epoch) for index in range(5) for epoch in range(60)):
        right, _, masked = texts(index, epoch)
        true, shown, labels = right.input_ids, masked.input_ids, masked.words
        assert (labels[0], labels[-1]) == (IGNORED, IGNORED) and (shown[0], shown[-1]) == (true[0], true[-1])
        for token, seen, label in list(zip(true, shown, labels, strict=True))[1:-1]:
            counts["tokens"] += 1
            if label == IGNORED:
                assert seen == token
                continue
            assert label == token
            counts["mask" if seen == tokenizer.mask_token_id else "same" if seen == token else "other"] += 1
    chosen = counts["mask"] + counts["same"] + counts["other"]
    assert chosen / counts["tokens"] == pytest.approx(0.15, abs=0.015)
    shares = {kind: counts[kind] / chosen for kind in ("mask", "same", "other")}
    assert shares == pytest.approx({"mask": 0.8, "same": 0.1, "other": 0.1}, abs=0.03)


# --- regions and hidden objects --------------------------------------------------------------------------------------


def test_boxes_are_those_of_the_visible_part(processor):
    part = PictureView(processor).part(60, 40)
    assert part == pytest.approx(CROP)
    assert seen_boxes([BOX], part) == [pytest.approx([0.125, 0.25, 0.875, 0.75])]
    assert seen_boxes([(0, 0, 0.1, 1)], part) == [], "outside"
    assert seen_boxes([(0, 0, 0.5, 1)], part) == [[0, 0, 0.5, 1]], "cut"
    assert patch_labels([BOX], GRID).nonzero().flatten().tolist() == CENTRE
    assert PictureView(processor).part(40, 60) == pytest.approx((0.0, 1 / 6, 1.0, 5 / 6))


def test_region_targets_follow_the_crop(rows, encode):
    for part, expected in ((WHOLE, CENTRE), (CROP, [4, 5, 6, 8, 9, 10]), ((0.0, 0.0, 0.2, 0.2), [])):
        (text,) = RegionTexts(rows, encode, GRID, 0)(1, 0, part)
        assert text.about["text"] == "a blue house under the sky", "the other texts name no region"
        assert text.targets["patches"].nonzero().flatten().tolist() == expected


def test_hidden_objects_are_patches_with_a_class(rows, encode):
    texts, found = pretrain(rows, encode), {}
    for epoch in range(20):
        *others, hidden = texts(2, epoch, CROP)
        assert all(text.boxes is None and text.targets["object"] == IGNORED for text in others)
        assert hidden.targets["match"] == IGNORED and hidden.words is None
        assert (hidden.targets["patches"] == IGNORED).all()
        found[hidden.targets["object"]] = hidden.boxes
    assert found == {3: [[4, 5, 6, 8, 9, 10]], 2: [[0, 1, 2, 3]]}, "tree and sky"


def test_objects_outside_the_crop_or_without_a_class_are_not_hidden(rows, encode):
    texts = pretrain(rows, encode)
    left = (0.0, 0.3, 0.1, 0.4)  # neither tree nor sky
    assert len(texts(2, 0, left)) == 4
    assert texts(2, 0, left)[-1].boxes is None and texts(2, 0, left)[-1].targets["object"] == IGNORED
    texts.objects = {"cloud": 0}
    assert len(texts(2, 0)) == 3


def test_pretraining_has_regions_for_the_matching_text_alone(rows, encode):
    seen = Counter()
    for epoch in range(30):
        right, wrong, *_ = pretrain(rows, encode)(0, epoch)
        assert (wrong.targets["patches"] == IGNORED).all()
        labels = right.targets["patches"]
        kind = "none" if (labels == IGNORED).all() else "box" if labels.any() else "empty"
        assert kind == {"a red": "box", "the b": "none", "a boa": "empty"}[right.about["text"][:5]]
        seen[kind] += 1
    assert len(seen) == 3


def test_pretraining_on_annotations_has_neither_regions_nor_objects(paintings, encode):
    texts = PretrainTexts(match(paintings, encode), GRID, 0.15, {}, None)(0, 0)
    assert len(texts) == 3 and all((text.targets["patches"] == IGNORED).all() for text in texts)


# --- emotions and VCR ------------------------------------------------------------------------------------------------


def test_emotions_have_a_question_or_a_reason_as_text(paintings, encode, processor):
    asked = encode(EMOTION_QUESTION).input_ids
    for index in range(30):
        (text,) = EmotionTexts(paintings, encode, 0)(index, 0)
        assert text.input_ids == asked
        assert text.targets["shares"].tolist() == pytest.approx([1 / 9] * 9)
    reasons = {text for row in range(30) for text, _ in Captions(paintings)(row)}
    kinds = Counter()
    for epoch in range(10):
        for index in range(30):
            (text,) = EmotionTexts(paintings, encode, 0, reasons=0.5)(index, epoch)
            read = processor.decode(text.input_ids, skip_special_tokens=True)
            kinds[text.input_ids == asked] += 1
            if text.input_ids != asked:
                assert read in reasons
                emotion = 8 if "sea" in read else index % 3
                assert text.targets["shares"].tolist() == [float(label == emotion) for label in range(9)]
    assert kinds[True] == pytest.approx(150, abs=40)


def test_emotions_without_texts_keep_the_question(encode):
    named = Samples.pack([Sample("a", Path("a.png"), ("",), (3,), None), Sample("b", Path("b.png"), ())])
    for index in (0, 1):
        (text,) = EmotionTexts(named, encode, 0, reasons=1.0)(index, 0)
        assert text.input_ids == encode(EMOTION_QUESTION).input_ids
        assert not text.targets["shares"].isnan().any()


@pytest.mark.parametrize("rationales", [False, True])
def test_vcr_choices_have_types_for_the_objects_that_they_name(tmp_path, processor, rationales):
    rows = VcrRows(write_vcr(tmp_path, "train", 3), tmp_path / "images")
    texts = VcrTexts(rows, Encoder(processor.tokenizer, 24), GRID, rationales)(1, 0, CROP)
    assert [text.targets["choice"] for text in texts] == [2 if rationales else 1] * 4
    first = "[CLS] why is Casey and Riley in the sea[SEP]"
    parts = ["yes", "dog is small", "a storm", "Casey feel fear"]
    if not rationales:
        parts = ["Casey is calm", "the dog is lost", "no", "Riley see a storm"]
    for text, part in zip(texts, parts, strict=True):
        decoded = processor.decode(text.input_ids)
        assert decoded.startswith(first) and decoded.endswith(f" {part}[SEP]")
        assert ("the dog is lost[SEP]" in decoded) == (rationales or part == "the dog is lost")
        names = {"Casey": 0, "Riley": 2} | ({"dog": 1} if "dog" in decoded else {})
        types = {name: 2 + rank for rank, (name, _) in enumerate(sorted(names.items(), key=lambda item: item[1]))}
        words = [processor.decode([token]).strip() for token in text.input_ids]
        assert text.token_types == [types.get(word, 0) for word in words]
        assert text.box_types == [types["Casey"], types["Riley"]], "the dog's box lies outside the crop"
        assert text.boxes == [[0, 1, 2, 4, 5, 6, 8, 9, 10], [10, 11, 14, 15]]
    about = texts[0].about
    assert about["question"] == "why is Casey and Riley in the sea" and about["choices"][3] == parts[3]


def test_vcr_faults_are_one_sentence(tmp_path, processor):
    path = write_vcr(tmp_path, "train", 2)
    row = {key: value for key, value in vcr_row(0).items() if not key.endswith("_label")}
    path.write_text(json.dumps(row) + "\n" + json.dumps({**vcr_row(1), "question": ["who", [7]]}) + "\n")
    rows, encode = VcrRows(path, tmp_path / "images"), Encoder(processor.tokenizer, 24)
    assert [text.targets["choice"] for text in VcrTexts(rows, encode, GRID, False)(0, 0)] == [IGNORED] * 4
    with pytest.raises(UserError, match=r"vle\.vcr=qa2r needs the right answer"):
        VcrTexts(rows, encode, GRID, True)(0, 0)
    with pytest.raises(UserError, match="names object 7, and there are 3"):
        VcrTexts(rows, encode, GRID, False)(1, 0)
