"""mode=test and mode=predict with runs of VLE's stages: files, pages, and the user's mistakes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from common.errors import UserError
from data.emotions import EMOTIONS
from tests.helpers.tiny import run_mode, write_run, write_splits
from tests.helpers.vle_runs import COLORS, NETWORK, network_keys, train_run, vle_keys, write_picture
from trainer.runs.checkpoint import find_checkpoint
from trainer.score.__main__ import main as score

LONG = "what color is the boat under the enormous sky and why is it lost in the storm " * 3
HOSTILE = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    """Return the keys of a stage; all stages share data and runs."""
    root, found = tmp_path_factory.mktemp("vle"), {}

    def call(stage: str) -> dict[str, object]:
        if stage not in found:
            found[stage] = vle_keys(root, stage, train=8, others=5)
        return found[stage]

    return call


@pytest.fixture(scope="module")
def trained(keys):
    """Return a run of a stage, trained once."""
    found: dict[str, Path] = {}

    def call(stage: str, **changes: object) -> Path:
        name = "-".join([stage, *map(str, changes.values())])
        if name not in found:
            found[name] = train_run(keys(stage), name, trainer__limit_train_batches=1, **changes)
        return found[name]

    return call


@pytest.fixture
def command(tmp_path):
    """Run a mode with a run and keys (__ for dots), and return the folder of its files."""

    def call(mode: str, run: Path, **changes: object) -> Path:
        own = {key.replace("__", "."): value for key, value in changes.items()}
        run_mode(mode, {"preset": "none", "pretrained_name": run, "trainer.exp_dir": tmp_path, "name": "out", **own})
        return tmp_path / "out" / mode

    return call


def read(folder: Path, name: str = "predictions.jsonl") -> list[dict] | dict:
    text = (folder / name).read_text()
    return [json.loads(line) for line in text.splitlines()] if name.endswith("l") else json.loads(text)


def refused(call, *arguments: object, **changes: object) -> str:
    with pytest.raises(UserError) as caught:
        call(*arguments, **changes)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- mode=test -------------------------------------------------------------------------------------------------------


def test_answers_are_written_in_the_form_of_vqas_server(trained, keys, command, tmp_path):
    rows = Path(str(keys("vle_vqa")["dataset.test_ds.json_path"])).read_text()
    path = tmp_path / "rows.jsonl"
    path.write_text(rows.replace("is there a boat", f"is there {HOSTILE}").replace('"yes": 0.3', '"purple": 0.3'))
    folder = command("test", trained("vle_vqa"), dataset__test_ds__json_path=path)
    found = read(folder)
    assert [row["id"] for row in found] == [n for i in range(5) for n in (10 * i, 10 * i + 1)]
    vocabulary = {*COLORS, "yes", "no"}
    assert all(row["answer"] in vocabulary and 0 < row["score"] <= 1 for row in found)
    assert read(folder, "answers.json") == [{"question_id": row["id"], "answer": row["answer"]} for row in found]
    section = read(folder, "metrics.json")["vqa"]
    reached = [row["answers"].get(row["answer"], 0.0) for row in found]
    assert section["questions"] == 10 and section["accuracy"] == pytest.approx(sum(reached) / 10)
    assert section["types"].keys() == {"color", ""} and "accuracy" in section["intervals"]
    page = (folder / "report.html").read_text()
    assert "&lt;script&gt;alert(1)" in page and HOSTILE not in page


def test_pairs_are_scored_and_retrieved(trained, command):
    folder = command("test", trained("vle_itm"))
    found, section = read(folder), read(folder, "metrics.json")["match"]
    assert len(found) == 10 == section["pairs"] and section["baseline"] == 0.5
    right = sum((row["score"] > 0.5) == row["match"] for row in found)
    assert section["accuracy"] == right / 10
    assert section["retrieval"]["text_to_image"]["candidates"] == 4
    without = command("test", trained("vle_itm"), vle__retrieval_images=0, trainer__test__limit_batches=1)
    assert "retrieval" not in (metrics := read(without, "metrics.json"))["match"] and metrics["images"] == 4


def test_regions_are_scored_in_the_visible_part(trained, command):
    folder = command("test", trained("vle_pbc"))
    found, section = read(folder), read(folder, "metrics.json")["regions"]
    assert len(found) == section["texts"] == 5 and len(found[0]["scores"]) == 16
    assert found[0]["boxes"] == [[0.125, 0.25, 0.875, 0.75]]
    assert section["positive_rate"] == pytest.approx(6 / 16)
    assert "data:image/png;base64" in (folder / "report.html").read_text()


def test_pretraining_is_tested_for_pairs_and_regions(trained, command):
    metrics = read(command("test", trained("vle_pretrain")), "metrics.json")
    assert metrics["match"]["pairs"] == 10 and metrics["regions"]["texts"] >= 1
    assert metrics["losses"].keys() == {"match", "patches", "words", "object"}


def test_vcr_has_three_scores_with_a_partner(trained, command):
    q2a, qa2r = trained("vle_vcr"), trained("vle_vcr", vle__vcr="qa2r")
    alone = read(command("test", q2a), "metrics.json")["vcr"]
    assert alone.keys() == {"Q2A", "chance", "questions", "intervals"}
    folder = command("test", qa2r, vle__partner=q2a)
    found, both = read(folder), read(folder, "metrics.json")["vcr"]
    assert both["Q2A"] == alone["Q2A"] and both["questions"] == 5 and both["chance"]["Q2AR"] == 1 / 16
    assert both["QA2R"] == sum(row["prediction"] == row["label"] for row in found) / 5
    assert found[0]["question"] == "why is Casey and Riley in the sea" and found[0]["answer"] in found[0]["choices"]
    assert {row["img_fn"] for row in found} == {f"v{number}.png" for number in range(3)}


@pytest.fixture(scope="module")
def emotions(tmp_path_factory) -> Path:
    keys = write_splits(tmp_path_factory.mktemp("paintings"), train=8, val=4, test=5)
    root = Path(str(keys["trainer.exp_dir"]))
    own = {key: value for key, value in keys.items() if key.startswith(("dataset.", "preset", "trainer."))}
    return train_run(own | network_keys(root) | {"stage": "vle_emotion"}, "feel")


def test_emotions_are_scored_as_those_of_a_captioner(emotions, command, tmp_path, capsys):
    folder = command("test", emotions)
    names = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
    assert names >= {"predictions.jsonl", "metrics.json", "per_image.jsonl", "report.html"}
    rows, metrics = read(folder), read(folder, "metrics.json")
    temperature = find_checkpoint(str(emotions), Path()).info["emotion_temperature"]
    logits = {row["image"]: torch.tensor(row["teacher"]) for row in read(emotions, "logits.jsonl")[1:]}
    for row in rows:
        assert row["emotion"] == EMOTIONS[row["emotion_distribution"].index(max(row["emotion_distribution"]))]
        assert sum(row["histogram"]) == pytest.approx(1) and row["explanation"] is None
        assert (row["references"], row["reference_emotions"]) == ([], [])
        assert row["emotion_temperature"] == temperature != 1
    shared = sorted({*logits} & {Path(row["image"]).name for row in rows})
    assert len(shared) == 5
    uncalibrated = read(command("test", emotions, trainer__test__emotion_temperature=1))
    for row, other in zip(rows, uncalibrated, strict=True):
        expected = (torch.tensor(other["emotion_distribution"]).log() / temperature).softmax(0)
        torch.testing.assert_close(torch.tensor(row["emotion_distribution"]), expected, atol=1e-4, rtol=1e-3)
    right = sum(row["emotion"] == EMOTIONS[row["histogram"].index(max(row["histogram"]))] for row in rows)
    assert metrics["emotion"]["accuracy"] == right / 5 and metrics["captions"] == {}
    again = tmp_path / "rows.jsonl"
    again.write_text("".join(json.dumps(row) + "\n" for row in rows))
    score(["--predictions", str(again), "--out", str(tmp_path / "again")])
    assert read(tmp_path / "again", "metrics.json")["emotion"] == metrics["emotion"]
    assert "Emotion" in (folder / "report.html").read_text()


def test_unreadable_pictures_are_skipped_and_listed(trained, keys, command, tmp_path):
    images = Path(shutil.copytree(str(keys("vle_vqa")["dataset.test_ds.visual_dir"]), tmp_path / "images"))
    (images / "p2.png").write_bytes(b"no picture")
    own = {"dataset__test_ds__visual_dir": images}
    folder = command("test", trained("vle_vqa"), **own)
    assert {row["image"] for row in read(folder)} == {"p0", "p1", "p3", "p4"}
    (skipped,) = read(folder, "skipped.jsonl")
    assert skipped["id"] == "p2" and "p2.png" in (folder / "report.html").read_text()
    assert "p2.png" in refused(command, "test", trained("vle_vqa"), dataset__strict=True, **own)
    for path in images.glob("p*.png"):
        path.write_bytes(b"no picture")
    assert "none of its pictures could be read" in refused(command, "test", trained("vle_vqa"), **own)


# --- mode=predict ----------------------------------------------------------------------------------------------------


@pytest.fixture
def gallery(tmp_path) -> Path:
    """Two pictures and a file that is none."""
    for color in COLORS[:2]:
        write_picture(tmp_path / "gallery" / f"{color}.png", color)
    (tmp_path / "gallery" / "broken.png").write_bytes(b"no picture")
    return tmp_path / "gallery"


def test_a_question_is_answered(trained, command, gallery, capsys):
    own = {"image": gallery, "question": f'"what color is it {HOSTILE}"', "vle__text_length": 40}
    folder = command("predict", trained("vle_vqa"), **own)
    found = read(folder, "predictions.json")
    assert [Path(row["image"]).name for row in found] == ["blue.png", "red.png"]
    for row in found:
        scores = [candidate["score"] for candidate in row["candidates"]]
        assert len(scores) == 5 and scores == sorted(scores, reverse=True)
        assert row["answer"] == row["candidates"][0]["answer"] and row["score"] == scores[0]
        assert row["answer"] in {*COLORS, "yes", "no"}
    assert f"blue.png: {found[0]['answer']}" in capsys.readouterr().out
    page = (folder / "report.html").read_text()
    assert HOSTILE not in page and "&lt;script&gt;" in page and "broken.png" in page
    assert "broken.png" in str(read(folder, "skipped.jsonl"))


def test_a_long_question_is_refused(trained, emotions, command, gallery):
    said = refused(command, "predict", trained("vle_vqa"), image=gallery, question=f'"{LONG}"')
    assert "has 53 tokens, and vle.text_length=16: shorten it, or set vle.text_length=53" in said
    command("predict", trained("vle_vqa"), image=gallery, question=f'"{LONG}"', vle__text_length=53)
    assert "text=" in refused(command, "predict", emotions, image=gallery, text=f'"{LONG}"')


@pytest.mark.parametrize(
    ("stage", "entries"),
    [("vle_itm", {"score"}), ("vle_pbc", {"scores"}), ("vle_pretrain", {"score", "scores"})],
)
def test_a_text_is_compared(stage, entries, trained, command, gallery):
    folder = command("predict", trained(stage), image=gallery, text='"a red boat"')
    for row in read(folder, "predictions.json"):
        assert row.keys() == {"image", "text"} | entries
        assert "scores" not in row or (len(row["scores"]) == 16 and all(0 <= score <= 1 for score in row["scores"]))
    assert "a red boat" in (folder / "report.html").read_text()


def test_emotions_are_predicted_with_and_without_a_text(emotions, command, gallery):
    asked = read(command("predict", emotions, image=gallery), "predictions.json")
    told = read(command("predict", emotions, image=gallery, text='"a storm under the sky"'), "predictions.json")
    for row, other in zip(asked, told, strict=True):
        assert row["emotion"] in EMOTIONS and sum(row["emotion_distribution"]) == pytest.approx(1, abs=1e-4)
        assert row["emotion_distribution"] != other["emotion_distribution"]


# --- mistakes --------------------------------------------------------------------------------------------------------


def test_what_predict_needs_is_named(trained, command, gallery):
    assert 'add question="What is in the picture?"' in refused(command, "predict", trained("vle_vqa"), image=gallery)
    assert "add text=" in refused(command, "predict", trained("vle_itm"), image=gallery)
    assert "whose questions have four choices: use mode=test" in refused(
        command, "predict", trained("vle_vcr"), image=gallery, question="why"
    )
    (gallery / "red.png").unlink()
    (gallery / "blue.png").unlink()
    assert "none of its 1 pictures could be read" in refused(
        command, "predict", trained("vle_vqa"), image=gallery, question="why"
    )


def test_data_of_another_kind_is_refused(keys, trained, command, tmp_path):
    json_path = tmp_path / "captions.json"
    json_path.write_text("{}")
    for stage in ("vle_vqa", "vle_pbc"):
        said = refused(train_run, {**keys(stage), "dataset.train_ds.json_path": json_path}, "x")
        assert f"stage={stage} needs picture rows, and dataset.train_ds.json_path={json_path} is none" in said
    said = refused(
        train_run, {**keys("vle_vcr"), "dataset.train_ds.json_path": keys("vle_vqa")["dataset.train_ds.json_path"]}, "x"
    )
    assert "img_fn is missing; give VCR's own" in said
    assert "dataset.test_ds.json_path" in refused(command, "test", trained("vle_itm"), dataset__test_ds__json_path=None)


def test_answers_must_exist(keys, tmp_path):
    rows = tmp_path / "train.jsonl"
    shutil.copy(str(keys("vle_vqa")["dataset.train_ds.json_path"]), rows)
    own = {**keys("vle_vqa"), "dataset.train_ds.json_path": rows, "trainer.exp_dir": tmp_path / "runs"}
    assert f"{tmp_path / 'answers.json'}" in refused(train_run, own, "x")
    (tmp_path / "few.json").write_text('["red"]')
    train_run(own, "few", vle__answers=tmp_path / "few.json", trainer__limit_train_batches=1)
    (tmp_path / "few.json").write_text('["red", "red"]')
    assert "two answers are equal" in refused(train_run, own, "x", vle__answers=tmp_path / "few.json")


def test_a_network_needs_weights_or_a_tokenizer(keys, trained, tmp_path):
    own = {**keys("vle_itm"), "trainer.exp_dir": tmp_path}
    assert "needs vle.pretrained_name=FOLDER" in refused(train_run, own, "x", vle__tokenizer=None)
    assert "nowhere is not a folder" in refused(train_run, own, "x", vle__tokenizer=tmp_path / "nowhere")
    assert "hidden_size=7 must be a multiple of" in refused(
        train_run, own, "x", vle__config={**NETWORK, "hidden_size": 7}
    )
    assert "cannot be built" in refused(train_run, own, "x", vle__config={**NETWORK, "text_config": {"hidden_size": 7}})
    assert "must be a multiple of the patches'" in refused(train_run, own, "x", vle__image_size=20)
    resized = train_run(own, "larger", vle__pretrained_name=trained("vle_itm"), vle__image_size=48)
    assert (
        json.loads((find_checkpoint(str(resized), Path()).folder / "config.json").read_text())["vision_config"][
            "image_size"
        ]
        == 48
    )


def test_a_partner_must_be_the_other_half_of_vcr(trained, command):
    q2a = trained("vle_vcr")
    for wrong in (q2a, trained("vle_vqa")):
        said = refused(command, "test", q2a, vle__partner=wrong)
        assert f"vle.partner={wrong} is not a run of stage=vle_vcr vle.vcr=qa2r" in said


def test_captioners_and_vle_are_not_confused(trained, keys, tmp_path):
    own = {"preset": "none", "stage": "student", "pretrained_name": trained("vle_itm"), "trainer.exp_dir": tmp_path}
    own |= {key: value for key, value in keys("vle_itm").items() if key.startswith("dataset.")}
    said = refused(run_mode, "train", own | {"name": "x"})
    assert "is of stage=vle_itm: stage=student needs a captioner" in said
    keys = write_splits(tmp_path / "captioner", train=4, val=4, test=3)
    captioner = write_run(keys, "captioner")
    data = {key: value for key, value in keys.items() if not key.startswith(("model.", "trainer.epochs"))}
    run_mode("test", {**data, "pretrained_name": captioner})
    assert read(captioner / "test", "metrics.json")["images"] == 3
    said = refused(train_run, {**own, "stage": "vle_itm", "vle.pretrained_name": captioner}, "y")
    assert "config.json" in said
