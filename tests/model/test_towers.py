"""Image towers of timm and transformers: tokens and transforms."""

from __future__ import annotations

import json
import logging
import re

import numpy as np
import open_clip
import pytest
import timm
import torch
import transformers
from open_clip.model import _build_vision_tower
from packaging.version import Version
from timm.data import create_transform, resolve_model_data_config

from common.errors import UserError
from data.images import build_transform
from model.vision import VisionEncoder
from model.weights.timm_tower import timm_preprocess
from model.weights.transformers_tower import load_transformers
from tests.helpers.towers import (
    TIMM,
    TRANSFORMERS,
    picture,
    pictures,
    rows,
    timm_tower,
    transformers_tower,
    write_folder,
)
from trainer.report.attention import visible_box

SIZE_SETTINGS = ("width", "image_size", "patch_size", "head_width", "mlp_ratio")


# --- tokens -----------------------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("kind", TRANSFORMERS)
def test_tokens_are_the_last_hidden_state_of_transformers(kind):
    tower, (_, tokens, before) = transformers_tower(kind), TRANSFORMERS[kind]
    images = pictures(tower)
    expected = rows(tower.visual(pixel_values=images[:, 0]).last_hidden_state, tower.dim)
    found = tower(images)[:, 0]
    assert found.shape == (2, tokens, tower.dim) == (2, tower.num_tokens, tower.dim)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(tower(images[1:])[:, 0], found[1:], rtol=0, atol=1e-5)
    if kind != "clip_vision_model":
        patches = transformers_tower(kind, tokens="patches")
        torch.testing.assert_close(patches(images)[:, 0], expected[:, before:], rtol=0, atol=1e-5)
        assert patches.num_tokens == tokens - before


@torch.no_grad()
@pytest.mark.parametrize("name", TIMM)
def test_tokens_are_timms_features(name):
    tower, (tokens, before) = timm_tower(name), TIMM[name]
    images = pictures(tower)
    expected = rows(tower.visual.forward_features(images[:, 0]), tower.visual.num_features)
    found = tower(images)[:, 0]
    assert found.shape == (2, tokens, tower.dim) == (2, tower.num_tokens, tower.visual.num_features)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(tower(images[1:])[:, 0], found[1:], rtol=0, atol=1e-4)
    torch.testing.assert_close(timm_tower(name, tokens="patches")(images)[:, 0], expected[:, before:])


def test_patches_of_transformers_clip_are_refused():
    with pytest.raises(UserError, match=r"tokens=patches: CLIPVisionModel .* no final norm .* use tokens=all"):
        transformers_tower("clip_vision_model", tokens="patches")


@pytest.mark.parametrize("build", [lambda: timm_tower("test_vit"), lambda: transformers_tower("vit")])
def test_unused_parameters_get_no_gradient(build):
    tower = build()
    tower.requires_grad_(False)
    assert ("pooler.dense.weight" in tower.unused) == isinstance(tower.visual, transformers.PreTrainedModel)
    assert not any(parameter.requires_grad for parameter in tower.parameters()), "the search must not unfreeze"
    tower.requires_grad_(True)
    (tower(pictures(tower)) ** 3).sum().backward()
    idle = {name for name, parameter in tower.visual.named_parameters() if parameter.grad is None}
    assert idle == set(tower.unused)


@pytest.mark.slow
def test_every_architecture_of_open_clip_gives_tokens(monkeypatch, caplog):
    """On the meta device, which has shapes and no numbers; sizes that make no other tower are tried once."""
    caplog.set_level(logging.ERROR)
    monkeypatch.setattr(timm.layers.weight_init, "_trunc_normal_", lambda tensor, *_: tensor)  # two thirds of the time
    seen = set()
    for name in open_clip.list_models():
        config = open_clip.get_model_config(name)
        vision = dict(config["vision_cfg"])
        if isinstance(vision.get("layers"), int):
            vision["layers"] = 2
        # Trunks of timm differ in more than their settings say, but not by the size of pictures and patches.
        kinds = {key: value for key, value in vision.items() if key not in SIZE_SETTINGS}
        trunk = re.sub(r"_(patch)?\d+(?=_|$)", "", vision.get("timm_model_name", ""))
        key = trunk or json.dumps(kinds, sort_keys=True)
        if key not in seen:
            seen.add(key)
            with torch.device("meta"):
                visual = _build_vision_tower(config["embed_dim"], vision, config.get("quick_gelu", False))
                tower = VisionEncoder(visual, preprocess={"size": visual.image_size}, pretrained=False)
            assert tower.num_tokens >= 16 and tower.dim >= 192, name
    assert len(seen) > 40


# --- transforms -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        *({}, {"crop_pct": 1.0}, {"crop_mode": "squash", "crop_pct": 0.9}, {"crop_mode": "border", "crop_pct": 0.9}),
        pytest.param(
            {"input_size": (3, 192, 256)},
            marks=pytest.mark.skipif(Version(timm.__version__) < Version("1.0.31"), reason="timm crops elsewhere"),
        ),
        {"interpolation": "bilinear"},
    ],
    ids=str,
)
def test_transform_equals_timms(change):
    network = timm.create_model("test_vit", pretrained_cfg_overlay=change)
    reference = create_transform(**resolve_model_data_config(network))
    preprocess = timm_preprocess(network)
    for size in ((301, 400), (500, 333), (640, 640)):
        shown = picture(*size)
        torch.testing.assert_close(build_transform(preprocess)(shown), reference(shown), rtol=0, atol=1e-6)


PROCESSORS = [
    ("CLIPImageProcessor", {}),
    ("SiglipImageProcessor", {}),
    ("ViTImageProcessor", {}),
    ("DeiTImageProcessor", {}),
    ("BeitImageProcessor", {}),
    ("BitImageProcessor", {"size": {"shortest_edge": 256}, "crop_size": {"height": 224, "width": 224}}),  # DINOv2
    ("ConvNextImageProcessor", {"size": {"shortest_edge": 224}}),
    ("ConvNextImageProcessor", {"size": {"shortest_edge": 384}}),
    ("ViTImageProcessor", {"rescale_factor": 1 / 127.5, "do_normalize": False}),
    ("DINOv3ViTImageProcessor", {}),
]


@pytest.mark.parametrize(("name", "settings"), PROCESSORS, ids=lambda value: value if isinstance(value, str) else "")
def test_transform_equals_that_of_the_image_processor(name, settings, tmp_path):
    """Exactly, where transformers resizes with Pillow; else within two of 255 steps, as it resizes tensors."""
    folder = write_folder(tmp_path, "vit", processor=getattr(transformers, name)(**settings))
    pil = getattr(transformers, f"{name}Pil", None)
    reference = (pil or getattr(transformers, name))(**settings)
    preprocess = load_transformers(folder)[1]
    for size in ((301, 400), (500, 333), (640, 640)):
        shown = picture(*size)
        expected = torch.as_tensor(np.asarray(reference(shown, return_tensors="pt")["pixel_values"][0]))
        atol = 1e-5 if pil else 2 / 255 / min(preprocess["std"])
        torch.testing.assert_close(build_transform(preprocess)(shown), expected, rtol=0, atol=atol)


def test_view_is_smaller_than_the_picture_if_the_center_is_cropped():
    preprocess = {"size": (224, 224), "resize_to": 256}
    assert visible_box(preprocess, (512, 256)) == pytest.approx((0.28125, 0.0625, 0.4375, 0.875))
    squashed = {"size": (224, 224), "resize_to": (256, 256), "resize_mode": "squash"}
    assert visible_box(squashed, (512, 256)) == pytest.approx((0.0625, 0.0625, 0.875, 0.875))


def test_another_transform_replaces_the_crop():
    assert timm_tower("tf_efficientnet_lite0").preprocess["resize_to"] == 256
    squashed = timm_tower("tf_efficientnet_lite0", transform="imagenet_squash").preprocess
    assert squashed["resize_mode"] == "squash" and "resize_to" not in squashed
