"""Image towers of timm and transformers: error messages."""

from __future__ import annotations

import json
import re

import pytest
import timm
import torch
import transformers
from safetensors.torch import save_file

from common.errors import UserError
from model.vision import VisionEncoder, build_vision
from tests.helpers.tiny import go_offline
from tests.helpers.towers import SIZES, transformers_tower, write_folder


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
