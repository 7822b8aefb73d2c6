"""VLE as a judge of the captioner's explanations: choice among draws, match@1, regions, the test report."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from common.errors import UserError
from data.collate import collate
from data.images import MAX_PIXELS, open_image
from data.readers.facts import Facts
from model.decoding.generation import Decoding
from model.vle import VLEForITM, VLEForPBC, VLEProcessor
from model.vle.heads import VLEForPreTraining
from tests.helpers.tiny import (
    GPT2,
    make_aligner,
    make_captioner,
    make_dataset,
    run_mode,
    write_pictures,
    write_run,
    write_splits,
)
from tests.helpers.vle import tiny_model, write_processor
from trainer.prediction import judge as module
from trainer.prediction.judge import ImageJudge, Judge
from trainer.prediction.predictor import Predictor
from trainer.prediction.vle_match import add_vle_matches
from trainer.report.attention import VLE_MAP, attention_examples
from trainer.report.cards import attention_card
from trainer.report.pointing import add_pointing
from trainer.runs.state import TrainState
from trainer.score.__main__ import main as score
from trainer.score.looking import looking
from trainer.score.looking_tables import looking_tables
from trainer.score.scores import Scores, Settings
from trainer.setup.parts import Parts

TEXTS = ["the tiny boat is lost", "an enormous sky", "it is calm and blue " * 8, ""]
LENGTH = 16  # tokens; a text beyond is cut


def write_judge(folder: Path, kind: type = VLEForPreTraining, stage: str = "vle_pretrain", seed: int = 0) -> Path:
    """Write a checkpoint of a VLE stage with random weights; return its folder."""
    processor = VLEProcessor.from_pretrained(write_processor(folder))
    processor.save_pretrained(folder)
    tiny_model(kind, seed).save_pretrained(folder)
    config = {"name": "x", "seed": 0, "model": {}, "dataset": {}, "trainer": {}, "vle": {"text_length": LENGTH}}
    OmegaConf.save(OmegaConf.create({**config, "stage": stage}), folder / "config.yaml")
    (folder / "checkpoint.json").write_text(json.dumps({"state": TrainState().as_dict()}))
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_judge(tmp_path_factory.mktemp("judge"))


@pytest.fixture(scope="module")
def judge(folder) -> Judge:
    return Judge.load(str(folder), folder, "cpu", key="trainer.test.vle")


def own_scores(folder: Path, texts: list[str], paths: list[Path]) -> list[float]:
    """The logits by the model's own forward, one pair at a time."""
    model, processor = VLEForITM.from_pretrained(folder), VLEProcessor.from_pretrained(folder)
    found = []
    for text, path in zip(texts, paths, strict=True):
        with torch.no_grad():
            inputs = processor(text, open_image(path), truncation=True, max_length=LENGTH, return_tensors="pt")
            no, yes = model(**inputs).logits[0].tolist()
        found.append(yes - no)
    return found


# --- the judge -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "stage"), [(VLEForITM, "vle_itm"), (VLEForPreTraining, "vle_pretrain")])
def test_scores_equal_those_of_the_model_itself(tmp_path, kind, stage):
    folder = write_judge(tmp_path / "run", kind, stage)
    judge = Judge.load("run", tmp_path, "cpu", key="trainer.test.vle")
    paths = write_pictures(tmp_path, 4)
    pictures = [open_image(path) for path in paths]
    expected = own_scores(folder, TEXTS, paths)
    assert judge.scores(TEXTS, pictures).tolist() == pytest.approx(expected, abs=1e-5)
    assert np.ptp(expected) > 0.01, "different scores, else the test is void"
    assert np.diag(judge.matrix(TEXTS, pictures)).tolist() == pytest.approx(expected, abs=1e-5)
    assert judge.matches and judge.points is (stage == "vle_pretrain")


def test_images_are_scored_by_id_in_groups(judge, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "OPENED", 2)
    paths = {f"id{i}": path for i, path in enumerate(write_pictures(tmp_path, 5))}
    ids = ["id4", "id0", "id4", "id1", "id4", "id2", "id3"]
    texts = ["a boat", "a boat", "the sky", "calm", "a boat", "lost", ""]
    found = ImageJudge(judge, paths, max_pixels=MAX_PIXELS)(ids, texts)
    assert found == pytest.approx(own_scores(folder, texts, [paths[id] for id in ids]), abs=1e-5)
    assert found[0] == found[4], "an equal pair has the same score to the last digit"
    paths["id2"].write_bytes(b"")
    with pytest.raises(UserError, match=rf"trainer\.test\.rank_by=vle cannot open {paths['id2']}: .*empty"):
        ImageJudge(judge, paths, max_pixels=MAX_PIXELS)(ids, texts)


def test_regions_equal_the_model_itself_and_lie_on_the_centre(judge, folder, tmp_path):
    Image.effect_noise((60, 40), 80).convert("RGB").save(tmp_path / "x.png")
    picture = open_image(tmp_path / "x.png")
    maps, box = judge.regions(TEXTS[:2], picture)
    model, processor = VLEForPBC.from_pretrained(folder), VLEProcessor.from_pretrained(folder)
    with torch.no_grad():
        logits = model(**processor(TEXTS[:2], [picture, picture], return_tensors="pt", padding=True)).logits
    np.testing.assert_allclose(maps.reshape(2, 16), logits.softmax(-1)[..., 1].numpy(), atol=1e-5)
    assert box == pytest.approx((1 / 6, 0, 2 / 3, 1), abs=0.02)
    assert np.ptp(maps) > 0.01 and np.abs(maps[0] - maps[1]).max() > 1e-3


# --- choice among explanations ---------------------------------------------------------------------------------------


def test_the_draw_with_the_highest_logit_is_kept(judge, folder, template, tmp_path):
    network = make_captioner(
        template, gates=0.9, seed=5, contrastive__enabled=False, text__config={**GPT2, "initializer_range": 0.35}
    )
    dataset = make_dataset(tmp_path, template, network, 4, texts_per_image=0)
    paths, seen = {sample.id: sample.path for sample in dataset.samples}, []

    def spy(ids, texts):
        seen.extend(zip(ids, texts, strict=True))
        return ImageJudge(judge, paths, max_pixels=MAX_PIXELS)(ids, texts)

    decoding = Decoding(strategy="nucleus", max_length=8, top_p=0.95, seed=3)
    settings = {"best_of": 5, "rank_by": "vle", "judge": spy}
    predictor = Predictor(network, template, make_aligner(template), decoding, True, **settings)
    found = predictor(collate([dataset[0, i] for i in range(4)]))
    assert len(seen) == 20 and not any(" because " in f" {text} " for _, text in seen), "without the template"
    scores = own_scores(folder, [text for _, text in seen], [paths[id] for id, _ in seen])
    winners = []
    for i, prediction in enumerate(found):
        own = slice(5 * i, 5 * i + 5)
        winners.append(int(np.argmax(scores[own])))
        assert {id for id, _ in seen[own]} == {prediction.id}
        assert prediction.explanation == seen[own][winners[-1]][1]
        assert prediction.fit == pytest.approx(max(scores[own]), abs=1e-5)
    assert len(set(winners)) > 1, "different draws must win for this test"


# --- match@1 ---------------------------------------------------------------------------------------------------------


class GreyJudge(Judge):
    """A text is a number; it matches pictures the better, the closer their grey level is."""

    matches, folder = True, Path("judge")

    def __init__(self) -> None:
        pass

    def matrix(self, texts, images, *, show=None):
        levels = np.array([np.asarray(image).mean() for image in images])
        return -np.abs(np.array([float(text) for text in texts])[:, None] - levels).astype(np.float32)


def grey_rows(folder: Path, count: int, emotion=lambda i: "awe") -> list[dict]:
    rows = []
    for i in range(count):
        Image.new("RGB", (8, 8), (10 * i,) * 3).save(folder / f"{i}.png")
        row = {"id": str(i), "image": str(folder / f"{i}.png"), "emotion": emotion(i), "explanation": str(10 * i)}
        rows.append(row | {"references": [str(10 * i + 1), "  "]})
    return rows


def matched(rows: list[dict], judge: Judge, **changes) -> str | None:
    settings = {"count": 400, "seed": 3, "max_pixels": MAX_PIXELS, "chosen": False}
    return add_vle_matches(rows, judge, **{**settings, **changes})


def test_ranks_follow_the_judge(tmp_path):
    rows = grey_rows(tmp_path, 12, emotion=lambda i: "awe" if i % 2 == 0 else "fear")
    rows[2]["explanation"] = "60"  # that of picture 6; of 0, 2, 4, … 10, pictures 4 and 8 are nearer too
    rows[4]["references"] = []
    assert matched(rows, GreyJudge()) is None
    expected = {"rank": 1, "people": 1}
    for row in rows:
        others = {"same": 6, "random": 12}
        for group, of in others.items():
            ranks = {**expected, "of": of}
            if row["id"] == "2":
                ranks["rank"] = {"same": 4.5, "random": 8.5}[group]  # a tie with picture 10 counts half
            if row["id"] == "4":
                del ranks["people"]
            assert row["match_vle"][group] == ranks, (row["id"], group)
        assert row["match_vle"]["chosen"] is False


def test_a_blind_judge_ranks_at_random(tmp_path):
    class Blind(GreyJudge):
        def matrix(self, texts, images, *, show=None):
            return np.zeros((len(texts), len(images)), dtype=np.float32)

    rows = grey_rows(tmp_path, 9)
    matched(rows, Blind(), count=4, chosen=True)
    assert sum("match_vle" in row for row in rows) == 4
    for row in (row for row in rows if "match_vle" in row):
        assert row["match_vle"]["same"] == row["match_vle"]["random"] == {"rank": 5, "people": 5, "of": 9}
        assert row["match_vle"]["chosen"] is True


def test_blocks_of_sixteen_and_captions_without_emotions(tmp_path):
    rows = grey_rows(tmp_path, 20, emotion=lambda i: None)
    Path(rows[3]["image"]).unlink()
    assert matched(rows, GreyJudge()) is None
    assert "match_vle" not in rows[3]
    others = [row["match_vle"] for row in rows if row["id"] != "3"]
    assert all(match.keys() == {"chosen", "random"} and match["random"]["of"] in (15, 16) for match in others)
    assert matched(rows[:1], GreyJudge()) == "left out: there is only one image"


def test_scores_and_table(tmp_path):
    rows = grey_rows(tmp_path, 8)
    rows[1]["explanation"], rows[2]["references"] = "70", ["0"]
    matched(rows, GreyJudge(), chosen=True)
    found = Scores([row["id"] for row in rows], metrics={"notes": []}, images={row["id"]: {} for row in rows})
    looking(rows, Settings(), found)
    group = {"count": 8, "of": 8, "chance": 1 / 8, "first": 7 / 8, "people": 7 / 8}
    assert found.metrics["looking"]["match_vle"] == {"chosen": True, "same": group, "random": group}
    (table,) = looking_tables(found.metrics)
    assert table.columns == ["same emotion", "any emotion"] and "8 pictures" in table.about
    assert [row.name for row in table.rows] == ["the model", "people", "chance"]
    assert "optimized for this figure" in table.about
    found.metrics["looking"]["match_vle"]["chosen"] = False
    assert "optimized" not in looking_tables(found.metrics)[0].about


# --- regions ---------------------------------------------------------------------------------------------------------


class Pointer(Judge):
    """Points at the right edge if the text names a boat, else at the left one."""

    points = True

    def __init__(self) -> None:
        pass

    def regions(self, texts, image):
        maps = np.full((len(texts), 4, 4), 0.1)
        for number, text in enumerate(texts):
            maps[number, 1, 3 if "boat" in text else 0] = 0.9
        return maps, (0.0, 0.0, 1.0, 1.0)


@pytest.fixture
def parts(template) -> Parts:
    return Parts(make_captioner(template, gates=0.7), template, make_aligner(template), with_emotions=True)


def test_pointing_of_vle_has_the_text_of_another_picture_beside_it(parts, tmp_path):
    Image.new("RGB", (40, 40), "teal").save(tmp_path / "x.png")
    texts = ["the tiny boat is lost", "the storm makes me feel small"]
    rows = [
        {"id": str(i), "image": str(tmp_path / "x.png"), "emotion": "fear", "explanation": text}
        for i, text in enumerate(texts)
    ]
    boxes = {"0": ((0.8, 0.0, 1.0, 1.0),), "1": ((0.0, 0.0, 0.2, 1.0),)}
    images = {"0": {"subject": ("boat",)}, "1": {"subject": ("storm",)}}
    facts = Facts(Path("facts.json"), {"subject": {"boat": ("boat",), "storm": ("storm",)}}, images, boxes)
    add_pointing(rows, parts, facts, seed=0, max_pixels=MAX_PIXELS, judge=Pointer())
    for row in rows:
        assert (row["pointing"]["vle"], row["pointing"]["vle_other"]) == (True, False)
        assert row["pointing"]["vle_area"] == 0.25, "a column of four"
    found = Scores(["0", "1"], metrics={"notes": []}, images={"0": {}, "1": {}})
    looking(rows, Settings(), found)
    section = found.metrics["looking"]["pointing"]
    assert (section["vle"], section["vle_other"], section["vle_random"]) == (1.0, 0.0, 0.25)
    (table,) = looking_tables(found.metrics)
    assert [row.name for row in table.rows][4:] == ["VLE", "VLE, another reason", "VLE, random"]
    add_pointing(alone := rows[:1], parts, facts, seed=0, max_pixels=MAX_PIXELS, judge=Pointer())
    assert "vle_other" not in alone[0]["pointing"] and alone[0]["pointing"]["vle"], "no other text"


def test_attention_examples_have_a_map_of_vle(parts, judge, tmp_path):
    Image.effect_noise((60, 40), 80).convert("RGB").save(tmp_path / "x.png")
    row = {"id": "1", "image": str(tmp_path / "x.png"), "emotion": "fear", "explanation": "the gloomy storm"}
    (example,) = attention_examples([row], parts, max_pixels=MAX_PIXELS, judge=judge)
    (plain,) = attention_examples([row], parts, max_pixels=MAX_PIXELS)
    assert [view.word for view in example.views] == [*(view.word for view in plain.views), VLE_MAP]
    (grid,), box = judge.regions(["the gloomy storm"], open_image(tmp_path / "x.png"))
    np.testing.assert_array_equal(example.views[-1].grid, grid)
    card = attention_card(example, "x", 0)
    assert card["views"][-1]["box"] == dict(zip(("x", "y", "width", "height"), box, strict=True))
    assert card["views"][-1]["peak"] == f"at most {100 * grid.max():.1f} %"
    assert card["views"][0]["box"] is None and card["views"][0]["peak"].endswith(" times the even share")


# --- the commands ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return write_run(write_splits(tmp_path_factory.mktemp("run"), test=9), "run")


def keys_of(run: Path, judge: Path | str | None, **changes) -> dict[str, object]:
    keys: dict[str, object] = {"pretrained_name": run, "trainer.exp_dir": run.parent, "trainer.test.vle": judge}
    keys |= {"trainer.test.decoding_strategy": "nucleus", "trainer.test.best_of": 3, "trainer.test.rank_by": "vle"}
    return keys | {key.replace("__", "."): value for key, value in changes.items()}


def test_the_test_report_has_the_judgement(run, folder, tmp_path):
    run_mode("test", keys_of(run, folder, name="judged"))
    test = run.parent / "judged" / "test"
    rows = [json.loads(line) for line in (test / "predictions.jsonl").read_text().splitlines()]
    expected = own_scores(folder, [row["explanation"] for row in rows], [Path(row["image"]) for row in rows])
    assert [row["fit"] for row in rows] == pytest.approx(expected, abs=1e-5)
    metrics = json.loads((test / "metrics.json").read_text())
    match = metrics["looking"]["match_vle"]
    assert match["chosen"] and match["random"].keys() == {"count", "of", "chance", "first", "people"}
    assert metrics["VLE"] == str(folder) and metrics["decoding"]["rank_by"] == "vle"
    assert "looking.match_vle.random.first" in metrics["intervals"]
    page = (test / "report.html").read_text()
    assert "Match by VLE" in page and "optimized for this figure" in page and VLE_MAP in page
    score(["--predictions", str(test / "predictions.jsonl"), "--metrics", "rouge_l", "--out", str(tmp_path / "again")])
    assert json.loads((tmp_path / "again" / "metrics.json").read_text())["looking"]["match_vle"] == match


def test_a_judge_that_does_not_choose_is_not_called_optimized(run, folder):
    greedy = {"trainer__test__decoding_strategy": "greedy", "trainer__test__best_of": 1}
    run_mode("test", keys_of(run, folder, name="greedy", **greedy))
    test = run.parent / "greedy" / "test"
    metrics = json.loads((test / "metrics.json").read_text())
    assert metrics["looking"]["match_vle"]["chosen"] is False
    page = (test / "report.html").read_text()
    assert "Match by VLE" in page and "optimized for this figure" not in page
    assert "fit" not in json.loads((test / "predictions.jsonl").read_text().splitlines()[0])


def test_unfinished_predictions_of_another_judge_are_refused(run, folder, tmp_path, monkeypatch):
    keys, other = keys_of(run, folder, name="stopped"), write_judge(tmp_path, seed=1)
    keys["dataset.test_ds.batch_size"] = 4
    calls = []
    choose = ImageJudge.__call__

    def stop(self, ids, texts):
        calls.append(ids)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return choose(self, ids, texts)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(ImageJudge, "__call__", stop)
        run_mode("test", keys)
    with pytest.raises(UserError, match=r"4 predictions of an earlier command with another trainer\.test\.vle"):
        run_mode("test", {**keys, "trainer.test.vle": other})
    moved = tmp_path / "moved"
    moved.mkdir()
    for file in folder.iterdir():
        (moved / file.name).write_bytes(file.read_bytes())
    run_mode("test", {**keys, "trainer.test.vle": moved})  # the same weights elsewhere


def test_a_missing_or_wrong_judge_is_named(run, tmp_path):
    pbc = write_judge(tmp_path / "pbc", VLEForPBC, "vle_pbc")
    vqa = write_judge(tmp_path / "vqa", VLEForITM, "vle_vqa")
    wrong = {
        None: r"rank_by=vle needs trainer\.test\.vle=RUN",
        "nowhere": r"trainer\.test\.vle=nowhere: there is no checkpoint in nowhere nor ",
        pbc: r"trainer\.test\.vle=\S+ is of stage=vle_pbc, which compares no texts",
        vqa: r"trainer\.test\.vle=\S+: \S+ is of stage=vle_vqa, and a judge needs a run of stage=vle_pretrain",
        run: r"trainer\.test\.vle=\S+: \S+ is of stage=caption",
    }
    for name, message in wrong.items():
        with pytest.raises(UserError, match=message) as error:
            run_mode("test", keys_of(run, name, name="wrong"))
        assert "\n" not in str(error.value)
    assert not (run.parent / "wrong" / "test" / "predictions.jsonl").exists()
    run_mode("test", keys_of(run, pbc, name="pbc", trainer__test__best_of=1))
    metrics = json.loads((run.parent / "pbc" / "test" / "metrics.json").read_text())
    assert any("match by VLE left out" in note and "vle_pbc" in note for note in metrics["notes"])
    assert VLE_MAP in (run.parent / "pbc" / "test" / "report.html").read_text()


def test_predict_loads_a_judge_only_to_choose(run, folder, tmp_path):
    image = write_pictures(tmp_path, 1)[0]
    run_mode("predict", keys_of(run, folder, image=image, name="predicted"))
    (row,) = json.loads((run.parent / "predicted" / "predict" / "predictions.json").read_text())
    assert row["fit"] == pytest.approx(own_scores(folder, [row["explanation"]], [image])[0], abs=1e-5)
    run_mode("predict", keys_of(run, "nowhere", image=image, name="alone", trainer__test__best_of=1))
