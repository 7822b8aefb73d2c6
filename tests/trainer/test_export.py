"""python -m trainer.export: a folder that predicts the same elsewhere, with and without the frozen parts."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path

import pytest
import timm
import torch
import yaml
from safetensors.torch import load_file, save_file
from timm.models._hub import save_for_hf
from transformers import AutoConfig, AutoModelForCausalLM, CLIPVisionConfig, CLIPVisionModel

from common.errors import UserError
from common.html.tables import number, percent
from common.locks import locked
from data.emotions import labels_of
from model.build import SpecialTokens, build_captioner, own_state
from model.standalone import make_standalone
from tests.helpers.tiny import (
    RESNET,
    ROOT,
    make_batch,
    model_config,
    run_mode,
    write_gpt2,
    write_open_clip,
    write_pictures,
    write_run,
    write_splits,
)
from tests.helpers.towers import VIT
from tests.model.test_language_families import WIDE
from trainer.export.__main__ import main
from trainer.runs.retention import entries, find_damage

pytestmark = pytest.mark.usefixtures("fast_yaml")

ROWS = 340  # of the embedding; the tokenizer has 330 tokens


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("author")


@pytest.fixture(scope="module")
def keys(root) -> dict[str, object]:
    write_pictures(root / "pictures", 3)
    keys = write_splits(root)
    keys |= {"dataset.validation_ds.batch_size": 8, "trainer.test.match_images": 0, "trainer.test.max_length": 5}
    return keys | {"model.resampler.depth": 1, "model.contrastive.enabled": False, "trainer.limit_val_batches": 1}


def from_folders(root: Path) -> dict[str, object]:
    """Frozen backbones in folders: a CLIP with a transform of its own, and a GPT-2 with rows of no token."""
    vision = write_open_clip(root / "clip", mean=[0.4, 0.5, 0.6], resize_mode="squash")
    text = write_gpt2(root / "gpt2", vocab_size=ROWS, initializer_range=0.3)
    return {
        "model.vision.pretrained_name": vision,
        "model.vision.config": None,
        "model.text.pretrained_name": text,
        "model.text.config": None,
        "model.text.new_vocabulary": False,
    }


@pytest.fixture(scope="module")
def run(root, keys) -> Path:
    """With a lexicon and backbones in folders of the author; tested."""
    run = write_run({**keys, **from_folders(root), "dataset.tokenizer": root / "tokenizer"}, "painter")
    run_mode("test", {"pretrained_name": run})
    return run


def export(run: Path, out: Path, *options: str) -> Path:
    assert main([str(run), "--out", str(out), *options]) == 0
    return out


def predict(pretrained: Path, pictures: Path, keys: dict[str, object] | None = None) -> list[dict]:
    run_mode("predict", {"pretrained_name": pretrained, "image": pictures, **(keys or {})})
    folder = pretrained / "predict"
    rows = json.loads((folder / "predictions.json").read_text())
    shutil.rmtree(folder)
    return rows


@pytest.fixture(scope="module")
def predicted(run, root) -> list[dict]:
    return predict(run, root / "pictures")


def texts_of(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir() if path.suffix not in (".safetensors", ".png")}


@pytest.fixture(scope="module")
def frozen(run, tmp_path_factory) -> Path:
    return export(run, tmp_path_factory.mktemp("elsewhere") / "export", "--frozen")


@pytest.fixture(scope="module")
def plain(run, tmp_path_factory) -> Path:
    """Without the frozen parts."""
    return export(run, tmp_path_factory.mktemp("elsewhere") / "plain")


def test_export_predicts_the_same_in_another_folder(run, plain, root, predicted, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    places = {f"model.{part}.pretrained_name": root / name for part, name in (("vision", "clip"), ("text", "gpt2"))}
    rows = predict(plain, root / "pictures", {**places, "dataset.vad_lexicon": root / "lexicon.csv"})
    assert rows == predicted and len({row["explanation"] for row in rows}) > 1
    weights = entries(run / "checkpoints")[0].folder / "model.safetensors"
    assert (plain / "model.safetensors").read_bytes() == weights.read_bytes()


def test_warning_names_the_parts_that_the_export_lacks(run, root, tmp_path, capsys):
    card = (export(run, tmp_path / "export") / "README.md").read_text()
    assert f"warning: model.vision.pretrained_name={root / 'clip'} is on this machine" in capsys.readouterr().err
    places = " ".join(f"model.{part}.pretrained_name=PATH" for part in ("vision", "text"))
    assert f"image=painting.jpg {places} dataset.vad_lexicon=PATH" in card


def test_frozen_export_needs_no_other_file(root, frozen, predicted, tmp_path):
    hidden = {root / name: tmp_path / name for name in ("clip", "gpt2")}
    for place, other in hidden.items():
        shutil.move(place, other)
    try:
        rows = predict(frozen, root / "pictures", {"dataset.vad_lexicon": root / "lexicon.csv"})
    finally:
        for place, other in hidden.items():
            shutil.move(other, place)
    assert rows == predicted
    model = yaml.safe_load((frozen / "config.yaml").read_text())["model"]
    assert model["text"]["config"]["vocab_size"] == ROWS and model["vision"]["preprocess"]["mean"] == [0.4, 0.5, 0.6]


def test_files_and_their_checksums(run, frozen, tmp_path):
    assert {path.name for path in frozen.iterdir()} == {
        *("README.md", "SHA256SUMS", "checkpoint.json", "config.yaml", "model.safetensors", "recall.png"),
        *("tokenizer.json", "trained_on.safetensors"),
    }
    assert find_damage(frozen) is None
    (frozen / "README.md").write_text((frozen / "README.md").read_text() + "\n")
    assert find_damage(frozen) is None, "the author may edit the card"


@pytest.mark.parametrize("kind", ["plain", "frozen"])
def test_no_text_names_a_folder_of_the_author(root, kind, request):
    found = request.getfixturevalue(kind)
    for name, text in texts_of(found).items():
        for place in (root.parent, Path.home(), ROOT):
            assert f"{place}/" not in text, name
    dataset = yaml.safe_load((found / "config.yaml").read_text())["dataset"]
    assert dataset["vad_lexicon"] == "lexicon.csv" and dataset["train_ds"]["json_path"] is None


def test_export_without_its_lexicon_names_the_key(root, frozen):
    with pytest.raises(UserError, match=r"lexicon\.csv.*dataset\.vad_lexicon"):
        predict(frozen, root / "pictures")


def transformers_tower(root: Path) -> dict[str, object]:
    torch.manual_seed(0)
    CLIPVisionModel(CLIPVisionConfig(**VIT)).save_pretrained(root / "tower")
    processor = {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 36}, "image_std": [0.3] * 3}
    processor |= {"crop_size": {"height": 32, "width": 32}, "do_center_crop": True, "resample": 2}
    (root / "tower/preprocessor_config.json").write_text(json.dumps(processor))
    return {"model.vision.pretrained_name": root / "tower", "model.vision.config": None}


def llama(root: Path) -> dict[str, object]:
    torch.manual_seed(0)
    config = AutoConfig.for_model(**{**WIDE["llama"], "vocab_size": ROWS, "rope_theta": 500.0, "pad_token_id": 3})
    AutoModelForCausalLM.from_config(config).save_pretrained(root / "llama")
    return {"model.text.pretrained_name": root / "llama", "model.text.config": None, "model.text.lora.r": 2}


def test_a_tower_of_transformers_and_a_llama_with_lora(keys, tmp_path):
    author = tmp_path / "author"
    author.mkdir()
    settings = {**transformers_tower(author), **llama(author), "trainer.exp_dir": author, "dataset.vad_lexicon": None}
    run = write_run({**keys, **settings, "model.optimizer.lr": 0.01}, "painter")
    assert any("lora_B" in name for name in load_file(entries(run / "checkpoints")[0].folder / "model.safetensors"))
    write_pictures(tmp_path / "pictures", 3)
    expected = predict(run, tmp_path / "pictures")
    found = export(run, tmp_path / "export", "--frozen")
    shutil.rmtree(author)
    assert predict(found, tmp_path / "pictures") == expected
    assert yaml.safe_load((found / "config.yaml").read_text())["model"]["text"]["lora"]["r"] is None


def timm_folder(root: Path) -> dict[str, object]:
    torch.manual_seed(0)
    network = timm.create_model("test_vit", num_classes=3)
    save_for_hf(network, str(root / "timm"))
    save_file(network.state_dict(), root / "timm/model.safetensors")
    return {"vision__pretrained_name": str(root / "timm")}


def timm_file(root: Path) -> dict[str, object]:
    save_file(timm.create_model("test_convnext").state_dict(), root / "weights.safetensors")
    return {"vision__pretrained_name": str(root / "weights.safetensors"), "vision__architecture": "timm/test_convnext"}


def resnet(root: Path) -> dict[str, object]:
    return {"vision__pretrained_name": str(write_open_clip(root / "resnet", vision=RESNET))}


def trunk(root: Path) -> dict[str, object]:
    vision = {"timm_model_name": "test_vit", "timm_pool": "", "timm_proj": "linear", "image_size": 160}
    return {"vision__pretrained_name": str(write_open_clip(root / "trunk", vision=vision))}


def xglm(root: Path) -> dict[str, object]:
    config = AutoConfig.for_model(**{**WIDE["xglm"], "vocab_size": ROWS, "pad_token_id": 1})
    AutoModelForCausalLM.from_config(config).save_pretrained(root / "xglm")
    return {"text__pretrained_name": str(root / "xglm")}


def sevlm(root: Path) -> dict[str, object]:
    gpt2 = write_gpt2(root / "gpt2", vocab_size=300)
    return {"text__pretrained_name": str(gpt2), "architecture": "sevlm", "contrastive__negatives": "states"}


@torch.no_grad()
@pytest.mark.parametrize("source", [timm_folder, timm_file, resnet, trunk, xglm, sevlm])
def test_networks_are_built_again_from_their_own_weights(source, template, tmp_path):
    section = model_config(**source(tmp_path))
    special = SpecialTokens(0, (1, 2)) if source is sevlm else None
    build = partial(build_captioner, vocab_size=330, eos_id=0, special=special)
    captioner = build(section).eval()
    other = make_standalone(captioner, section)
    assert other["vision"]["pretrained_name"] is other["text"]["pretrained_name"] is None
    again, state = build(json.loads(json.dumps(other))).eval(), own_state(captioner)
    assert own_state(again).keys() == state.keys()
    again.load_state_dict(state, strict=False)
    batch = make_batch(tmp_path / "pictures", template, captioner)
    assert torch.equal(again.encode(batch.frames), captioner.encode(batch.frames))
    assert torch.equal(again(batch).logits, captioner(batch).logits)
    assert json.dumps(again.vision.preprocess) == json.dumps(captioner.vision.preprocess)


def test_a_network_that_cannot_be_built_again_is_refused(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("model.standalone.tower_settings", lambda *_: {"width": 16, "layers": 1, "image_size": 32})
    assert main([str(run), "--out", str(tmp_path / "export"), "--frozen"]) == 2
    assert "cannot be built again" in capsys.readouterr().err
    assert not [*tmp_path.iterdir()]


def test_a_run_with_an_emotion_classifier(run, keys, root, tmp_path, capsys):
    expert = {"expert.student.epochs": 1, "expert.student.depth": 0, "trainer.exp_dir": tmp_path / "runs"}
    run_mode("train", {**expert, "stage": "student", "pretrained_name": run, "name": "student"})
    student = tmp_path / "runs/student"
    expected = predict(student, root / "pictures")
    found = export(student, tmp_path / "export", "--frozen")
    assert (found / "student.safetensors").is_file() and "| emotion classifier |" in (found / "README.md").read_text()
    rows = predict(found, root / "pictures", {"dataset.vad_lexicon": root / "lexicon.csv"})
    assert rows == expected and rows[0]["sources"].keys() == {"language_model", "student"}
    folder = entries(student / "checkpoints")[0].folder
    (folder / "SHA256SUMS").unlink()
    info = json.loads((folder / "checkpoint.json").read_text())
    info["expert"]["gate"] = {"from": {"vle": {"path": "/runs/vle"}}}
    (folder / "checkpoint.json").write_text(json.dumps(info))
    assert "also reads vle" in fails(capsys, student, "--out", tmp_path / "other")


# --- the card ---------------------------------------------------------------------------------------------------------


def front_matter(card: str) -> dict:
    return yaml.safe_load(card.split("---\n")[1])


def test_card_states_the_scores_of_the_test(run, frozen, tmp_path):
    metrics = json.loads((run / "test/metrics.json").read_text())
    card = (frozen / "README.md").read_text()
    front = front_matter(card)
    (entry,) = front["model-index"]
    found = {result["name"]: result["value"] for result in entry["results"][0]["metrics"]}
    assert found["emotion accuracy, more than half"] == metrics["emotion"]["accuracy"]
    assert found["captions BLEU-4"] == metrics["captions"]["BLEU-4"]
    assert front["pipeline_tag"] == "image-to-text" and front["library_name"] == "emoscribe" and "license" not in front
    assert f"| accuracy | {percent(metrics['emotion']['accuracy'])} [" in card
    assert f"| CIDEr | {number(metrics['captions']['CIDEr'])}" in card and "more than half of the votes" in card
    assert "### Baselines" in card and number(metrics["baselines"]["systems"]["nearest"]["captions"]["CIDEr"]) in card
    assert all(label in card for label in labels_of(metrics["emotion"])), "the emotions are listed"
    assert "8 training images" in card and "preset `none`" not in card and "non-commercial" in card
    assert 1000 < (frozen / "recall.png").stat().st_size < 100_000 and "![Recall by emotion](recall.png)" in card
    assert "{{" not in card and "{%" not in card and "\n\n\n\n" not in card


def test_card_of_a_network_that_was_not_tested_says_so(run, tmp_path):
    copy = shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("test"))
    found = export(copy, tmp_path / "export", "--license", "cc-by-nc-4.0")
    card = (found / "README.md").read_text()
    assert "has not been tested" in card and front_matter(card)["license"] == "cc-by-nc-4.0"
    assert "model-index" not in front_matter(card) and not (found / "recall.png").exists()


def test_scores_of_another_step_are_not_in_the_card(run, tmp_path, capsys):
    copy = shutil.copytree(run, tmp_path / "run")
    metrics = json.loads((copy / "test/metrics.json").read_text())
    (copy / "test/metrics.json").write_text(json.dumps({**metrics, "step": 1000}))
    card = (export(copy, tmp_path / "export") / "README.md").read_text()
    assert "has not been tested" in card and "is not of step" in capsys.readouterr().err


# --- bad input --------------------------------------------------------------------------------------------------------


def fails(capsys, *words: object) -> str:
    capsys.readouterr()
    assert main([*map(str, words)]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    return line


def test_run_without_weights(tmp_path, capsys):
    (tmp_path / "run").mkdir()
    assert "there is no checkpoint in" in fails(capsys, tmp_path / "run", "--out", tmp_path / "export")


def test_run_that_is_being_written(run, tmp_path, capsys):
    with locked(run / ".lock", purpose="training"):
        assert "is in use by process" in fails(capsys, run, "--out", tmp_path / "export")


def other_stage(run: Path, folder: Path, stage: str) -> Path:
    copy = shutil.copytree(entries(run / "checkpoints")[0].folder, folder)
    (copy / "SHA256SUMS").unlink()
    config = (copy / "config.yaml").read_text()
    (copy / "config.yaml").write_text(config.replace("stage: caption", f"stage: {stage}"))
    return copy


def test_runs_of_other_stages(run, tmp_path, capsys):
    vqa = other_stage(run, tmp_path / "vqa", "vle_vqa")
    assert "is of stage=vle_vqa: name a run of stage=caption" in fails(capsys, vqa, "--out", tmp_path / "export")
    teacher = other_stage(run, tmp_path / "teacher", "teacher")
    (teacher / "tokenizer.json").unlink()
    assert "stage=teacher" in fails(capsys, teacher, "--out", tmp_path / "export")


def test_folder_inside_the_run(run, capsys):
    assert "is inside the run" in fails(capsys, run, "--out", run / "export")


def test_folder_that_exists(run, tmp_path, capsys):
    out = tmp_path / "export"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    assert "is not empty" in fails(capsys, run, "--out", out)
    assert "something other than an export" in fails(capsys, run, "--out", out, "--overwrite")
    (out / "notes.txt").unlink()
    export(run, out)
    assert "is not empty" in fails(capsys, run, "--out", out)
    export(run, out, "--overwrite")
    assert "is a file" in fails(capsys, run, "--out", out / "README.md")


def test_private_needs_push(run, tmp_path):
    with pytest.raises(SystemExit, match="2"):
        main([str(run), "--out", str(tmp_path / "export"), "--private"])
