"""timm's classifiers by their names, their weights from files, and what is said where either is not to be had."""

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
def test_any_classifier_of_timm_with_as_many_outputs_as_emotions(name, classes):
    model, preprocess = make(name=name, classes=classes)
    assert preprocess["size"] == 32
    assert model.eval()(torch.zeros(3, 3, 32, 32)).shape == (3, classes)


def test_its_own_size_and_normalisation_by_default():
    _, preprocess = make(image_size=None)
    config = timm.get_pretrained_cfg("test_resnet")
    assert preprocess["size"] == config.input_size[1]
    assert preprocess["mean"] == config.mean


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_weights_of_a_file_save_the_output_layer(tmp_path, suffix):
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


def test_a_pickle_in_place_of_weights_runs_nothing(tmp_path):
    class Payload:
        def __reduce__(self):
            return (tmp_path.joinpath("ran").touch, ())

    path = tmp_path / "weights.pth"
    path.write_bytes(pickle.dumps(Payload()))
    with pytest.raises(UserError):
        make(weights=str(path))
    assert not (tmp_path / "ran").exists()


def test_a_download_that_fails_names_the_file_to_get(tmp_path, monkeypatch):
    go_offline(monkeypatch, tmp_path)
    with pytest.raises(UserError) as caught:
        make(name="resnet50", pretrained=True)
    assert "model.safetensors of https://huggingface.co/timm/resnet50" in str(caught.value)
    assert "expert.teacher.weights=PATH_OF_THE_FILE" in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"name": "resnet5"}, "timm has no 'resnet5'; did you mean resnet"),
        ({"name": "hf-hub:somebody/network"}, "timm has no 'hf-hub:somebody/network'"),
        ({"config": {"checkpoint_path": "x.pth"}}, "checkpoint_path is not to be set there"),
        ({"config": {"no_such_setting": 3}}, "timm cannot build test_resnet with these settings"),
        ({"weights": "/no/such/file"}, "there is no file /no/such/file"),
    ],
)
def test_what_cannot_be_built_is_said(changes, said):
    with pytest.raises(UserError) as caught:
        make(**changes)
    assert said in str(caught.value)
