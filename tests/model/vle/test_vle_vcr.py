"""VCR: names, tags, trimming, boxes, and the two pipelines against the model's own forward."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from common.errors import UserError
from model.vle.processor import VLEProcessor
from model.vle.vcr import NAMES, Choice, box_inputs, build_q2a, build_qa2r, name_objects, patch_range
from model.vle.vcr_heads import VLEForVCRQ2A, VLEForVCRQA2R
from model.vle.vcr_pipelines import VLEForVCRQ2APipeline, VLEForVCRQA2RPipeline
from tests.helpers.vle import WORDS, tiny_model, write_processor

OBJECTS = ["person", "person", "car", "person"]
SAMPLE = {
    "annot_id": "val-7",
    "img_fn": "film/scene.png",
    "metadata_fn": "film/scene.json",
    "objects": OBJECTS,
    "question": ["why", "is", [1, 0], "in", "the", [2], "?"],
    "answer_choices": [
        ["because", "it", "is", "calm"],
        [[3], "is", "a", "visitor"],
        ["no", [0], "is", "lost"],
        ["the", "sea", "is", "grey"],
    ],
    "answer_label": 2,
    "rationale_choices": [[[0], "is", "under", "the", "tree"], ["the", "storm"], [[3, 2]], ["it", "is", "a", "car"]],
    "rationale_label": 0,
}
BOXES = [[0, 0, 15, 15, 0.9], [40, 10, 79, 59, 0.8], [10, 20, 70, 58, 0.99], [500, 500, 600, 600, 0.7]]


@pytest.fixture(scope="module")
def processor(tmp_path_factory: pytest.TempPathFactory) -> VLEProcessor:
    return VLEProcessor.from_pretrained(write_processor(tmp_path_factory.mktemp("vle"), words=[*WORDS, *NAMES]))


@pytest.fixture(scope="module")
def q2a(processor: VLEProcessor) -> VLEForVCRQ2APipeline:
    return VLEForVCRQ2APipeline(model=tiny_model(VLEForVCRQ2A), device="cpu", vle_processor=processor)


@pytest.fixture(scope="module")
def qa2r(processor: VLEProcessor) -> VLEForVCRQA2RPipeline:
    return VLEForVCRQA2RPipeline(model=tiny_model(VLEForVCRQA2R), device="cpu", vle_processor=processor)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_scene(tmp_path, BOXES)
    return tmp_path


def write_scene(root: Path, boxes: Any, name: str = "scene") -> None:
    """Write the picture and the boxes of SAMPLE, or another picture with its boxes."""
    (root / "film").mkdir(exist_ok=True)
    random = np.random.default_rng(len(name))
    Image.fromarray(random.integers(0, 256, (60, 80, 3), dtype=np.uint8)).save(root / "film" / f"{name}.png")
    (root / "film" / f"{name}.json").write_text(json.dumps({"boxes": boxes, "width": 80, "height": 60}))


def read(processor: VLEProcessor, choice: Choice) -> list[str]:
    return processor.tokenizer.convert_ids_to_tokens(choice.input_ids)


def test_names_go_round() -> None:
    assert name_objects(["person", "car", "person"]) == (["Casey", "car", "Riley"], 2)
    assert name_objects(["person", "person"], 14) == (["Quinn", "Casey"], 1)
    assert name_objects(["person"] * 15)[0] == list(NAMES) and len(set(NAMES)) == 15


def test_texts_of_q2a(processor: VLEProcessor) -> None:
    names, _ = name_objects(OBJECTS)
    choices = build_q2a(SAMPLE["question"], SAMPLE["answer_choices"], names, processor.tokenizer)
    expected = "[CLS] ▁why ▁is ▁Riley ▁and ▁Casey ▁in ▁the ▁car ▁ ? [SEP] ▁Jessie ▁is ▁a ▁visitor [SEP]"
    assert " ".join(read(processor, choices[1])) == expected
    tagged = {token: tag for token, tag in zip(read(processor, choices[1]), choices[1].tags, strict=True) if tag >= 0}
    assert tagged == {"▁Riley": 1, "▁Casey": 0, "▁car": 2, "▁Jessie": 3}
    assert [choice.objects for choice in choices] == [[0, 1, 2], [0, 1, 2, 3], [0, 1, 2], [0, 1, 2]]


def test_texts_of_qa2r(processor: VLEProcessor) -> None:
    names, _ = name_objects(OBJECTS)
    choices = build_qa2r(["why"], ["no", [0]], SAMPLE["rationale_choices"], names, processor.tokenizer)
    assert " ".join(read(processor, choices[2])) == "[CLS] ▁why [SEP] ▁no ▁Casey [SEP] ▁Jessie ▁and ▁car [SEP]"
    assert choices[2].tags == [-1, -1, -1, -1, 0, -1, 3, -1, 2, -1]


def test_objects_are_ascending(processor: VLEProcessor) -> None:
    (choice,) = build_q2a([[8], [1]], [["no"]], ["car"] * 9, processor.tokenizer)  # a set of 8 and 1 is not in order
    assert choice.objects == [1, 8]
    assert box_inputs(choice, {})[2][:4] == [0, 3, 2, 0]


def test_words_with_private_use_characters_are_left_out(processor: VLEProcessor) -> None:
    with_private, without = (
        build_q2a(question, [["no"]], [], processor.tokenizer)
        for question in (["why", "\ue000is", "it"], ["why", "it"])
    )
    assert with_private == without


@pytest.mark.parametrize(("words", "wrong"), [([[4]], 4), ([[-1]], -1), (["a", ["b"]], "b")])
def test_an_object_that_is_not_there(processor: VLEProcessor, words: list, wrong: Any) -> None:
    with pytest.raises(UserError, match=f"names object {wrong}, and there are 4"):
        build_q2a(words, [["no"]], ["a", "b", "c", "d"], processor.tokenizer)


def lengths(processor: VLEProcessor, choices: list[Choice]) -> list[list[int]]:
    """Return the number of tokens in each part of each choice."""
    found = []
    for choice in choices:
        text = " ".join(read(processor, choice)).removeprefix("[CLS]").removesuffix("[SEP]")
        assert len(choice.tags) == len(choice.input_ids) <= 80
        found.append([len(part.split()) for part in text.split("[SEP]")])
    return found


@pytest.mark.parametrize(
    ("question", "answers", "expected"),
    [
        (70, [7, 8, 5], [[69, 7], [69, 8], [69, 5]]),  # the second answer cuts the question of all three
        (10, [90, 3], [[10, 67], [10, 3]]),
        (50, [50], [[39, 38]]),
        (38, [80], [[38, 39]]),
        (100, [1], [[76, 1]]),
    ],
)
def test_trimming_of_q2a(processor: VLEProcessor, question: int, answers: list[int], expected: list) -> None:
    choices = build_q2a(["blue"] * question, [["red"] * count for count in answers], [], processor.tokenizer)
    assert lengths(processor, choices) == expected


@pytest.mark.parametrize(
    ("question", "answer", "rationales", "expected"),
    [
        (10, 10, [100, 4], [[10, 10, 56], [10, 10, 4]]),
        (30, 20, [40, 2], [[18, 20, 38], [18, 20, 2]]),  # the first rationale cuts the question of both
        (5, 70, [10], [[1, 65, 10]]),
        (3, 4, [69, 90], [[3, 4, 69], [3, 4, 69]]),
    ],
)
def test_trimming_of_qa2r(
    processor: VLEProcessor, question: int, answer: int, rationales: list[int], expected: list
) -> None:
    texts = [["red"] * count for count in rationales]
    choices = build_qa2r(["blue"] * question, ["sea"] * answer, texts, [], processor.tokenizer)
    assert lengths(processor, choices) == expected


def test_a_shorter_limit(processor: VLEProcessor) -> None:
    choices = build_q2a(["blue"] * 9, [["red"] * 9], [], processor.tokenizer, max_length=12)
    assert lengths(processor, choices) == [[5, 4]] and len(choices[0].input_ids) == 12


@pytest.mark.parametrize("seed", range(5))
def test_patches_are_the_cells_that_a_box_touches(seed: int) -> None:
    random = np.random.default_rng(seed)
    left, top = random.uniform(0, 70), random.uniform(0, 50)
    box = [left, top, left + random.uniform(0, 30), top + random.uniform(0, 30)]
    cells = [
        number
        for number in range(16)
        if box[0] < (number % 4 + 1) * 20
        and box[2] >= number % 4 * 20
        and box[1] < (number // 4 + 1) * 15
        and box[3] >= number // 4 * 15
    ]
    assert patch_range(box, (80, 60), 4) == cells and cells


@pytest.mark.parametrize(
    ("box", "patches"),
    [
        ([0, 0, 80, 60], list(range(16))),
        ([-50, -50, 900, 900], list(range(16))),
        ([5, 5, 5, 5], [0]),  # a point
        ([20, 15, 39.9, 29.9, 0.5], [5]),
        ([20, 15, 40, 30], [5, 6, 9, 10]),
        ([80, 0, 90, 10], []),  # beyond the right edge
        ([0, 60, 10, 70], []),
        ([-30, -30, -1, -1], []),
        ([70, 40, 10, 50], []),  # right before left
    ],
)
def test_patches_at_the_edges(box: list[float], patches: list[int]) -> None:
    assert patch_range(box, (80, 60), 4) == patches


def test_patches_of_the_centre_crop(processor: VLEProcessor) -> None:
    part = processor.visible_part(128, 64)
    assert patch_range([32, 0, 47, 15], (128, 64), 4, part) == [0]
    assert patch_range([0, 0, 31, 63], (128, 64), 4, part) == []
    assert patch_range([0, 0, 31, 63], (128, 64), 4) == [0, 4, 8, 12]


def test_object_types_and_boxes() -> None:
    choice = Choice([1, 50, 51, 52, 53, 2], [-1, 7, -1, 3, 3, -1], [3, 7])
    assert box_inputs(choice, {3: [0, 1], 7: [5]}) == ([[0, 1], [5]], [2, 3], [0, 3, 0, 2, 2, 0])
    assert box_inputs(choice, {3: [], 7: [5]}) == ([[5]], [3], [0, 3, 0, 2, 2, 0])
    assert box_inputs(choice, {}) == ([], [], [0, 3, 0, 2, 2, 0])


def forward(pipeline: Any, root: Path, choices: list[Choice], patches: dict[int, list[int]]) -> Tensor:
    """Return the logits of the model's forward, called as the published pipeline does: one list for each choice."""
    inputs = [box_inputs(choice, patches) for choice in choices]
    padded = pipeline.vle_processor.tokenizer.pad(
        {"input_ids": [choice.input_ids for choice in choices]},
        padding="max_length",
        max_length=80,
        return_tensors="pt",
    )
    image = pipeline.vle_processor(images=root / SAMPLE["img_fn"], return_tensors="pt")
    with torch.no_grad():
        return pipeline.model(
            input_ids=[ids[None] for ids in padded["input_ids"]],
            attention_mask=[mask[None] for mask in padded["attention_mask"]],
            pixel_values=image["pixel_values"],
            patch_ids=[[boxes] for boxes, _, _ in inputs],
            extend_token_type_ids=[([box_types], [text_types]) for _, box_types, text_types in inputs],
        ).logits[0]


PATCHES = {number: patch_range(box, (80, 60), 4) for number, box in enumerate(BOXES)}


def test_q2a_equals_the_forward(q2a: VLEForVCRQ2APipeline, root: Path) -> None:
    choices = build_q2a(
        SAMPLE["question"], SAMPLE["answer_choices"], name_objects(OBJECTS)[0], q2a.vle_processor.tokenizer
    )
    expected = forward(q2a, root, choices, PATCHES)
    assert expected.std() > 1e-3
    (result,) = q2a(vcr_image_root=str(root), meta_inputs=SAMPLE)
    torch.testing.assert_close(result["score"], expected, atol=1e-5, rtol=0)
    assert result["pred"].tolist() == [int(expected.argmax())]
    assert int(result["pred"][0] + 1) == int(expected.argmax()) + 1  # as in the published example


def test_qa2r_equals_the_forward(qa2r: VLEForVCRQA2RPipeline, root: Path) -> None:
    names, tokenizer = name_objects(OBJECTS)[0], qa2r.vle_processor.tokenizer
    found = {}
    for label in (2, 1):
        choices = build_qa2r(
            SAMPLE["question"], SAMPLE["answer_choices"][label], SAMPLE["rationale_choices"], names, tokenizer
        )
        found[label] = forward(qa2r, root, choices, PATCHES)
    torch.testing.assert_close(qa2r(root, SAMPLE)[0]["score"], found[2], atol=1e-5, rtol=0)
    torch.testing.assert_close(qa2r(root, SAMPLE, answer=1)[0]["score"], found[1], atol=1e-5, rtol=0)
    unlabelled = {key: value for key, value in SAMPLE.items() if not key.endswith("label")}
    torch.testing.assert_close(qa2r(root, unlabelled, answer=2)[0]["score"], found[2], atol=1e-5, rtol=0)
    assert (found[1] - found[2]).abs().max() > 1e-3


def test_labels_are_not_needed(q2a: VLEForVCRQ2APipeline, root: Path) -> None:
    unlabelled = {key: SAMPLE[key] for key in q2a.needed}
    assert torch.equal(q2a(root, unlabelled)[0]["score"], q2a(root, SAMPLE)[0]["score"])


@pytest.mark.parametrize("label", [None, 4, -1, "2"])
def test_qa2r_needs_the_right_answer(qa2r: VLEForVCRQA2RPipeline, root: Path, label: Any) -> None:
    with pytest.raises(UserError, match="annotation val-7: the right answer is needed, 0 to 3"):
        qa2r(root, SAMPLE | {"answer_label": label})


def test_names_begin_anew(q2a: VLEForVCRQ2APipeline, root: Path) -> None:
    first, second = q2a(root, SAMPLE)[0]["score"], q2a(root, SAMPLE)[0]["score"]
    assert torch.equal(first, second)
    carrying = VLEForVCRQ2APipeline(q2a.model, "cpu", q2a.vle_processor, carry_names=True)
    first_carried, second_carried = carrying(root, SAMPLE)[0]["score"], carrying(root, SAMPLE)[0]["score"]
    torch.testing.assert_close(first_carried, first)
    assert (second_carried - first).abs().max() > 1e-3


def test_a_list_equals_single_annotations(q2a: VLEForVCRQ2APipeline, root: Path, monkeypatch: Any) -> None:
    write_scene(root, [[1, 1, 30, 30, 1]] * 4, "other")
    other = SAMPLE | {"img_fn": "film/other.png", "metadata_fn": "film/other.json", "question": ["what", "?"]}
    samples = [SAMPLE, other, SAMPLE | {"answer_choices": SAMPLE["answer_choices"][:2]}, other]
    single = [q2a(root, sample)[0] for sample in samples]
    counts: list[int] = []
    tower = q2a.model.vle.get_image_features
    monkeypatch.setattr(q2a.model.vle, "get_image_features", lambda pixels: counts.append(len(pixels)) or tower(pixels))
    results = VLEForVCRQ2APipeline(q2a.model, "cpu", q2a.vle_processor, batch_size=5)(root, samples)
    assert sum(counts) == 2
    assert [len(result["score"]) for result in results] == [4, 4, 2, 4]
    for result, expected in zip(results, single, strict=True):
        torch.testing.assert_close(result["score"], expected["score"], atol=1e-5, rtol=0)
        assert torch.equal(result["pred"], expected["pred"])


def test_a_box_outside_is_left_out(q2a: VLEForVCRQ2APipeline, root: Path, tmp_path: Path) -> None:
    outside = q2a(root, SAMPLE)[0]["score"]
    write_scene(tmp_path, BOXES[:3])  # no box for the last object
    assert torch.equal(q2a(root, SAMPLE)[0]["score"], outside)
    write_scene(tmp_path, [*BOXES[:3], []])
    assert torch.equal(q2a(root, SAMPLE)[0]["score"], outside)
    write_scene(tmp_path, [*BOXES[:3], [0, 0, 30, 30, 1]])
    difference = (q2a(root, SAMPLE)[0]["score"] - outside).abs()
    assert difference[1] > 1e-4 and difference[[0, 2, 3]].max() < 1e-5  # only the second answer names it


@pytest.mark.parametrize("boxes", [[], None])
def test_no_boxes(q2a: VLEForVCRQ2APipeline, root: Path, boxes: Any) -> None:
    write_scene(root, boxes)
    choices = build_q2a(
        SAMPLE["question"], SAMPLE["answer_choices"], name_objects(OBJECTS)[0], q2a.vle_processor.tokenizer
    )
    expected = forward(q2a, root, choices, {})
    torch.testing.assert_close(q2a(root, SAMPLE)[0]["score"], expected, atol=1e-5, rtol=0)


def test_no_objects(q2a: VLEForVCRQ2APipeline, root: Path) -> None:
    plain = {"objects": [], "question": ["why", "?"], "answer_choices": [["yes"], ["no"], ["a", "boat"], ["fear"]]}
    assert q2a(root, SAMPLE | plain)[0]["score"].isfinite().all()


def test_boxes_on_the_centre_crop(q2a: VLEForVCRQ2APipeline, root: Path) -> None:
    cropped = VLEForVCRQ2APipeline(q2a.model, "cpu", q2a.vle_processor, grid="crop")
    part = q2a.vle_processor.visible_part(80, 60)
    patches = {number: patch_range(box, (80, 60), 4, part) for number, box in enumerate(BOXES)}
    assert patches != PATCHES
    choices = build_q2a(
        SAMPLE["question"], SAMPLE["answer_choices"], name_objects(OBJECTS)[0], q2a.vle_processor.tokenizer
    )
    torch.testing.assert_close(
        cropped(root, SAMPLE)[0]["score"], forward(q2a, root, choices, patches), atol=1e-5, rtol=0
    )


def test_more_objects_than_token_types(processor: VLEProcessor, root: Path) -> None:
    model = tiny_model(VLEForVCRQ2A, num_token_types=4)
    with pytest.raises(UserError, match="2 objects at most"):
        VLEForVCRQ2APipeline(model, "cpu", processor)(root, SAMPLE)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"objects": ["person"]}, "annotation val-7: a text names object 1, and there are 1"),
        ({"img_fn": "film/none.png"}, r"none\.png cannot be read"),
        ({"metadata_fn": "film/none.json"}, r"none\.json is missing"),
        ({"metadata_fn": "film/scene.png"}, r"scene\.png cannot be read as JSON"),
    ],
)
def test_wrong_annotations(q2a: VLEForVCRQ2APipeline, root: Path, change: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        q2a(root, SAMPLE | change)


@pytest.mark.parametrize("boxes", [[[1, 2, 3]], [5], ["abcd"], [[1, 2, None, 4]], [[0, 0, 1e400, 5]]])
def test_wrong_boxes(q2a: VLEForVCRQ2APipeline, root: Path, boxes: Any) -> None:
    write_scene(root, boxes)
    with pytest.raises(UserError, match=r"scene\.json: each of its boxes must be"):
        q2a(root, SAMPLE)


def test_missing_keys_and_lists(q2a: VLEForVCRQ2APipeline, qa2r: VLEForVCRQA2RPipeline, root: Path) -> None:
    with pytest.raises(UserError, match="annotation val-7 has no objects, question"):
        q2a(root, {key: value for key, value in SAMPLE.items() if key not in ("objects", "question")})
    with pytest.raises(UserError, match="has no rationale_choices"):
        qa2r(root, {key: value for key, value in SAMPLE.items() if key != "rationale_choices"})
    with pytest.raises(UserError, match="empty list"):
        q2a(root, [])
    with pytest.raises(UserError, match="needs a VLEForVCRQA2R, not a VLEForVCRQ2A"):
        VLEForVCRQA2RPipeline(q2a.model, "cpu", q2a.vle_processor)
