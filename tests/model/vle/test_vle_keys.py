"""VLE's files: names and shapes of the published weights, what a folder may lack, what is refused."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from common.errors import UserError
from model.vle import VLEConfig, VLEForITM, VLEForMLM, VLEForPBC, VLEForVCRQ2A, VLEForVCRQA2R, VLEForVQA, VLEModel
from tests.helpers.vle import tiny_model
from tests.model.vle.vle_files import (
    HEADS,
    LARGE,
    head_shapes,
    published_config,
    published_shapes,
    random_state,
    tiny_config,
    write_folder,
)

CONFIG = tiny_config()
CLASSES = {
    "vqa": VLEForVQA, "itm": VLEForITM, "pbc": VLEForPBC, "mlm": VLEForMLM, "q2a": VLEForVCRQ2A, "qa2r": VLEForVCRQA2R,
}  # fmt: skip
FILES = {  # what published and converted files differ in
    "as published": {},
    "buffers in fp32, from DeepSpeed's shards": {"position_ids": torch.float32},
    "no buffers": {"position_ids": None},
    "no prefix": {"prefix": False},
    "no output layer of MLM": {"decoder": False},
    "safetensors": {"safetensors": True, "position_ids": None, "decoder": False},
    "safetensors with everything": {"safetensors": True},
}


@pytest.fixture(autouse=True)
def warnings_are_errors():
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        yield


def base_config(**changes) -> dict:
    return published_config(labels=3129, **changes)


def vle_config(values: dict) -> VLEConfig:
    return VLEConfig(**{key: value for key, value in values.items() if key != "model_type"})


def assert_same_weights(model, state: dict[str, torch.Tensor]) -> None:
    """Compare all parameters of the model bit for bit."""
    found = {name.removeprefix("vle."): value for name, value in model.named_parameters()}
    assert set(found) <= set(state)
    for name, value in found.items():
        assert torch.equal(value, state[name]), name


def test_table_of_keys_is_the_published_one(shared_data):
    path = shared_data.parent / "specs" / "vle_base_keys.json"
    if not path.is_file():
        pytest.skip(f"no {path}")
    published, config = json.loads(path.read_text(encoding="utf-8")), base_config()
    found = published_shapes(config)
    assert len(found) == 704
    assert {name: list(shape) for name, shape in found.items()} == published["base"]
    for head in HEADS:
        assert {name: list(shape) for name, shape in head_shapes(config, head).items()} == published["heads"][head]


@pytest.mark.parametrize(
    ("sizes", "weights", "keys"), [({}, 378_328_320, 704), (LARGE, 930_356_224, 1088)], ids=["base", "large"]
)
def test_sizes(sizes, weights, keys):
    values = base_config(**sizes)
    with torch.device("meta"):
        model = VLEModel(vle_config(values))
    found = {name: tuple(value.shape) for name, value in model.named_parameters()}
    assert sum(value.numel() for value in model.parameters()) == weights
    assert len(found) + 2 == keys
    assert found == {name: shape for name, shape in published_shapes(values).items() if "position_ids" not in name}


def test_the_defaults_are_base():
    with torch.device("meta"):
        model = VLEModel(VLEConfig())
    assert sum(value.numel() for value in model.parameters()) == 378_328_320


@pytest.mark.parametrize("how", FILES.values(), ids=FILES)
@pytest.mark.parametrize("kind", [VLEModel, VLEForVQA, VLEForMLM])
def test_kinds_of_files(tmp_path, how, kind):
    state = random_state(CONFIG, HEADS)
    state["mpc_classifier.weight"] = torch.zeros(3, 3)  # a head that no class has
    model = kind.from_pretrained(write_folder(tmp_path, CONFIG, state, **how))
    assert not model.training
    assert_same_weights(model, state)


@pytest.mark.parametrize("prefix", [True, False])
def test_plain_encoder_file(tmp_path, prefix):
    state = random_state(CONFIG)
    assert_same_weights(VLEModel.from_pretrained(write_folder(tmp_path, CONFIG, state, prefix=prefix)), state)


@pytest.mark.parametrize("head", HEADS)
def test_saved_files_have_the_published_names(tmp_path, head):
    """A folder that is saved can be read by the published code, and comes back bit for bit."""
    kind = CLASSES[head]
    state = random_state(CONFIG, [head])
    model = kind.from_pretrained(write_folder(tmp_path / "first", CONFIG, state))
    model.save_pretrained(tmp_path / "second")
    saved = load_file(tmp_path / "second" / "model.safetensors")
    encoder = {f"vle.{name}": shape for name, shape in published_shapes(CONFIG).items() if "position_ids" not in name}
    wanted = {**encoder, **head_shapes(CONFIG, head)}
    found = {name: tuple(value.shape) for name, value in saved.items()}
    optional = {name for name in wanted if ".decoder." in name}  # tied: the published class fills them in
    assert {name: shape for name, shape in found.items() if name not in optional} == {
        name: shape for name, shape in wanted.items() if name not in optional
    }
    assert_same_weights(kind.from_pretrained(tmp_path / "second"), state)


def test_saved_encoder_has_no_prefix_and_the_same_configuration(tmp_path):
    model = VLEModel.from_pretrained(write_folder(tmp_path / "first", CONFIG, random_state(CONFIG)))
    model.save_pretrained(tmp_path / "second")
    saved = load_file(tmp_path / "second" / "model.safetensors")
    assert set(saved) == {name for name in published_shapes(CONFIG) if "position_ids" not in name}
    again = VLEModel.from_pretrained(tmp_path / "second")
    assert {**again.config.to_dict(), "architectures": None} == {**model.config.to_dict(), "architectures": None}
    stored = json.loads((tmp_path / "second" / "config.json").read_text(encoding="utf-8"))
    assert stored["model_type"] == "vle" and stored["vision_config"]["image_size"] == 32
    assert stored["text_config"]["model_type"] == "deberta-v2"
    assert stored["vision_config"]["model_type"] == "clip_vision_model"


def test_missing_head_is_a_warning(tmp_path):
    folder = write_folder(tmp_path, CONFIG, random_state(CONFIG, ["itm"]))
    with pytest.warns(UserWarning, match=r"vqa_classifier.*random"):
        model = VLEForVQA.from_pretrained(folder)
    assert 0 < model.vqa_classifier[0].weight.std() < 0.03, "Normal(0, 0.02)"
    assert torch.equal(model.vqa_classifier[1].weight, torch.ones(64))
    assert not model.vqa_classifier[3].bias.any()


@pytest.mark.parametrize(
    "name", ["cross_modal_text_layers.1.crossattention.self.key.bias", "text_model.encoder.rel_embeddings.weight",
             "vision_model.vision_model.post_layernorm.weight",
             "vision_model.vision_model.embeddings.position_embedding.weight"],
)  # fmt: skip
def test_missing_encoder_weight(tmp_path, name):
    state = random_state(CONFIG, ["itm"])
    del state[name]
    folder = write_folder(tmp_path, CONFIG, state)
    with pytest.raises(UserError, match=name):
        VLEForITM.from_pretrained(folder)


def test_half_a_head_is_a_warning(tmp_path):
    state = random_state(CONFIG, ["vqa"])
    del state["vqa_classifier.3.weight"]
    with pytest.warns(UserWarning, match="vqa_classifier"):
        VLEForVQA.from_pretrained(write_folder(tmp_path, CONFIG, state))


def test_weights_of_another_size_than_the_configuration(tmp_path):
    folder = write_folder(tmp_path, {**CONFIG, "intermediate_size": 48}, random_state(CONFIG))
    with pytest.raises(UserError, match=r"44.*48|48.*44"):
        VLEModel.from_pretrained(folder)


def test_weights_that_are_not_finite(tmp_path):
    state = random_state(CONFIG)
    name = next(iter(state))
    state[name] = torch.full_like(state[name], torch.nan)
    with pytest.raises(UserError, match="NaN or infinity"):
        VLEModel.from_pretrained(write_folder(tmp_path, CONFIG, state))


def with_image_size(size: int) -> dict:
    return {**CONFIG, "vision_config": {**CONFIG["vision_config"], "image_size": size}}


def test_position_table_of_another_size_than_the_configuration(tmp_path):
    folder = write_folder(tmp_path, with_image_size(48), random_state(CONFIG), position_ids=None)
    with pytest.raises(UserError, match=r"\b32\b.*\b48\b|\b48\b.*\b32\b"):
        VLEModel.from_pretrained(folder)


def test_position_table_is_resized_on_request(tmp_path):
    state = random_state(CONFIG)
    model = VLEModel.from_pretrained(write_folder(tmp_path / "first", CONFIG, state), image_size=48)
    assert model.config.vision_config.image_size == 48
    name = "vision_model.vision_model.embeddings.position_embedding.weight"
    old, new = state[name], dict(model.named_parameters())[name]
    assert torch.equal(new[0], old[0])
    grid = old[1:].reshape(1, 4, 4, -1).permute(0, 3, 1, 2)
    wanted = torch.nn.functional.interpolate(grid, size=(6, 6), mode="bicubic", align_corners=False)
    torch.testing.assert_close(new[1:], wanted.permute(0, 2, 3, 1).reshape(36, -1))
    ids, pixels = torch.tensor([[1, 5, 2]]), torch.randn(1, 3, 48, 48)
    with torch.no_grad():
        fused = model(ids, pixels, torch.ones_like(ids))
        model.save_pretrained(tmp_path / "second")
        again = VLEModel.from_pretrained(tmp_path / "second")(ids, pixels, torch.ones_like(ids))
    assert fused.image_embeds.shape == (1, 37, 32)
    torch.testing.assert_close(again.pooler_output, fused.pooler_output)


def test_pictures_of_another_size_are_refused(tmp_path):
    model = VLEModel.from_pretrained(write_folder(tmp_path, CONFIG, random_state(CONFIG)))
    with pytest.raises(UserError, match=r"48.*32"):
        model(torch.tensor([[1, 2]]), torch.zeros(1, 3, 48, 48), torch.ones(1, 2))


@pytest.mark.parametrize("keys", ["strings", "list"])
def test_labels_as_mapping_or_list(tmp_path, keys):
    labels = [f"answer {i}" for i in range(7)]
    config = {**CONFIG, "id2label": labels if keys == "list" else {str(i): text for i, text in enumerate(labels)}}
    model = VLEForVQA.from_pretrained(write_folder(tmp_path, config, random_state(CONFIG, ["vqa"])))
    assert model.config.id2label == dict(enumerate(labels))
    assert "answer 3" in model.config.label2id


def test_another_number_of_labels_on_request(tmp_path):
    """The encoder is kept, and of the head what still fits."""
    state = random_state(CONFIG, ["vqa"])
    folder = write_folder(tmp_path, CONFIG, state)
    with pytest.warns(UserWarning, match=r"vqa_classifier.*random"):
        model = VLEForVQA.from_pretrained(folder, id2label=["no", "yes", "two"])
    assert model.vqa_classifier[3].weight.shape == (3, 64) and len(model.config.label2id) == 3
    assert_same_weights(model.vle, state)


def test_number_keys_and_objects_as_tower_configurations():
    config = VLEConfig(id2label={0: "no", 1: "yes"})
    again = VLEConfig(text_config=config.text_config, vision_config=config.vision_config, id2label=["no", "yes"])
    assert again.id2label == config.id2label == {0: "no", 1: "yes"}
    assert again.vision_config.num_hidden_layers == 11 and again.text_config.num_hidden_layers == 12


def test_token_types_are_added_on_request(tmp_path):
    state = random_state(CONFIG)
    model = VLEModel.from_pretrained(write_folder(tmp_path, CONFIG, state), num_token_types=83)
    table = model.token_type_embeddings.weight
    assert table.shape == (83, 32) and torch.equal(table[:2], state["token_type_embeddings.weight"])


def test_a_pickle_that_runs_code_is_refused(tmp_path):
    class Payload:
        def __reduce__(self):
            return Path.touch, (tmp_path / "ran",)

    folder = write_folder(tmp_path, CONFIG, random_state(CONFIG))
    torch.save({"vle.weight": Payload()}, folder / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"pytorch_model\.bin"):
        VLEModel.from_pretrained(folder)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["config.json", "pytorch_model.bin"])
def test_missing_file(tmp_path, name):
    folder = write_folder(tmp_path, CONFIG, random_state(CONFIG))
    (folder / name).unlink()
    with pytest.raises(UserError, match=str(folder)):
        VLEModel.from_pretrained(folder)


def test_a_head_that_is_missing_gets_initial_weights(tmp_path):
    """transformers builds the model without values: a parameter that nothing initializes would be arbitrary memory."""
    tiny_model(VLEForITM).save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match="no weights of mlm_score"):
        head = VLEForMLM.from_pretrained(tmp_path).mlm_score
    for name, found in head.named_parameters():
        expected = 0.0 if name.endswith("bias") else 1.0 if "LayerNorm" in name else None
        assert (found == expected).all() if expected is not None else 0.01 < found.std() < 0.03, name
