"""Loading the expert of a checkpoint; damaged or mismatching files are refused with one sentence."""

from __future__ import annotations

import json
import math
import shutil

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file

from common.errors import UserError
from data.emotions import EMOTIONS
from data.samples import Samples
from data.schema import Sample
from model.expert.fusion import Fusion
from model.expert.student import PROBE, STUDENT, StudentHead
from tests.helpers.tiny import make_captioner, make_template
from trainer.prediction.expert import load_expert
from trainer.runs.checkpoint import Checkpoint
from trainer.runs.logits import digests_of

HEAD = {"classes": 9, "pool": "attention", "depth": 1, "dropout": 0.1}


@pytest.fixture(scope="module")
def captioner(tmp_path_factory):
    return make_captioner(make_template(tmp_path_factory.mktemp("tokenizer")))


@pytest.fixture
def checkpoint(tmp_path, captioner) -> Checkpoint:
    torch.manual_seed(0)
    shape = {"dim": captioner.vision.dim, **HEAD}
    state = {
        f"{name}.{key}": value for name in (STUDENT, PROBE) for key, value in StudentHead(**shape).state_dict().items()
    }
    save_file(state, tmp_path / "student.safetensors")
    fusion = Fusion(["average", "concat_linear"], 9, choice="concat_linear", temperatures=(2.0, 3.0))
    save_file(fusion.state_dict(), tmp_path / "gate.safetensors")
    about = {
        "features": {"features": "clip", "grid": 2},
        "head": shape,
        "heads": {name: {"alpha": 0.5, "temperature": 1.5} for name in (STUDENT, PROBE)},
        "teacher": {"run": "/nowhere", "temperature": 2.0},
        "gate": {**fusion.settings(), "from": {}},
    }
    return Checkpoint(tmp_path, OmegaConf.create({}), {"expert": about})


def load(checkpoint: Checkpoint, captioner, *, labels=EMOTIONS, enabled: bool = True):
    config = OmegaConf.create({"expert": {"enabled": enabled}, "dataset": {"labels": list(labels)}})
    return load_expert(config, checkpoint, captioner, temperature=1.0)


def fused_emotions(expert, captioner):
    generator = torch.Generator().manual_seed(4)
    log_p = torch.randn(2, 9, generator=generator).log_softmax(dim=-1)
    tokens = torch.randn(2, 1, captioner.vision.num_tokens, captioner.vision.dim, generator=generator)
    return expert(log_p, tokens, torch.ones(2, 1, dtype=torch.bool), ["a", "b"])


def test_all_distributions_sum_to_one(checkpoint, captioner):
    found = fused_emotions(load(checkpoint, captioner), captioner)
    torch.testing.assert_close(found.fused.sum(dim=1), torch.ones(2))
    for row, fused in zip(found.rows, found.fused, strict=True):
        assert row["sources"].keys() == {"language_model", "student", "probe"}
        assert all(abs(sum(shares) - 1) < 1e-4 for shares in (*row["sources"].values(), *row["gates"].values()))
        assert row["gate"]["name"] == "concat_linear"
        torch.testing.assert_close(torch.tensor(row["gates"]["concat_linear"]), fused, atol=1e-5, rtol=1e-4)


def test_teacher_is_a_source_if_the_checkpoint_has_its_logits(checkpoint, captioner, tmp_path):
    for name in "ab":
        (tmp_path / name).write_text(name)
    samples = Samples.pack(Sample(id, tmp_path / id, ()) for id in "ab")
    digest = digests_of(samples, None)[1]
    lines = [{"labels": list(EMOTIONS), "of": "x"}, {"id": "b", "digest": digest, "teacher": [2.0] + [0.0] * 8}]
    (tmp_path / "teacher.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    expert = load(checkpoint, captioner)
    expert.read_teacher(samples, None)
    rows = fused_emotions(expert, captioner).rows
    assert "teacher" not in rows[0]["sources"]
    expected = (torch.tensor([2.0] + [0.0] * 8) / 2.0).softmax(dim=0)  # the teacher's own temperature
    torch.testing.assert_close(torch.tensor(rows[1]["sources"]["teacher"]), expected, atol=1e-5, rtol=1e-4)


def test_expert_is_optional(checkpoint, captioner, tmp_path):
    assert load(checkpoint, captioner, enabled=False) is None
    (tmp_path / "student.safetensors").unlink()
    assert load(checkpoint, captioner) is None


def changed(checkpoint: Checkpoint, path: str, value: object) -> None:
    *keys, last = path.split(".")
    place = checkpoint.info["expert"]
    for key in keys:
        place = place[key]
    place[last] = value


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("head.classes", 10**9),
        ("head.dim", 10**9),
        ("head.depth", 2),
        ("head.pool", "mean"),
        ("head.surprise", 1),
        ("heads", {"student": {"temperature": "x"}}),
        ("heads", {"other": {"temperature": 1.0}}),
        ("heads.student.temperature", 0),
        ("heads.student.temperature", 1e-300),
        ("heads.student.temperature", True),
        ("teacher.temperature", 1e300),
        ("heads.student.temperature", float("nan")),
        ("features", {"features": "clip"}),
        ("gate.classes", 5000),
        ("gate.names", ["no such form"]),
        ("gate.sources", ["language_model"]),
        ("gate.sources", ["language_model", "student", "other"]),
        ("gate.from", {"other": {"path": "x"}}),
        ("gate", {"name": "average"}),
        ("teacher", {"run": "x"}),
        ("head", None),
    ],
)
def test_settings_that_do_not_match_the_weights_are_refused(checkpoint, captioner, path, value):
    changed(checkpoint, path, value)
    with pytest.raises(UserError) as caught:
        load(checkpoint, captioner)
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize(
    ("file", "name", "value"),
    [
        ("student.safetensors", "", math.nan),
        ("gate.safetensors", "gates.", math.inf),
        ("gate.safetensors", "temperatures", 1e-30),
        ("gate.safetensors", "smoothing", 2.0),
    ],
)
def test_numbers_out_of_range_are_refused(checkpoint, captioner, file, name, value):
    tensors = load_file(checkpoint.folder / file)
    next(tensor for key, tensor in tensors.items() if name in key).view(-1)[0] = value
    save_file(tensors, checkpoint.folder / file)
    with pytest.raises(UserError, match=r"expert\.enabled=false"):
        load(checkpoint, captioner)


def test_other_labels_are_refused(checkpoint, captioner):
    with pytest.raises(UserError, match="has the labels amusement, awe") as caught:
        load(checkpoint, captioner, labels=("joy", "fear"))
    assert "expert.enabled=false" in str(caught.value)


@pytest.mark.parametrize("name", ["student.safetensors", "gate.safetensors"])
def test_damaged_weights_are_refused(checkpoint, captioner, tmp_path, name):
    path = tmp_path / name
    whole = load_file(path)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(UserError, match="cannot be read"):
        load(checkpoint, captioner)
    save_file({"strange": torch.zeros(2)} | dict(list(whole.items())[1:]), path)
    with pytest.raises(UserError, match="do not match"):
        load(checkpoint, captioner)
    shutil.copy(__file__, path)
    with pytest.raises(UserError, match="cannot be read"):
        load(checkpoint, captioner)
