"""Classifiers from timm: names, weights from files, and error messages."""

from __future__ import annotations

import pickle

import pytest
import timm
import torch
from safetensors.torch import save_file

from common.errors import UserError
from model.expert.teacher import build_teacher
from tests.helpers.tiny import go_offline


def make(**changes):
    return build_teacher(**{"name": "test_resnet", "classes": 4, "pretrained": False, "image_size": 32, **changes})


@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
@pytest.mark.parametrize("classes", [2, 9])
def test_timm_classifier_with_an_output_per_emotion(name, classes):
    model, preprocess = make(name=name, classes=classes)
    assert preprocess["size"] == 32
    assert model.eval()(torch.zeros(3, 3, 32, 32)).shape == (3, classes)


def test_default_size_and_normalization_are_the_models():
    _, preprocess = make(image_size=None)
    config = timm.get_pretrained_cfg("test_resnet")
    assert preprocess["size"] == config.input_size[1]
    assert preprocess["mean"] == config.mean


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_weights_from_a_file_except_the_output_layer(tmp_path, suffix):
    torch.manual_seed(5)
    source = timm.create_model("test_resnet", num_classes=1000)
    path = tmp_path / f"weights.{suffix}"
    save_file(source.state_dict(), path) if suffix == "safetensors" else torch.save(source.state_dict(), path)
    model, _ = make(weights=str(path))
    same = {
        name: torch.equal(value, source.state_dict()[name])
        for name, value in model.state_dict().items()
        if value.shape == source.state_dict()[name].shape
    }
    assert all(same.values()) and len(same) > 10
    assert model.get_classifier().weight.shape[0] == 4


def test_pickle_instead_of_weights_is_not_executed(tmp_path):
    class Payload:
        def __reduce__(self):
            return (tmp_path.joinpath("ran").touch, ())

    path = tmp_path / "weights.pth"
    path.write_bytes(pickle.dumps(Payload()))
    with pytest.raises(UserError):
        make(weights=str(path))
    assert not (tmp_path / "ran").exists()


def test_error_for_a_failed_download_names_the_file(tmp_path, monkeypatch):
    go_offline(monkeypatch, tmp_path)
    with pytest.raises(UserError) as caught:
        make(name="resnet50", pretrained=True)
    assert "model.safetensors of https://huggingface.co/timm/resnet50" in str(caught.value)
    assert "expert.teacher.weights=PATH_OF_THE_FILE" in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "resnet5"}, "timm has no 'resnet5'; did you mean resnet"),
        ({"name": "hf-hub:somebody/network"}, "timm has no 'hf-hub:somebody/network'"),
        ({"config": {"checkpoint_path": "x.pth"}}, "checkpoint_path cannot be set here"),
        ({"config": {"no_such_setting": 3}}, "timm cannot build test_resnet with these settings"),
        ({"weights": "/no/such/file"}, "there is no file /no/such/file"),
    ],
)
def test_invalid_settings_are_refused(changes, message):
    with pytest.raises(UserError) as caught:
        make(**changes)
    assert message in str(caught.value)
