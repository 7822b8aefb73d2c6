"""Further sources of the gate: a run of stage=vle_emotion and files of predictions, from stage=gate to predict."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from safetensors.torch import load_file

from common.errors import UserError
from data.emotions import EMOTIONS
from data.samples import Samples
from data.schema import Sample
from model.expert.fusion import Fusion
from model.expert.gate import GATES
from model.vle.heads import EMOTION_QUESTION, VLEForEmotion
from model.vle.processor import VLEProcessor
from tests.helpers.jobs import finish_job, launch_job
from tests.helpers.predictions import peak
from tests.helpers.tiny import run_mode, write_pictures, write_run, write_splits
from tests.helpers.vle_runs import network_keys
from tests.trainer.test_expert_stages import OF_STAGES, checkpoint, held_out, own, rows_of, runs
from trainer.interface import EmoScribe
from trainer.prediction.file_source import read_file
from trainer.prediction.other_sources import read_sources, split_entry
from trainer.setup.device import make_accelerator

FEW = {**OF_STAGES, "expert.student.epochs": 1, "trainer.check_val_every_n_epoch": 1}
LACKING = 2  # test pictures without an entry in the file of answers


def pictures(keys: dict, split: str) -> dict[str, tuple[Path, str]]:
    """Return path and likeliest emotion of each picture by id."""
    entries = json.loads(Path(keys[f"dataset.{split}_ds.json_path"]).read_text())
    root = Path(keys[f"dataset.{split}_ds.visual_dir"])
    return {id: (root / entry["image_name"], entry["emotions"][0]) for id, entry in entries.items()}


def write_lines(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_answers(keys: dict, path: Path) -> Path:
    """Write the right emotion of most pictures, by the paths of copies with other names; the splits share their ids."""
    rows = []
    for split in ("train", "validation", "test"):
        found = pictures(keys, split)
        for number, (id, (picture, felt)) in enumerate(found.items()):
            if split == "test" and number < LACKING:
                continue
            copy = path.parent / f"{split}-{id}-copy.png"
            shutil.copy(picture, copy)
            said = felt if number % 5 else EMOTIONS[(EMOTIONS.index(felt) + 1) % 9]
            rows.append({"image": copy.name, "emotion": said.upper()})
    return write_lines(path, rows)


@pytest.fixture(scope="module")
def keys(tmp_path_factory) -> dict:
    """Keys, after training captioner, student, VLE and gate, and a test."""
    root = tmp_path_factory.mktemp("sources")
    keys = {**write_splits(root, train=100, val=27, test=18), **FEW}
    write_run(keys, "mine")
    keys = own(keys)
    run_mode("train", {**keys, "stage": "student", "pretrained_name": "mine"})
    vle = {**keys, **network_keys(root), "stage": "vle_emotion", "dataset.name": "artemis"}
    left_out = {key: value for key, value in vle.items() if not key.startswith("expert.")}
    run_mode("train", {**left_out, "name": "vle"})
    run_mode("train", {**left_out, "name": "leaked", "dataset.gate_split": 0})
    keys["answers"] = write_answers(keys, root / "answers.jsonl")
    sources = f"[vle=vle, qwen={keys['answers']}]"
    run_mode("train", {**used(keys), "stage": "gate", "pretrained_name": "mine-student", "expert.sources": sources})
    run_mode("test", {**used(keys), "pretrained_name": "mine-gate"})
    return keys


def used(keys: dict) -> dict:
    return {key: value for key, value in keys.items() if key != "answers"}


def fitted(keys: dict) -> tuple[Fusion, dict]:
    found = checkpoint(keys, "mine-gate")
    fusion = Fusion.from_settings(found.info["expert"]["gate"])
    fusion.load_state_dict(load_file(found.folder / "gate.safetensors"))
    return fusion, found.info["expert"]["gate"]


def predict(keys: dict, folder: Path, name: str, **changes) -> dict[str, dict]:
    run_mode("predict", {**used(keys), "pretrained_name": "mine-gate", "image": folder, "name": name, **changes})
    rows = json.loads((runs(keys) / name / "predict" / "predictions.json").read_text())
    return {Path(row["image"]).name: row for row in rows}


# --- from stage=gate to predict --------------------------------------------------------------------------------------


def test_gate_remembers_its_sources(keys):
    fusion, gate = fitted(keys)
    assert fusion.sources == ("language_model", "student", "vle", "qwen")
    assert {name: found["path"] for name, found in gate["from"].items()} == {
        "vle": str(runs(keys) / "vle"),
        "qwen": str(keys["answers"]),
    }
    report = gate["report"]
    assert report["sources"]["qwen"]["accuracy"] > 0.6 > report["smoothing"]["qwen"] > 0.1
    assert report["sources"]["qwen"]["missing"] == report["sources"]["vle"]["missing"] == 0
    assert report["forms"]["average"]["weights"] == pytest.approx(dict.fromkeys(fusion.sources, 0.25), abs=1e-4)
    lines = (runs(keys) / "mine-gate" / "logits-vle.jsonl").read_text().splitlines()
    assert len(lines) == 1 + len(held_out(keys)[1]) + 27


def test_the_python_interface_needs_a_gate_without_further_sources(keys):
    place = {"trainer.exp_dir": str(runs(keys)), "dataset.vad_lexicon": keys["dataset.vad_lexicon"]}
    with pytest.raises(UserError, match=r"its gate also combines vle, qwen, .*expert\.enabled=false"):
        EmoScribe.from_pretrained("mine-gate", device="cpu", keys=place)
    alone = EmoScribe.from_pretrained("mine-gate", device="cpu", keys={**place, "expert.enabled": False})
    path, _ = next(iter(pictures(keys, "test").values()))
    assert sum(alone.emotions(path).values()) == pytest.approx(1, abs=1e-4)


def test_vle_gives_the_probabilities_that_it_gives_alone(keys):
    found = checkpoint(keys, "vle")
    network, processor = VLEForEmotion.from_pretrained(found.folder), VLEProcessor.from_pretrained(found.folder)
    temperature = fitted(keys)[1]["report"]["temperatures"]["vle"]
    for row in rows_of(runs(keys) / "mine-gate" / "test")[:4]:
        options = {"return_tensors": "pt", "truncation": True, "max_length": 16}
        with torch.no_grad():
            logits = network(**processor([EMOTION_QUESTION], [Image.open(row["image"])], **options)).logits
        expected = (logits[0] / temperature).softmax(dim=0)
        torch.testing.assert_close(torch.tensor(row["sources"]["vle"]), expected, atol=1e-4, rtol=1e-3)


def test_answers_are_found_by_the_content_of_the_picture(keys):
    gate = fitted(keys)[1]
    felt = {str(path): emotion for path, emotion in pictures(keys, "test").values()}
    share = gate["report"]["smoothing"]["qwen"]
    rows = rows_of(runs(keys) / "mine-gate" / "test")
    assert ["qwen" in row["sources"] for row in rows] == [number >= LACKING for number in range(18)]
    for number, row in enumerate(rows[LACKING:], start=LACKING):
        shares = torch.tensor(row["sources"]["qwen"])
        expected = torch.full((9,), share / 9)
        expected[(EMOTIONS.index(felt[row["image"]]) + (number % 5 == 0)) % 9] += 1 - share
        torch.testing.assert_close(shares, expected, atol=1e-5, rtol=1e-4)


def test_result_is_that_of_the_gates_with_the_average_for_a_missing_source(keys):
    fusion, _ = fitted(keys)
    for row in rows_of(runs(keys) / "mine-gate" / "test"):
        logs = [torch.tensor(row["sources"][name]).log() for name in fusion.sources if name in row["sources"]]
        logs += [torch.stack(logs).mean(dim=0).log_softmax(dim=0)] * (4 - len(logs))
        for name in GATES:
            expected = fusion.gates[name](torch.stack(logs)[None]).log_probs[0].exp()
            torch.testing.assert_close(torch.tensor(row["gates"][name]), expected, atol=1e-4, rtol=1e-3)
        assert row["gates"][row["gate"]["name"]] == row["emotion_distribution"]


def test_test_reports_sources_by_name(keys):
    folder = runs(keys) / "mine-gate" / "test"
    expert = json.loads((folder / "metrics.json").read_text())["expert"]
    assert {"language_model", "student", "vle", "qwen", *GATES, "oracle"} <= expert["rows"].keys()
    assert expert["rows"]["oracle"]["accuracy"] >= max(expert["rows"][name]["accuracy"] for name in ("vle", "qwen"))
    assert len(expert["agreements"]) == 6 and expert["gate"]["weights"].keys() == {*fitted(keys)[0].sources}
    assert any("qwen: 2 of 18 images have no entry" in note for note in expert["notes"])
    page = (folder / "report.html").read_text()
    assert page.count('class="fill other"') > 0 and "vle, qwen" in page


def test_new_pictures_are_seen_by_vle_and_not_in_the_file(keys, tmp_path, capsys):
    write_pictures(tmp_path / "new", 3, size=44)
    found = predict(keys, tmp_path / "new", "new")
    assert all(row["sources"].keys() == {"language_model", "student", "vle"} for row in found.values())
    assert "qwen: 3 of 3 pictures have no entry" in capsys.readouterr().err
    keys["answers"].rename(tmp_path / "away.jsonl")
    try:
        again = predict(keys, tmp_path / "new", "again")
    finally:
        (tmp_path / "away.jsonl").rename(keys["answers"])
    assert "answers.jsonl is missing" in capsys.readouterr().err
    for name, row in found.items():
        assert again[name]["emotion_distribution"] == row["emotion_distribution"]


def test_file_for_other_pictures_is_named_in_predict(keys, tmp_path):
    (picture, *_) = write_pictures(tmp_path / "new", 2, size=45)
    other = write_lines(tmp_path / "other.jsonl", [{"id": "new/picture-000.png", "emotion": "fear"}])
    found = predict(keys, tmp_path / "new", "named", **{"expert.sources": f"qwen={other}"})
    shares = found[picture.name]["sources"]["qwen"]
    assert EMOTIONS[shares.index(max(shares))] == "fear"
    assert "qwen" not in found["picture-001.png"]["sources"] and "vle" in found["picture-001.png"]["sources"]


def test_computed_probabilities_are_kept(keys, monkeypatch):
    def refuse(*args: object, **options: object) -> None:
        raise AssertionError("VLE was loaded")

    monkeypatch.setattr(VLEForEmotion, "from_pretrained", refuse)
    run_mode("test", {**used(keys), "pretrained_name": "mine-gate", "trainer.overwrite": True})
    changed = {"pretrained_name": "mine-gate", "name": "elsewhere"}
    with pytest.raises(AssertionError, match="VLE was loaded"):
        run_mode("test", {**used(keys), **changed})


def test_two_processes_test_like_one(keys, tmp_path):
    job = {**used(keys), "mode": "test", "pretrained_name": "mine-gate", "name": "two"}
    _, second = finish_job(launch_job(job, tmp_path / "logs"), tmp_path / "logs")
    assert second == "", "the first process speaks"
    one, two = (rows_of(runs(keys) / name / "test") for name in ("mine-gate", "two"))
    assert [row["id"] for row in one] == [row["id"] for row in two]
    for mine, other in zip(one, two, strict=True):
        assert mine["sources"].keys() == other["sources"].keys()
        for name, shares in mine["sources"].items():
            assert shares == pytest.approx(other["sources"][name], abs=1e-4)
    assert len((runs(keys) / "two/test/logits-vle.jsonl").read_text().splitlines()) == 1 + 18, "every picture, once"


# --- errors ----------------------------------------------------------------------------------------------------------


def refused(keys: dict, sources: str, mode: str = "train") -> str:
    run = {"stage": "gate", "pretrained_name": "mine-student"} if mode == "train" else {"pretrained_name": "mine-gate"}
    with pytest.raises(UserError) as caught:
        again = {"name": "refused", "trainer.overwrite": True}  # some are refused after the run has begun
        run_mode(mode, {**used(keys), **run, **again, "expert.sources": sources})
    said = str(caught.value)
    assert "\n" not in said
    return said


@pytest.mark.parametrize(
    ("sources", "said"),
    [
        ("nothing", "'nothing' is not NAME=WHAT"),
        ("a b=vle", "the name 'a b' must consist of letters, digits and underscores"),
        ("student=vle", "student is the name of something else"),
        ("v=vle, v=vle", "names v twice"),
        ("v=nowhere", "expert.sources: v=nowhere: there is no checkpoint in"),
        ("v=nowhere.jsonl", "nowhere.jsonl: there is no such file"),
        ("v=mine", "is of stage=caption; v must be a run of stage=vle_emotion"),
    ],
)
def test_sources_that_are_none(keys, sources, said):
    assert said in refused(keys, sources)


def test_vle_that_has_seen_the_images_is_refused(keys):
    assert "were trained on by the v," in refused(keys, "v=leaked")


def test_file_without_any_of_the_pictures(keys, tmp_path):
    file = write_lines(tmp_path / "other.jsonl", [{"id": "x", "emotion": "awe"}])
    assert "has no prediction for any of the" in refused(keys, f"[v={file}]")
    assert "has no prediction for any of the 18 pictures" in refused(keys, f"qwen={file}", mode="test")


def test_sources_of_a_test_are_those_of_the_gate(keys, tmp_path):
    file = write_lines(tmp_path / "shares.jsonl", [{"id": "1000", "emotion_distribution": peak("awe")}])
    assert "the gate was not fitted with other" in refused(keys, f"other={file}", mode="test")
    assert "was fitted with answers without probabilities of qwen" in refused(keys, f"qwen={file}", mode="test")


LABELS = ("awe", "fear", "joy")


def read(path: Path, *rows: dict):
    return read_file("v", write_lines(path / "rows.jsonl", [*rows]), LABELS)


def found_in(source, paths: list[Path], ids: list[str] | None = None) -> dict[str, list[float]]:
    named = zip(ids or map(str, paths), paths, strict=True)
    samples = Samples.pack((Sample(id, path, ()) for id, path in named), LABELS)
    config = OmegaConf.create(
        {"dataset": {"feature_cache": None}, "trainer": {"device": "cpu", "precision": "fp32", "timeout_minutes": 1}}
    )
    logs = source.log_probs(samples, config, make_accelerator(config), Path())
    return {id: [round(p, 4) for p in row.exp().tolist()] for id, row in logs.items()}


@pytest.mark.parametrize(
    "given",
    [
        {"emotion_distribution": [0.5, 0.5, 0.0]},
        {"label_probabilities": {"Fear": 2, "awe": 2}},
        {"probabilities": [1, 1, 0], "labels": [*LABELS], "emotion": "awe"},
    ],
)
def test_forms_of_probabilities(tmp_path, given):
    source = read(tmp_path, {"id": "7", **given}, {"id": "8", "emotion": "joy"})
    assert not source.answers and found_in(source, [tmp_path / "a.png"], ["7"]) == {"7": [0.5, 0.5, 0.0]}
    assert found_in(source, [tmp_path / "a.png"], ["8"]) == {}, "an answer among probabilities is no entry"


def test_answers_in_a_table(tmp_path):
    path = tmp_path / "answers.csv"
    path.write_text("image,label\nfolder/a.png,Joy\nfolder/b.png,nothing of these\n", encoding="utf-8")
    source = read_file("v", path, LABELS)
    assert source.answers
    assert found_in(source, [tmp_path / "folder/a.png", tmp_path / "folder/b.png"]) == {
        str(tmp_path / "folder/a.png"): [0, 0, 1]
    }


def test_content_goes_before_id_and_id_before_the_name(tmp_path):
    (one, other) = write_pictures(tmp_path / "pictures", 2)
    shutil.copy(one, tmp_path / "copy.png")
    rows = [{"id": "7", "emotion": "awe"}, {"id": "9", "image": "copy.png", "emotion": "fear"}]
    source = read(tmp_path, *rows, {"image": other.name, "emotion": "joy"})
    assert found_in(source, [one, other], ["7", "9"]) == {"7": [0, 1, 0], "9": [0, 1, 0]}
    assert found_in(source, [one, other], ["5", "6"]) == {"5": [0, 1, 0], "6": [0, 0, 1]}
    twin = tmp_path / "more" / other.name
    assert found_in(source, [other, twin], ["5", "6"]) == {}, "a name of two pictures stands for neither"


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"emotion": "awe"}, "line 1: none of the keys image_id, id"),
        ({"id": "7", "emotion": "sleepy"}, "has one of the emotions awe, fear, joy under"),
        ({"id": "7", "emotion_distribution": [0.5, 0.5]}, "must be three numbers"),
        ({"id": "7", "emotion_distribution": {"calm": 1}}, "'calm' is not one of the three emotions"),
        ({"id": "7", "labels": ["joy", "fear"], "probabilities": [1, 0]}, "is for the emotions joy, fear, and here"),
    ],
)
def test_malformed_rows(tmp_path, row, said):
    with pytest.raises(UserError, match=said):
        read(tmp_path, row)


def test_picture_twice(tmp_path):
    with pytest.raises(UserError, match="line 2: the picture '7' occurs twice in the file"):
        read(tmp_path, {"id": "7", "emotion": "awe"}, {"id": "7", "emotion": "joy"})


def test_vle_with_other_labels(keys):
    config = OmegaConf.create({"dataset": {"labels": [*LABELS]}, "trainer": {"exp_dir": str(runs(keys))}})
    with pytest.raises(UserError, match=r"is for the emotions amusement, .* and here they are awe, fear, joy"):
        read_sources(["v=vle"], config)


def test_entries_may_have_spaces():
    assert split_entry(" my_vle2 = runs/a=b ") == ("my_vle2", "runs/a=b")
