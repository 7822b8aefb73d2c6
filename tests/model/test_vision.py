"""The image tower: tokens, loading of files, error messages and fingerprints."""

from __future__ import annotations

import json
import re

import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import CLIPVisionConfig, CLIPVisionModel

from common.errors import UserError
from data.images import build_transform
from model.vision import build_vision
from model.weights.clip import HUGGING_FACE_NAMES
from tests.helpers.tiny import RESNET, VISION, go_offline, write_open_clip

ARCHITECTURE = "tiny-tower-of-the-tests"
OWN_TRANSFORM = {"mean": [0.1, 0.2, 0.3], "std": [0.5, 0.6, 0.7], "interpolation": "bilinear", "resize_mode": "squash"}


@pytest.fixture(scope="module")
def tower():
    torch.manual_seed(0)
    return build_vision(pretrained_name=None, config=VISION).eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_open_clip(tmp_path_factory.mktemp("clip"), **OWN_TRANSFORM)


@pytest.fixture(scope="module")
def architecture(folder, tmp_path_factory):
    """Register the folder's architecture in open_clip."""
    path = tmp_path_factory.mktemp("architectures") / f"{ARCHITECTURE}.json"
    path.write_text(json.dumps(json.loads((folder / "open_clip_config.json").read_text())["model_cfg"]))
    open_clip.add_model_config(path)
    return ARCHITECTURE


def frames(*shape: int, size: int = 32) -> torch.Tensor:
    return torch.randn(*shape, 3, size, size, generator=torch.Generator().manual_seed(3))


@torch.no_grad()
def output_of(module: torch.nn.Module, run) -> torch.Tensor:
    """Return the output of `module` while `run` runs."""
    seen = []
    handle = module.register_forward_hook(lambda _, __, out: seen.append(out))
    run()
    handle.remove()
    return seen[-1]


@torch.no_grad()
def test_tokens_are_the_last_blocks_outputs_before_the_final_norm():
    tower = build_vision(pretrained_name=None, config=VISION).eval()
    torch.nn.init.constant_(tower.visual.ln_post.bias, 5.0)  # tokens after the norm would show it
    images = frames(3)
    last = output_of(tower.visual.transformer.resblocks[-1], lambda: tower.visual(images))
    tokens = tower(images[:, None])
    assert tokens.shape == (3, 1, 1 + 4, 32) == (3, 1, tower.num_tokens, tower.dim)
    torch.testing.assert_close(tokens[:, 0], last)
    pooled = tower.visual.ln_post(tokens[:, 0, 0])
    torch.testing.assert_close(pooled, tower.visual(images), msg="token 0 must be the one that open_clip pools")


@torch.no_grad()
def test_frames_of_videos_are_encoded_independently(tower):
    video = frames(2, 3)
    tokens = tower(video)
    assert tokens.shape == (2, 3, 5, 32)
    for i in range(2):
        for t in range(3):
            torch.testing.assert_close(tokens[i : i + 1, t : t + 1], tower(video[i : i + 1, t : t + 1]))


@torch.no_grad()
def test_resnet_tokens_are_its_feature_map():
    torch.manual_seed(0)
    tower = build_vision(pretrained_name=None, config=RESNET).eval()
    images = frames(2, size=64)
    grid = output_of(tower.visual.layer4, lambda: tower(images[:, None]))
    tokens = tower(images[:, None])
    assert tokens.shape == (2, 1, tower.num_tokens, tower.dim) == (2, 1, 4, 512)
    torch.testing.assert_close(tokens[1, 0, 1], grid[1, :, 0, 1])
    torch.testing.assert_close(tokens[1, 0, 2], grid[1, :, 1, 0])


# --- the patches alone, after the final norm --------------------------------------------------------------------------

WEIGHTS = ("weight", "bias")
TIMM = {"timm_model_name": "vit_tiny_patch16_224", "timm_pool": "", "timm_proj": "linear", "image_size": 224}


def to_open_clip(weights: dict[str, torch.Tensor], layers: int) -> dict[str, torch.Tensor]:
    """Convert an image tower of transformers' CLIP to open_clip's layout."""
    weights = {name.removeprefix("vision_model."): tensor for name, tensor in weights.items()}
    state = {
        "class_embedding": weights["embeddings.class_embedding"],
        "positional_embedding": weights["embeddings.position_embedding.weight"],
        "conv1.weight": weights["embeddings.patch_embedding.weight"],
    }
    names = {"pre_layrnorm": "ln_pre", "post_layernorm": "ln_post"}
    parts = {"self_attn.out_proj": "attn.out_proj", "layer_norm1": "ln_1", "layer_norm2": "ln_2"}
    parts |= {"mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj"}
    for i in range(layers):
        theirs, ours = f"encoder.layers.{i}", f"transformer.resblocks.{i}"
        names |= {f"{theirs}.{part}": f"{ours}.{name}" for part, name in parts.items()}
        for kind in WEIGHTS:
            stacked = [weights[f"{theirs}.self_attn.{part}_proj.{kind}"] for part in "qkv"]
            state[f"{ours}.attn.in_proj_{kind}"] = torch.cat(stacked)
    return state | {f"{our}.{kind}": weights[f"{their}.{kind}"] for their, our in names.items() for kind in WEIGHTS}


@torch.no_grad()
def test_patches_equal_those_of_transformers_clip():
    """post_layernorm(last_hidden_state[:, 1:]), the image features of NLX-GPT and SEVLM."""
    torch.manual_seed(0)
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    settings = CLIPVisionConfig(**size, image_size=32, patch_size=16, hidden_act="quick_gelu")
    reference = CLIPVisionModel(settings).eval()
    for parameter in reference.parameters():
        parameter.normal_(std=0.3)  # so that norms and activations have an effect
    tower = build_vision(pretrained_name=None, config={**VISION, "quick_gelu": True}, tokens="patches").eval()
    tower.visual.load_state_dict(to_open_clip(reference.state_dict(), layers=2))
    images = frames(3)
    hidden = reference(pixel_values=images).last_hidden_state[:, 1:]
    norm = next(module for name, module in reference.named_modules() if name.endswith("post_layernorm"))
    found = tower(images[:, None])[:, 0]
    assert found.shape == (3, 4, 32) == (3, tower.num_tokens, tower.dim)
    torch.testing.assert_close(found, norm(hidden), rtol=0, atol=1e-5)
    plain = build_vision(pretrained_name=None, config=VISION, tokens="patches").eval()
    plain.visual.load_state_dict(tower.visual.state_dict())
    assert (plain(images[:, None])[:, 0] - found).abs().max() > 1e-3, "the activation must affect the tokens"


@torch.no_grad()
def test_patches_are_normed_tokens_without_the_class_token():
    both = []
    for tokens in ("all", "patches"):
        torch.manual_seed(0)
        tower = build_vision(pretrained_name=None, config=VISION, tokens=tokens).eval()
        torch.nn.init.normal_(tower.visual.ln_post.weight, generator=torch.Generator().manual_seed(1))
        both.append(tower(frames(2, 3)))
    torch.testing.assert_close(both[1], tower.visual.ln_post(both[0][:, :, 1:]))


@pytest.mark.parametrize(
    ("config", "name"),
    [(RESNET, "ModifiedResNet"), (TIMM, "TimmModel"), ({**VISION, "attentional_pool": True}, "VisionTransformer")],
    ids=["ResNet", "timm", "CoCa"],
)
def test_patches_need_a_tower_with_a_norm_of_its_tokens(config, name):
    with pytest.raises(UserError, match=rf"model\.vision\.tokens=patches: {name} .* use tokens=all"):
        build_vision(pretrained_name=None, config=config, tokens="patches")
    assert build_vision(pretrained_name=None, config=config).num_tokens >= 4


@pytest.mark.parametrize(("tokens", "config"), [("all", VISION), ("patches", VISION), ("all", RESNET)])
def test_unused_parameters_get_no_gradient(tokens, config):
    torch.manual_seed(0)
    tower = build_vision(pretrained_name=None, config=config, tokens=tokens)
    (tower(frames(2, 1, size=config["image_size"])) ** 3).sum().backward()
    idle = {name for name, parameter in tower.visual.named_parameters() if parameter.grad is None}
    assert idle == {name for name, _ in tower.visual.named_parameters() if name.startswith(tower.unused)}
    assert ("ln_post.weight" in idle) == (tokens == "all" and config is VISION)


# --- transforms and files ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["config", "folder", "architecture"])
def test_named_transform_replaces_the_towers_own(folder, architecture, source):
    how = {
        "config": {"pretrained_name": None, "config": VISION},
        "folder": {"pretrained_name": str(folder)},
        "architecture": {"pretrained_name": None, "architecture": architecture},
    }[source]
    own, squashed = (build_vision(**how, transform=name).preprocess for name in ("clip", "imagenet_squash"))
    assert own == build_vision(**how).preprocess != squashed
    replaced = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
    replaced |= {"interpolation": "bilinear", "resize_mode": "squash"}
    assert squashed == {**own, **replaced}
    assert squashed["size"] in (32, (32, 32))
    assert build_vision(**how, transform="clip_transformers").preprocess == {**own, "crop": "floor"}


def test_random_tower_uses_clips_transform(tower):
    assert tower.preprocess["size"] == 32 and not tower.pretrained
    assert tuple(tower.preprocess["mean"]) == open_clip.OPENAI_DATASET_MEAN
    assert tower(build_transform(tower.preprocess)(Image.new("RGB", (50, 40)))[None, None]).shape == (1, 1, 5, 32)


def test_folder_in_open_clips_layout_loads(folder):
    tower = build_vision(pretrained_name=str(folder))
    weights = load_file(folder / "open_clip_model.safetensors")
    assert tower.pretrained and tower.visual.proj is None
    for name, tensor in tower.visual.state_dict().items():
        assert torch.equal(tensor, weights[f"visual.{name}"]), name


def test_transform_of_the_folder_is_used(folder):
    preprocess = build_vision(pretrained_name=str(folder)).preprocess
    assert {key: preprocess[key] for key in OWN_TRANSFORM} == OWN_TRANSFORM
    shown = build_transform(preprocess)(Image.new("RGB", (50, 40), (255, 0, 51)))
    expected = torch.tensor([(1 - 0.1) / 0.5, (0 - 0.2) / 0.6, (0.2 - 0.3) / 0.7])
    torch.testing.assert_close(shown, expected[:, None, None].expand(3, 32, 32))


@torch.no_grad()
def test_architecture_with_a_weight_file_loads(folder, architecture):
    file = folder / "open_clip_model.safetensors"
    tower = build_vision(pretrained_name=str(file), architecture=architecture).eval()
    expected = build_vision(pretrained_name=str(folder)).eval()
    assert tower.pretrained
    torch.testing.assert_close(tower(frames(2, 1)), expected(frames(2, 1)), rtol=0, atol=0)


def test_running_means_of_a_resnet_are_not_changed_by_loading(tmp_path):
    folder = write_open_clip(tmp_path / "clip", vision=RESNET)
    weights = load_file(folder / "open_clip_model.safetensors")
    for name, tensor in build_vision(pretrained_name=str(folder)).visual.state_dict().items():
        assert torch.equal(tensor, weights[f"visual.{name}"]), name


def test_architecture_without_weights_is_random(architecture, folder):
    tower = build_vision(pretrained_name=None, architecture=architecture)
    assert not tower.pretrained and tower.dim == 32
    stored = load_file(folder / "open_clip_model.safetensors")["visual.conv1.weight"]
    assert not torch.equal(tower.visual.conv1.weight, stored)


@pytest.mark.parametrize(("trunk", "size"), [("convnext_atto", 64), ("fastvit_t8", 256), ("vit_tiny_patch16_224", 224)])
def test_towers_of_timm_give_tokens(trunk, size):
    """Feature maps become tokens row by row; transformers of timm keep their class token, first."""
    config = {"timm_model_name": trunk, "timm_pool": "", "timm_proj": None, "image_size": size, "width": 8}
    tower, images = build_vision(pretrained_name=None, config=config).eval(), torch.randn(2, 1, 3, size, size)
    with torch.no_grad():
        tokens, features = tower(images)[:, 0], tower.visual.trunk.forward_features(images[:, 0])
    if features.ndim == 4:
        assert tokens.shape[1:] == (tower.num_tokens, tower.dim) and tower.num_tokens == features.shape[2] ** 2
    else:
        assert tokens.shape == features.shape


def test_folder_without_weights_is_refused(tmp_path):
    folder = write_open_clip(tmp_path / "clip")
    (folder / "open_clip_model.safetensors").unlink()
    with pytest.raises(UserError, match=re.escape(str(folder))):
        build_vision(pretrained_name=str(folder))


def test_folder_without_a_config_is_refused(tmp_path):
    with pytest.raises(UserError, match=rf"{tmp_path} has no open_clip_config\.json"):
        build_vision(pretrained_name=str(tmp_path))


@pytest.mark.parametrize("fault", ["{", '{"preprocess_cfg": {}}'])
def test_error_names_the_folder_with_a_broken_config(tmp_path, fault):
    folder = write_open_clip(tmp_path / "clip")
    (folder / "open_clip_config.json").write_text(fault)
    with pytest.raises(UserError, match=rf"open_clip cannot load local-dir:{folder}"):
        build_vision(pretrained_name=str(folder))


def test_weights_of_another_architecture_are_refused(folder, architecture, tmp_path):
    weights = load_file(folder / "open_clip_model.safetensors")
    weights["visual.conv1.weight"] = torch.zeros(48, 3, 16, 16)
    save_file(weights, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match=r"cannot load .*other\.safetensors"):
        build_vision(pretrained_name=str(tmp_path / "other.safetensors"), architecture=architecture)


def test_weight_file_needs_an_architecture(folder):
    with pytest.raises(UserError, match=r"open_clip_model\.safetensors: set model\.vision\.architecture=NAME"):
        build_vision(pretrained_name=str(folder / "open_clip_model.safetensors"))


def test_error_without_any_name_lists_the_keys():
    with pytest.raises(UserError, match=r"give either architecture=NAME .* or config="):
        build_vision(pretrained_name=None)


def test_error_for_an_unknown_setting_suggests_the_nearest():
    with pytest.raises(UserError, match=r"model\.vision\.config: .* no setting 'patchsize'; did you mean 'patch_size'"):
        build_vision(pretrained_name=None, config={**VISION, "patchsize": 8})


@pytest.mark.parametrize(
    "change",
    [{"width": "wide"}, {"head_width": 0}, {"patch_size": 0}, {"patch_size": 64}, {"layers": 0}, {"width": 0}],
    ids=str,
)
def test_error_for_an_invalid_tower_names_the_section(change):
    with pytest.raises(UserError, match=r"model\.vision\.config: "):
        build_vision(pretrained_name=None, config={**VISION, **change})


@pytest.mark.parametrize("name", ["ViT-B32/openai", "ViT-B32"])
def test_error_for_an_unknown_architecture_suggests_the_nearest(name):
    with pytest.raises(UserError, match=r"'ViT-B32' is neither a file, a folder nor an arch.*nearest: ViT-B-32"):
        build_vision(pretrained_name=name)
    with pytest.raises(UserError, match="nearest: ViT-B-32"):
        build_vision(pretrained_name=None, architecture="ViT-B32")


def test_error_for_an_unknown_tag_lists_the_choices():
    with pytest.raises(UserError, match=r"no weights 'opena' for ViT-B-32 \(it has openai, "):
        build_vision(pretrained_name="ViT-B-32/opena")


@pytest.mark.parametrize(
    ("name", "architecture"),
    [("openai/clip-vit-base-patch32", None), ("ViT-B-32-quickgelu/openai", None), ("openai", "ViT-B-32-quickgelu")],
)
def test_offline_error_names_the_file_and_both_keys(tmp_path, monkeypatch, name, architecture):
    go_offline(monkeypatch, tmp_path)
    with pytest.raises(UserError) as error:
        build_vision(pretrained_name=name, architecture=architecture)
    message = str(error.value)
    assert "open_clip_model.safetensors of https://huggingface.co/timm/vit_base_patch32_clip_224.openai" in message
    assert "model.vision.architecture=ViT-B-32-quickgelu model.vision.pretrained_name=PATH_OF_THE_FILE" in message
    assert "\n" not in message


def test_architecture_in_the_offline_error_has_the_right_activation(tmp_path, monkeypatch):
    """`ViT-B-32/openai` uses quick GELU, so its file must use it too."""
    go_offline(monkeypatch, tmp_path)
    with pytest.raises(UserError) as error:
        build_vision(pretrained_name="ViT-B-32/openai")
    named = re.search(r"model\.vision\.architecture=(\S+)", str(error.value))[1]
    assert open_clip.get_model_config(named).get("quick_gelu", False)


def test_hugging_face_names_map_to_the_same_weights():
    for architecture, tag in HUGGING_FACE_NAMES.values():
        trained_with = open_clip.get_pretrained_cfg(architecture, tag)["quick_gelu"]
        assert open_clip.get_model_config(architecture)["quick_gelu"] is trained_with is True


def test_error_names_an_unavailable_upload(tmp_path, monkeypatch):
    go_offline(monkeypatch, tmp_path)
    with pytest.raises(UserError, match="cannot load hf-hub:nobody/nothing"):
        build_vision(pretrained_name="hf-hub:nobody/nothing")


# --- fingerprint -----------------------------------------------------------------------------------------------------


def quick_gelu(folder, value: bool):
    """Return the fingerprint of the folder's tower with or without quick GELU, which does not affect the weights."""
    path = folder / "open_clip_config.json"
    config = json.loads(path.read_text())
    config["model_cfg"]["quick_gelu"] = value
    path.write_text(json.dumps(config))
    return build_vision(pretrained_name=str(folder)).fingerprint()


def random_tower(**changes):
    torch.manual_seed(0)
    return build_vision(pretrained_name=None, config={**VISION, **changes})


@pytest.mark.parametrize("config", [VISION, RESNET], ids=["ViT", "ResNet"])
def test_fingerprint_is_stable(config):
    fingerprints = []
    for _ in range(2):
        torch.manual_seed(0)
        tower = build_vision(pretrained_name=None, config=config)
        fingerprints += [tower.fingerprint(), tower.train().fingerprint()]
        tower.eval()(frames(1, 1, size=config["image_size"]))
        fingerprints.append(tower.fingerprint())
    assert all(fingerprint == fingerprints[0] for fingerprint in fingerprints)
    text = json.dumps(fingerprints[0])
    assert json.loads(text) == json.loads(json.dumps(fingerprints[-1])) and " at 0x" not in text


def test_fingerprint_does_not_depend_on_the_source_of_weights(folder, architecture):
    file = folder / "open_clip_model.safetensors"
    by_file = build_vision(pretrained_name=str(file), architecture=architecture).fingerprint()
    by_folder = build_vision(pretrained_name=str(folder)).fingerprint()
    assert by_file["weights"] == by_folder["weights"] and by_file["structure"][1:] == by_folder["structure"][1:]
    assert by_file["transform"] != by_folder["transform"], "only the folder has the original transform"


def test_fingerprint_depends_on_every_weight():
    tower, before = random_tower(), random_tower().fingerprint()
    for name, tensor in tower.visual.state_dict().items():
        kept = tensor.clone()
        tensor.flatten()[-1:].add_(1e-6) if tensor.is_floating_point() else tensor.add_(1)
        if not torch.equal(tensor, kept):
            assert tower.fingerprint()["weights"] != before["weights"], name
        tensor.copy_(kept)
    assert tower.fingerprint() == before


def test_fingerprint_depends_on_the_precision():
    assert random_tower().half().fingerprint()["weights"] != random_tower().fingerprint()["weights"]


def test_fingerprint_depends_on_activation_and_heads(tmp_path):
    folder = write_open_clip(tmp_path / "clip")
    quick, plain = quick_gelu(folder, True), quick_gelu(folder, False)
    assert quick["weights"] == plain["weights"] and quick["structure"] != plain["structure"]
    two_heads, one_head = random_tower().fingerprint(), random_tower(head_width=32).fingerprint()
    assert two_heads["weights"] == one_head["weights"] and two_heads["structure"] != one_head["structure"]


def test_fingerprint_depends_on_quick_gelu_of_a_random_tower():
    quick, plain = random_tower(quick_gelu=True).fingerprint(), random_tower(quick_gelu=False).fingerprint()
    assert quick["weights"] == plain["weights"] and quick["structure"] != plain["structure"]
    assert plain == random_tower().fingerprint()


def test_fingerprint_depends_on_the_choice_of_tokens():
    found = []
    for tokens in ("all", "patches"):
        torch.manual_seed(0)
        found.append(build_vision(pretrained_name=None, config=VISION, tokens=tokens).fingerprint())
    one, other = found
    assert one != other and one["weights"] == other["weights"]


def test_fingerprint_depends_on_the_transform(tmp_path):
    one, other = (write_open_clip(tmp_path / mode, resize_mode=mode) for mode in ("squash", "shortest"))
    one, other = (build_vision(pretrained_name=str(folder)).fingerprint() for folder in (one, other))
    assert one["weights"] == other["weights"] and one["transform"] != other["transform"]
