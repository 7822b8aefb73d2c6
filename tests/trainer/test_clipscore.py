"""CLIPScore: values by hand from vectors, and a small real CLIP from its file to the scores."""

from __future__ import annotations

import json

import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from common.errors import UserError
from tests.helpers.tiny import VISION, go_offline, write_open_clip, write_pictures
from trainer.metrics.clipscore import Clip, clip_s, clip_scores, ref_clip_s

ARCHITECTURE = "tiny-clip-with-text-of-the-tests"
TEXT = {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}  # open_clip's own vocabulary
CAPTIONS = {"a": "a small boat", "b": "dark clouds", "c": "a small boat"}
REFERENCES = {"a": ["a boat", "the sea"], "b": ["dark clouds", "rain"], "c": ["yellow flowers"]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip")
    torch.manual_seed(0)
    config = {"embed_dim": 24, "vision_cfg": VISION, "text_cfg": TEXT}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))
    weights = {name: value.contiguous() for name, value in open_clip.CLIP(**config).state_dict().items()}
    weights["text_projection"] *= -1  # otherwise all cosines of picture and text are negative with this seed
    save_file(weights, folder / "open_clip_model.safetensors")
    (folder / f"{ARCHITECTURE}.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder / f"{ARCHITECTURE}.json")
    return folder


@pytest.fixture
def images(tmp_path):
    return dict(zip(CAPTIONS, write_pictures(tmp_path / "pictures", len(CAPTIONS)), strict=True))


def unit(*degrees: float) -> torch.Tensor:
    """Return unit vectors in the plane at these angles."""
    angles = torch.tensor(degrees, dtype=torch.float64).deg2rad()
    return torch.stack([angles.cos(), angles.sin()], dim=1)


# --- the formulas ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("angle", "expected"), [(0, 2.5), (60, 1.25), (-60, 1.25), (90, 0.0), (120, 0.0), (180, 0.0)])
def test_clipscore_is_two_and_a_half_cosines_and_never_negative(angle, expected):
    assert clip_s(unit(0)[0], unit(angle)[0]) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("by_picture", "references", "expected"),
    [
        (1.25, [60], 2 * 1.25 * 0.5 / 1.75),
        (1.25, [150, 60, 100], 2 * 1.25 * 0.5 / 1.75),  # the closest reference counts
        (2.5, [0], 2 * 2.5 * 1 / 3.5),  # a caption equal to a reference
        (1.25, [120, 180], 0.0),  # no cosine above 0
        (0.0, [0], 0.0),
        (0.0, [120], 0.0),
    ],
)
def test_refclipscore_is_the_harmonic_mean_with_the_nearest_reference(by_picture, references, expected):
    assert ref_clip_s(by_picture, unit(0)[0], unit(*references)) == pytest.approx(expected, abs=1e-6)


# --- a real model ----------------------------------------------------------------------------------------------------


def by_hand(folder, image, caption, references):
    """Return both scores as defined in the paper, with open_clip's own functions."""
    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    with torch.no_grad():
        picture = model.eval().encode_image(transform(Image.open(image))[None])
        texts = model.encode_text(tokenizer([f"A photo depicts {text}" for text in (caption, *references)]))
    cosine = torch.nn.functional.cosine_similarity
    score = 2.5 * max(cosine(picture, texts[:1]).item(), 0)
    nearest = max(cosine(texts[:1], texts[1:]).max().item(), 0)
    return score, 2 / (1 / score + 1 / nearest) if score and nearest else 0.0


@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_scores_match_the_paper_for_any_batch_size(folder, images, batch_size):
    found = clip_scores(CAPTIONS, REFERENCES, images, pretrained_name=str(folder), batch_size=batch_size)
    assert found.notes == [] and found.clip == str(folder)
    for image in CAPTIONS:
        expected = by_hand(folder, images[image], CAPTIONS[image], REFERENCES[image])
        assert tuple(found.per_image[image].values()) == pytest.approx(expected, abs=1e-5)
    for name, score in found.scores.items():
        assert score == pytest.approx(sum(found.per_image[image][name] for image in CAPTIONS) / 3)
    assert list(found.scores) == ["CLIPScore", "RefCLIPScore"]
    assert all(each["CLIPScore"] > 0 for each in found.per_image.values())  # otherwise the comparison is trivial


def test_match_is_the_share_of_captions_closest_to_their_own_picture(folder, images):
    captions = {"a": "a small boat", "b": "dark clouds", "c": "yellow flowers"}
    blocks = [["a", "b", "c"], ["c", "a"]]
    found = clip_scores(captions, REFERENCES, images, blocks=blocks, pretrained_name=str(folder))
    clip = Clip(str(folder), None, section="model.vision")
    texts, pictures = clip.texts([*captions.values()], 4), clip.pictures(images, 4, 10**6, [])
    for id, text in captions.items():
        own, *others = (float(texts[text] @ pictures[other]) for other in sorted(images, key=lambda other: other != id))
        assert found.per_image[id]["CLIP match"] == float(own > max(others))
    assert found.scores["CLIP match"] == pytest.approx(sum(v["CLIP match"] for v in found.per_image.values()) / 3)
    alone = clip_scores(captions, REFERENCES, images, blocks=[["a"], ["b", "c"]], pretrained_name=str(folder))
    assert "CLIP match" not in alone.per_image["a"] and "CLIP match" in alone.per_image["b"]


def test_file_with_architecture_gives_the_same_as_the_folder(folder, images):
    file = folder / "open_clip_model.safetensors"
    found = clip_scores(CAPTIONS, REFERENCES, images, pretrained_name=str(file), architecture=ARCHITECTURE)
    same = clip_scores(CAPTIONS, REFERENCES, images, pretrained_name=str(folder))
    assert found.per_image == same.per_image
    assert found.clip == f"{ARCHITECTURE} ({file.name})"


def test_the_vectors_are_of_length_one_in_float32(folder, images):
    clip = Clip(str(folder), None, section="clip")
    for vectors in (clip.texts(["x", "naïveté 日本", "", "word " * 100], 2), clip.pictures(images, 2, 10**6, [])):
        for vector in vectors.values():
            assert vector.dtype == torch.float32 and float(vector.norm()) == pytest.approx(1.0, abs=1e-6)


def test_the_same_picture_and_text_have_the_same_score_wherever_they_stand(folder, images):
    images = {**images, "c": images["a"]}
    found = clip_scores(CAPTIONS, REFERENCES, images, pretrained_name=str(folder), batch_size=2)
    assert found.per_image["a"]["CLIPScore"] == pytest.approx(found.per_image["c"]["CLIPScore"], abs=1e-6)
    assert found.per_image["a"]["RefCLIPScore"] != found.per_image["c"]["RefCLIPScore"]


def test_empty_caption_scores_zero(folder, images):
    found = clip_scores({**CAPTIONS, "a": " \n"}, REFERENCES, images, pretrained_name=str(folder))
    assert set(found.per_image["a"].values()) == {0.0}


# --- missing pictures and weights ------------------------------------------------------------------------------------


def test_unreadable_pictures_are_left_out_with_a_note(folder, images):
    whole = clip_scores(CAPTIONS, REFERENCES, images, pretrained_name=str(folder))
    images["b"].write_bytes(b"no picture")
    found = clip_scores(CAPTIONS, REFERENCES, images, pretrained_name=str(folder))
    assert list(found.per_image) == ["a", "c"]
    assert found.per_image["c"] == pytest.approx(whole.per_image["c"], abs=1e-5)
    (note,) = found.notes
    assert "1 of 3 images" in note and str(images["b"]) in note and "\n" not in note
    for image in images.values():
        image.unlink()
    found = clip_scores(CAPTIONS, REFERENCES, images, pretrained_name=str(folder))
    assert found.scores == {} and "no picture can be read" in found.notes[0]


def test_missing_weights_are_a_one_line_note(tmp_path, monkeypatch, images):
    go_offline(monkeypatch, tmp_path)
    for name, part in (
        ("ViT-B-32/openai", "test.clip.pretrained_name=PATH_OF_THE_FILE"),
        ("ViT-B-32/none", "test.clip.pretrained_name: open_clip has no weights 'none'"),
        ("hf-hub:nobody/nothing", "hf-hub:nobody/nothing"),
    ):
        found = clip_scores(CAPTIONS, REFERENCES, images, pretrained_name=name, section="test.clip")
        assert found.scores == {} and found.per_image == {} and found.clip is None
        (note,) = found.notes
        assert note.startswith("CLIPScore and RefCLIPScore left out: ") and part in note
        assert "\n" not in note and "model.vision" not in note


def test_weights_of_another_text_encoder_are_a_one_line_note(tmp_path, images):
    folder = write_open_clip(tmp_path / "clip")
    config = json.loads((folder / "open_clip_config.json").read_text())
    config["model_cfg"]["text_cfg"]["vocab_size"] = 49408
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    found = clip_scores(CAPTIONS, REFERENCES, images, pretrained_name=str(folder))
    assert found.scores == {} and len(found.notes) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": {}}, r"'a' has a caption but no picture \(3 "),
        ({"references": {"a": ["x"]}}, "'b' has a prediction but no reference"),
        ({"references": {**REFERENCES, "d": ["x"]}}, "'d' has references but no prediction"),
        ({"references": {**REFERENCES, "b": [" "]}}, "'b' has no reference text"),
    ],
)
def test_mismatched_ids_are_refused(folder, images, change, message):
    given = {"captions": CAPTIONS, "references": REFERENCES, "images": images, **change}
    with pytest.raises(UserError, match=message):
        clip_scores(**given, pretrained_name=str(folder))
