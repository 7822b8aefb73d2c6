"""VLE's towers from pretrained CLIP and DeBERTa folders, compared with the libraries that wrote them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import CLIPVisionModel, DebertaV2Config, DebertaV2ForMaskedLM, DebertaV2Model

from common.errors import UserError
from model.vle.loading import resize_positions
from model.vle.towers import TABLE, clip_tower, deberta_tower, from_towers
from model.weights.clip import architecture_and_tag, create_model
from tests.helpers.tiny import RESNET, ROOT, VISION, go_offline, write_open_clip
from tests.helpers.vle import TEXT

DEMO = str(ROOT / "data" / "demo" / "backbones" / "clip")
SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
TINY_TEXT = {key: value for key, value in TEXT.items() if key != "max_relative_positions"}


@pytest.fixture(scope="module")
def quick(tmp_path_factory) -> str:
    """A folder of open_clip with the activation of OpenAI's CLIP."""
    folder = write_open_clip(tmp_path_factory.mktemp("quick"), vision=VISION, seed=3)
    path = folder / "open_clip_config.json"
    config = json.loads(path.read_text())
    config["model_cfg"]["quick_gelu"] = True
    path.write_text(json.dumps(config))
    return str(folder)


@pytest.fixture(scope="module")
def deberta(tmp_path_factory) -> Path:
    """DeBERTa with its word prediction, as Microsoft's folders hold it."""
    torch.manual_seed(1)
    folder = tmp_path_factory.mktemp("deberta")
    DebertaV2ForMaskedLM(DebertaV2Config(**TINY_TEXT)).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("name", ["demo", "quick"])
@torch.no_grad()
def test_image_tower_equals_open_clip(name, quick):
    folder = DEMO if name == "demo" else quick
    visual = create_model(*architecture_and_tag(folder, None)).visual.eval()
    config, state = clip_tower(folder)
    assert config.hidden_act == ("gelu" if name == "demo" else "quick_gelu")
    tower = CLIPVisionModel(config).eval()
    tower.load_state_dict(state)  # all weights, and no others
    images = torch.randn(3, 3, config.image_size, config.image_size, generator=torch.Generator().manual_seed(0))
    pooled = tower.post_layernorm(tower(images).last_hidden_state[:, 0]) @ visual.proj
    torch.testing.assert_close(pooled, visual(images), atol=1e-5, rtol=1e-5)


def test_last_block_is_left_out(quick):
    _, state = clip_tower(quick)
    shortened, whole = (from_towers(quick, None, last_block=kept, **SIZES, text_config=TINY_TEXT) for kept in (0, 1))
    for model, blocks in ((shortened, VISION["layers"] - 1), (whole, VISION["layers"])):
        tower = model.vision_model.vision_model
        assert len(tower.encoder.layers) == blocks == model.config.vision_config.num_hidden_layers
        assert all(torch.equal(value, state[name]) for name, value in tower.state_dict().items())


@torch.no_grad()
def test_text_tower_equals_transformers(deberta, quick):
    model = from_towers(quick, str(deberta), **SIZES).eval()
    assert model.config.text_config.hidden_size == TEXT["hidden_size"]
    ids = torch.randint(4, 200, (2, 9), generator=torch.Generator().manual_seed(0))
    expected = DebertaV2Model.from_pretrained(deberta).eval()(ids).last_hidden_state
    torch.testing.assert_close(model.get_text_features(ids, torch.ones_like(ids)), expected)


def test_image_size_resizes_the_position_table(quick):
    side, patch = 64, VISION["patch_size"]
    model = from_towers(quick, None, image_size=side, **SIZES, text_config=TINY_TEXT)
    assert model.config.vision_config.image_size == side
    table = model.vision_model.vision_model.state_dict()[TABLE]
    assert torch.equal(table, resize_positions(clip_tower(quick)[1][TABLE], side // patch))
    assert model.get_image_features(torch.zeros(1, 3, side, side)).shape[1] == 1 + (side // patch) ** 2
    random = {**SIZES, "text_config": TINY_TEXT, "vision_config": {**SIZES, "patch_size": 16}}
    assert from_towers(None, None, image_size=48, **random).config.vision_config.image_size == 48
    for wrong in (8, 40):
        with pytest.raises(UserError, match=f"image_size={wrong} must be a multiple of the patches' 16 pixels"):
            from_towers(quick, None, image_size=wrong, **SIZES, text_config=TINY_TEXT)


@pytest.mark.parametrize(
    "vision",
    [RESNET, {"timm_model_name": "test_convnext", "image_size": 32}, {**VISION, "attentional_pool": True}],
    ids=["ResNet", "ConvNeXt", "attention pool"],
)
def test_another_image_tower_is_refused(tmp_path, vision):
    folder = write_open_clip(tmp_path, vision=vision)
    with pytest.raises(UserError, match="needs a plain vision transformer of CLIP"):
        clip_tower(str(folder))


def test_another_text_model_is_refused(tmp_path, deberta):
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(UserError, match=r"vle\.text=.* is of type 'bert', not deberta-v2"):
        deberta_tower(tmp_path)
    path.write_text((deberta / "config.json").read_text())
    torch.save({"deberta.embeddings.LayerNorm.weight": torch.ones(16)}, tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match="it has no weights embeddings"):
        from_towers(None, str(tmp_path), **SIZES, vision_config={**SIZES, "patch_size": 16, "image_size": 32})


def test_a_missing_folder_is_named(tmp_path, monkeypatch):
    go_offline(monkeypatch, tmp_path / "cache")
    with pytest.raises(UserError, match=r"vle\.vision=.*nowhere: .*neither a file, a folder nor an architecture"):
        clip_tower(str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="nowhere is not a folder"):
        deberta_tower(tmp_path / "nowhere")
