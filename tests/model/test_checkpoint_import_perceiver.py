"""Import checkpoints of Perceiver-Resampler-XAttn-Captioning and use the runs."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor

from data.text import Template
from model.checkpoint_import.omegaconf_nodes import NAMES, plain, root_of
from model.checkpoint_import.perceiver import read_perceiver
from model.checkpoint_import.towers import transformers_tower
from model.losses import loss_counts, loss_sums
from model.vision import build_vision
from model.weights.layout import Tensors
from model.weights.plain import read_torch, stand_ins
from tests.helpers import perceiver_reference as reference
from tests.helpers.perceiver_files import VISION, changed, random_state, random_tower, write_checkpoint
from tests.helpers.tiny import go_offline, run_mode, write_pictures, write_tokenizer
from tests.helpers.weight_files import Call, anonymous_memory, error_of
from trainer.runs.checkpoint import find_checkpoint
from trainer.setup.import_checkpoint import main
from trainer.setup.parts import build_parts

TEXTS = ["the tiny boat is lost !", "a serene sky"]


class Project:
    """Paths of a checkpoint, its tokenizer and the imported run; the vision encoder that all checkpoints share."""

    def __init__(self, folder: Path, tokenizer: Path) -> None:
        self.folder, self.tokenizer = folder, tokenizer
        self.vocabulary = len(json.loads((tokenizer / "vocab.json").read_text(encoding="utf-8")))
        self.tower = random_tower()
        self.file, self.out = folder / "captions-last.pt", folder / "runs" / "imported"

    def state(self, **changes: Any) -> dict[str, Tensor]:
        return random_state(changed(**changes), vocabulary=self.vocabulary, tower=self.tower)

    def write(self, state: dict[str, Any] | None = None, *, root: dict[str, Any] | None = None, **changes: Any) -> Path:
        state = self.state(**changes) if state is None else state
        return write_checkpoint(self.file, changed(**changes), state, **(root or {}))

    def run(self) -> int:
        return main(["perceiver", str(self.file), "--out", str(self.out), "--tokenizer", str(self.tokenizer)])

    def parts(self):
        checkpoint = find_checkpoint(str(self.out), Path())
        return build_parts(checkpoint.config, checkpoint=checkpoint)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Path:
    return write_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture
def project(tmp_path, tokenizer) -> Project:
    return Project(tmp_path, tokenizer)


def refusal(project: Project, capsys) -> str:
    return error_of(project.run, project.folder, capsys)


def text_batch(template: Template, frames: Tensor) -> tuple[SimpleNamespace, Tensor, list[int]]:
    """Return a batch of the frames (2, T, 3, H, W) with one text each, the padded token ids, and their lengths."""
    encoded = [template.encode(text, None) for text in TEXTS]
    lengths = [len(text.input_ids) for text in encoded]
    rows = [[0] * (max(lengths) - length) for length in lengths]
    ids = torch.tensor([text.input_ids + row for text, row in zip(encoded, rows, strict=True)])
    labels = torch.tensor([text.labels + [-100] * len(row) for text, row in zip(encoded, rows, strict=True)])
    nothing = torch.zeros(2, dtype=torch.long)
    batch = SimpleNamespace(
        frames=frames, frame_mask=torch.ones(frames.shape[:2], dtype=torch.bool), tokens=None, input_ids=ids,
        labels=labels, attention_mask=torch.arange(ids.shape[1]) < torch.tensor(lengths)[:, None],
        segment=torch.zeros_like(ids), text_image=torch.arange(2), vad=torch.zeros(*ids.shape, 3),
        vad_known=torch.zeros(ids.shape, dtype=torch.bool), vad_target=torch.zeros(ids.shape, dtype=torch.bool),
        emotion=nothing - 1, emotion_start=nothing - 1, explanation_start=nothing + 1,
        emotion_histogram=torch.zeros(2, 9),
    )  # fmt: skip
    return batch, ids, lengths


# --- imported runs ----------------------------------------------------------------------------------------------------

CASES = {
    "as published": {},
    "transformer": {"mapper__mapper_type": "transformer"},
    "every block": {"text__xattn__freq": 1, "text__xattn__activation": "gelu", "text__xattn__ff_mult": 2},
    "no mapper": {"enable_mapper": False, "resampler__activation": "relu"},
    "mapper only": {"enable_resampler_xattn": False},
}


@pytest.mark.parametrize("case", CASES)
def test_logits_and_loss_equal_the_reference(project, case):
    """From the pixels to logits and loss of two captions, in double precision, with transformers' vision encoder."""
    state, config = project.state(**CASES[case]), changed(**CASES[case])["model"]
    project.write(state, **CASES[case])
    assert project.run() == 0
    parts = project.parts()
    captioner, tower = parts.captioner.double().eval(), random_tower().double()
    state = {name: tensor.double() for name, tensor in state.items()}
    for frames in (1, 3):
        pictures = torch.randn(2, frames, 3, 32, 32, generator=torch.Generator().manual_seed(2)).double()
        batch, ids, lengths = text_batch(parts.template, pictures)
        with torch.no_grad():
            tokens = tower(pixel_values=pictures.flatten(0, 1)).last_hidden_state.unflatten(0, (2, frames))
            wanted, output = reference.logits(state, tokens, ids, config), captioner(batch)
            supervised = torch.tensor([[t < length - 1 for t in range(ids.shape[1] - 1)] for length in lengths])
            assert torch.allclose(output.logits, wanted[:, :-1][supervised], atol=1e-7)
            loss = loss_sums(output, batch)["caption"] / loss_counts(batch)["caption"]
            assert torch.allclose(loss.double(), reference.caption_loss(wanted, ids, lengths), atol=1e-5)
            assert project.vocabulary > 300 and wanted.std() > 0.5  # the comparison is not trivial


def test_the_vision_encoder_equals_transformers(project):
    config, weights = transformers_tower(Tensors("FILE", project.state()).only(VISION), VISION)
    vision = build_vision(pretrained_name=None, config=config)
    vision.load_state_dict({name.removeprefix("vision."): tensor for name, tensor in weights.items()})
    pictures = torch.randn(2, 1, 3, 32, 32)
    with torch.no_grad():
        wanted = project.tower(pixel_values=pictures[:, 0]).last_hidden_state
        assert torch.allclose(vision(pictures)[:, 0], wanted, atol=1e-5)
        other = build_vision(pretrained_name=None, config={**config, "quick_gelu": False})
        other.load_state_dict(vision.state_dict())
        assert not torch.allclose(other(pictures)[:, 0], wanted, atol=1e-3)  # the test can fail


@pytest.mark.parametrize("trained", [True, False])
def test_the_run_records_its_origin_and_is_complete(project, trained, capsys):
    project.write(text__trainable=trained, vision__trainable=trained)
    assert project.run() == 0
    checkpoint = find_checkpoint(str(project.out), Path())
    config, state = checkpoint.config, checkpoint.info["state"]
    assert (state["step"], state["epoch"]) == (9, 4)
    assert [file["name"] for file in checkpoint.info["import"]["files"]] == ["captions-last.pt"]
    assert config.dataset.name == "coco" and config.dataset.emotions is False
    assert (config.model.vision.pretrained_name, config.model.text.pretrained_name) == (None, None)
    assert project.parts().captioner.vision.preprocess["crop"] == "floor", "as transformers' processor"
    assert (config.model.vision.trainable, config.model.text.trainable) == (trained, trained)
    assert (config.model.resampler.heads, config.model.text.xattn.activation) == (3, "sqrelu")
    shutil.move(project.file, project.folder / "elsewhere")  # the run needs no other file
    assert project.parts().captioner is not None
    assert "trained for 9 steps in 4 epochs" in capsys.readouterr().out


def test_the_run_works_in_test_and_predict(project):
    project.write()
    assert project.run() == 0
    pictures = write_pictures(project.folder / "pictures", 2)
    images = [{"id": i, "file_name": path.name} for i, path in enumerate(pictures)]
    annotations = [{"image_id": i, "caption": TEXTS[i], "id": i} for i in range(2)]
    json_path = project.folder / "captions.json"
    json_path.write_text(json.dumps({"images": images, "annotations": annotations}), encoding="utf-8")
    keys: dict[str, object] = {"preset": "coco", "pretrained_name": project.out, "trainer.device": "cpu"}
    keys |= {"trainer.test.max_length": 5, "trainer.test.metrics": "[rouge_l]", "trainer.test.novelty": False}
    files = {"json_path": json_path, "visual_dir": pictures[0].parent, "num_workers": 0}
    run_mode("test", keys | {f"dataset.test_ds.{key}": value for key, value in files.items()})
    assert len((project.out / "test" / "predictions.jsonl").read_text(encoding="utf-8").splitlines()) == 2
    run_mode("predict", keys | {"image": pictures[0].parent, "dataset.test_ds.num_workers": 0})
    assert len(json.loads((project.out / "predict" / "predictions.json").read_text(encoding="utf-8"))) == 2


def test_names_of_newer_transformers_and_a_missing_schedule(project):
    state = {name.replace("vision_model.", "").replace(".position_ids", ".x"): t for name, t in project.state().items()}
    state = {name: tensor for name, tensor in state.items() if not name.endswith(".x")}
    project.write(state, root={"scheduler_state_dict": None})
    imported = read_perceiver(project.file, tokenizer=str(project.tokenizer))
    assert (imported.step, imported.epoch) == (0, 4) and "vision.visual.conv1.weight" in imported.weights


def test_a_file_in_the_format_before_torch_1_6_is_read(project):
    expected = read_perceiver(project.write(), tokenizer="x").weights
    content = torch.load(project.file, weights_only=False)
    torch.save(content, project.folder / "old.pt", _use_new_zipfile_serialization=False)
    found = read_perceiver(project.folder / "old.pt", tokenizer="x").weights
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)


def test_sign_language_preset_and_remarks(project):
    config = changed(vision__pretrained_name="laion/CLIP-ViT-B-32")
    config["dataset"] = {"sign_languages": ["en"], "tokenizer": "gpt2"}  # as before the project supported COCO
    write_checkpoint(project.file, config, project.state())
    imported = read_perceiver(project.file, tokenizer=str(project.tokenizer))
    assert imported.preset == "mlslt"
    assert any("laion/CLIP-ViT-B-32 is not a model of OpenAI" in remark for remark in imported.remarks)
    assert any("trained with the tokenizer 'gpt2'" in remark for remark in imported.remarks)


def test_the_optimizer_state_is_not_read(project):
    project.write(root={"optimizer_state_dict": {"state": {0: {"exp_avg": torch.zeros(64 << 18)}}}})  # 64 MiB
    read_perceiver(project.file, tokenizer="x")
    before = anonymous_memory()
    imported = read_perceiver(project.file, tokenizer="x")
    assert anonymous_memory() - before < 24 << 20 and imported.step == 9


# --- pickled OmegaConf nodes ------------------------------------------------------------------------------------------


def test_nodes_become_plain_values(tmp_path):
    tree = {
        "a": {"b": [1, 2.5, "text", [True, None]], "c": "${name}", "d": "???", "e": {}, "f": []},
        "name": "x",
        "g": 3,
    }
    torch.save({"part": OmegaConf.create(tree).a, "plain": tree}, tmp_path / "a.pt")
    found = read_torch(tmp_path / "a.pt", allowed=stand_ins(NAMES))
    assert plain(found["part"], "FILE") == tree["a"]
    assert plain(root_of(found["part"]), "FILE") == tree == plain(found["plain"], "FILE")


def test_a_node_that_contains_itself_is_refused(tmp_path, project, capsys):
    config = OmegaConf.create(changed())
    config.model._set_parent(config.model)
    project.write(root={"model_cfg": config.model})
    assert project.run() == 0  # its root is not needed
    shutil.rmtree(project.out)
    config.model._content["mapper"] = config.model
    project.write(root={"model_cfg": config.model})
    assert "model_cfg is no configuration of OmegaConf, or damaged" in refusal(project, capsys)


# --- refused files ----------------------------------------------------------------------------------------------------

PLACES = {
    "root": lambda evil: {"extra": evil},
    "configuration": lambda evil: {"model_cfg": {"heads": evil}},
    "weights": lambda evil: {"model_state_dict": {"resampler.latents": evil}},
    "optimizer": lambda evil: {"optimizer_state_dict": {"state": {0: [evil]}}},
    "schedule": lambda evil: {"scheduler_state_dict": {"lr_lambdas": [evil]}},
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("zipped", [True, False])
def test_no_pickled_call_is_executed(project, capsys, place, zipped):
    marker = project.folder / "marker"
    project.write(root=PLACES[place](Call(os.system, f"touch {marker}")))
    assert b"system" in project.file.read_bytes()
    if not zipped:
        evil = {"model_state_dict": {}, **PLACES[place](Call(os.system, f"touch {marker}"))}
        torch.save(evil, project.file, _use_new_zipfile_serialization=False)
    sentence = refusal(project, capsys)
    assert "captions-last.pt is refused, and nothing in it was run: it holds the name '" in sentence
    assert not marker.exists()
    torch.load(project.file, weights_only=False)
    assert marker.exists()  # unsafe loading executes it, so the test can fail


def test_a_call_inside_an_omegaconf_node_is_refused(project, capsys):
    config = OmegaConf.create(changed())
    config.model.mapper._content["heads"]._val = Call(eval, "1")
    project.write(root={"model_cfg": config.model})
    assert "it holds the name 'eval'" in refusal(project, capsys)


SETTINGS: dict[str, tuple[dict[str, Any], str]] = {
    "heads": (
        {"resampler__heads": 2},
        "resampler.layers.0.0.to_q.weight is 48×128 instead of 32×128, by its model_cfg",
    ),
    "freq": ({"text__xattn__freq": 1}, "h.1.xattn_block.alpha_attn is missing, by its model_cfg"),
    "depth": (
        {"resampler__depth": 1},
        "holds resampler.layers.1.0.norm_media.weight, which is no part of such a model",
    ),
    "mapper": ({"enable_mapper": False}, "holds mapper._mapper.0.weight, which is no part of such a model"),
    "kind": ({"mapper__mapper_type": "conv"}, "mapper.mapper_type is 'conv' instead of one of mlp, transformer"),
    "text": ({"resampler__heads": "${name}"}, "resampler.heads is '${name}' instead of a whole number"),
    "open": ({"mapper__mlp_dim": "???"}, "mapper.mlp_dim is '???' instead of a whole number"),
    "fraction": ({"resampler__ff_mult": 1.5}, "resampler.ff_mult is 1.5 instead of a whole number"),
    "switch": ({"text__trainable": 1}, "text.trainable is 1 instead of true or false"),
    "activation": (
        {"resampler__activation": "selu"},
        "resampler.activation is 'selu' instead of one of gelu, relu, sqrelu",
    ),
}


@pytest.mark.parametrize("case", SETTINGS)
def test_weights_that_do_not_match_the_configuration_are_refused(project, capsys, case):
    changes, message = SETTINGS[case]
    write_checkpoint(project.file, changed(**changes), project.state())
    assert message in refusal(project, capsys)


def test_a_missing_key_of_the_configuration_is_named(project, capsys):
    config = changed()
    del config["model"]["resampler"]["num_latents"]
    write_checkpoint(project.file, config, project.state())
    assert "model_cfg has no resampler.num_latents" in refusal(project, capsys)


HEAD = "text_generator.lm."
WEIGHTS: dict[str, tuple[dict[str, Any], str]] = {
    "missing": ({f"{HEAD}transformer.h.1.ln_1.bias": None}, "transformer.h.1.ln_1.bias is missing"),
    "shape": ({f"{HEAD}transformer.ln_f.bias": torch.zeros(5)}, "transformer.ln_f.bias is 5 instead of 128"),
    "left over": ({"resampler.more": torch.zeros(5)}, "holds resampler.more, which is no part of such a model"),
    "head": ({f"{HEAD}lm_head.weight": torch.zeros(7, 128)}, "lm_head.weight differs from"),
    "vision": ({f"{VISION}post_layernorm.bias": None}, "vision_model.post_layernorm.bias is missing"),
    "patches": ({f"{VISION}embeddings.patch_embedding.weight": None}, "patch_embedding.weight is missing, not square"),
    "positions": (
        {f"{VISION}embeddings.position_embedding.weight": torch.zeros(8, 128)},
        "position_embedding.weight is 8×128, not that of a square image, a class token and heads of 64",
    ),
    "no tensor": ({"resampler.latents": "text"}, "resampler.latents is no ordinary tensor"),
    "sparse": (
        {f"{HEAD}transformer.wpe.weight": torch.zeros(128, 70).to_sparse()},
        "transformer.wpe.weight is no ordinary tensor",
    ),
}


@pytest.mark.parametrize("case", WEIGHTS)
def test_the_first_wrong_tensor_is_named(project, capsys, case):
    changes, message = WEIGHTS[case]
    state = {**project.state(), **changes}
    project.write({name: tensor for name, tensor in state.items() if tensor is not None})
    sentence = refusal(project, capsys)
    assert message in sentence and "captions-last.pt" in sentence


def test_other_files_and_tokenizers_are_refused(project, capsys):
    assert "captions-last.pt is missing" in refusal(project, capsys)
    torch.save({"state_dict": {}}, project.file)
    assert "is no checkpoint of that project: it has no model_cfg with" in refusal(project, capsys)
    torch.save(torch.zeros(3), project.file)
    assert "is no checkpoint of that project" in refusal(project, capsys)
    state = random_state(changed(), vocabulary=project.vocabulary + 2, tower=project.tower)
    project.write(state)
    assert f"the weights have {project.vocabulary + 2} tokens and the tokenizer" in refusal(project, capsys)


def test_a_missing_tokenizer_is_reported_with_a_way_out(project, capsys, monkeypatch):
    project.write()
    go_offline(monkeypatch, project.folder / "empty")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert main(["perceiver", str(project.file), "--out", str(project.out)]) == 2
    error = capsys.readouterr().err
    assert "--tokenizer: 'gpt2' is not on this machine" in error and "and set --tokenizer=THAT_FOLDER" in error


def test_truncated_files_are_refused(project, capsys):
    whole = project.write().read_bytes()
    for end in (0, 100, len(whole) // 2, len(whole) - 30):
        project.file.write_bytes(whole[:end])
        assert "captions-last.pt cannot be read as a file of torch.save" in refusal(project, capsys)
