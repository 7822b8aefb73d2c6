"""Files that somebody made in order to do harm: refused in a sentence, nothing in them run, nothing else touched."""

from __future__ import annotations

import csv
import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

from data.digests import FileDigests
from data.feature_cache import MEMO
from data.images import ImageError, find_pictures, open_image
from data.lexicon import read_lexicon
from data.locks import locked
from data.prepare import images as copies
from data.readers import read_split
from data.text import load_tokenizer
from data.token_files import read_places
from errors import UserError
from files import write_csv, write_text
from model.checkpoint_import.__main__ import main as import_checkpoint
from model.language import build_gpt2
from model.vision import build_vision
from tests.hostile import FORMS, checkpoint_of, composed, time_limit, train_keys, write_evil, write_run
from tests.html_page import Page
from tests.test_damaged_data import dataset
from tests.tiny import go_offline, write_gpt2, write_open_clip, write_pictures, write_tokenizer
from trainer import commands
from trainer.checkpoint import find_checkpoint
from trainer.metrics.clipscore import Clip
from trainer.report import write_predictions_page
from trainer.score.commands import _picture
from trainer.score.predictions import read_predictions
from trainer.setup import complete_from_checkpoint, prepare_data
from trainer.text_emotion.artemis import import_classifier, read_vocabulary
from trainer.text_emotion.classifier import load_classifier
from trainer.thumbnails import thumbnail


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path) -> None:
    go_offline(monkeypatch, tmp_path / "hub")


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    return write_run(tmp_path_factory.mktemp("trained"))


@pytest.fixture
def run(trained, tmp_path) -> Path:
    """A run as somebody sends it: its checksums are theirs, so they are gone."""
    run = Path(shutil.copytree(trained, tmp_path / "runs" / "run"))
    (checkpoint_of(run) / "SHA256SUMS").unlink()
    return run


def picture_of(trained: Path) -> Path:
    return trained.parent.parent / "test" / "images" / "Style" / "picture-000.png"


def use(run: Path, trained: Path, **keys: object) -> None:
    """python run.py mode=predict pretrained_name=RUN image=PICTURE"""
    base = {"preset": "none", "pretrained_name": run, "trainer.device": "cpu", "image": picture_of(trained)}
    commands.predict(composed("predict", base | {key.replace("__", "."): value for key, value in keys.items()}))


def refusal(call: Callable[[], object]) -> str:
    with time_limit(60), pytest.raises(UserError) as caught:
        call()
    message = str(caught.value)
    assert message and "\n" not in message and len(message) < 1000
    return message


# --- pickles in every place that reads weights ------------------------------------------------------------------------


def gpt2(folder: Path, name: str) -> Path:
    write_gpt2(folder, vocab_size=300)
    (folder / "model.safetensors").unlink()
    return folder / name


def clip(folder: Path, name: str) -> Path:
    write_open_clip(folder)
    (folder / "open_clip_model.safetensors").unlink()
    return folder / name


def read_gpt2(path: Path) -> None:
    build_gpt2(pretrained_name=str(path.parent), config=None, vocab_size=300, eos_id=0)


def read_clip(path: Path) -> None:
    build_vision(pretrained_name=str(path.parent))


def read_tower(path: Path) -> None:
    build_vision(pretrained_name=str(path), architecture="ViT-S-32-alt")


def by_command(path: Path) -> None:
    if import_checkpoint(["perceiver", str(path), "--out", str(path.parent / "out")]) == 2:
        raise UserError("as printed")


PLACES: dict[str, tuple[Callable[[Path], Path], Callable[[Path], object]]] = {
    "model.text.pretrained_name=FOLDER, pytorch_model.bin": (lambda d: gpt2(d, "pytorch_model.bin"), read_gpt2),
    "model.text.pretrained_name=FOLDER, model.safetensors": (lambda d: gpt2(d, "model.safetensors"), read_gpt2),
    "model.vision.pretrained_name=FILE.pt": (lambda d: d / "x.pt", read_tower),
    "model.vision.pretrained_name=FILE.bin": (lambda d: d / "x.bin", read_tower),
    "model.vision.pretrained_name=FILE.safetensors": (lambda d: d / "x.safetensors", read_tower),
    "model.vision.pretrained_name=FILE.npz": (lambda d: d / "x.npz", read_tower),
    "model.vision.pretrained_name=FOLDER, .bin": (lambda d: clip(d, "open_clip_pytorch_model.bin"), read_clip),
    "model.vision.pretrained_name=FOLDER, .safetensors": (lambda d: clip(d, "open_clip_model.safetensors"), read_clip),
    "trainer.text_emotion import": (lambda d: d / "m.pt", lambda p: import_classifier(p, p)),
    "trainer.text_emotion import --vocabulary": (lambda d: d / "v.pkl", read_vocabulary),
    "model.checkpoint_import perceiver": (lambda d: d / "x.pt", by_command),
    "a classifier's settings": (lambda d: d / "settings.json", lambda p: load_classifier(p.parent)),
    "dataset.tokenizer=FILE": (lambda d: d / "t.json", lambda p: load_tokenizer(str(p))),
    "dataset.tokenizer=FOLDER": (lambda d: write_tokenizer(d) / "vocab.json", lambda p: load_tokenizer(str(p.parent))),
    "dataset.vad_lexicon": (lambda d: d / "l.csv", read_lexicon),
    "annotations": (lambda d: d / "a.json", lambda p: read_split(dataset("artemis", p, p.parent), "train_ds")),
    "predictions": (lambda d: d / "p.jsonl", read_predictions),
}


@pytest.mark.parametrize("form", FORMS)
def test_the_pickles_would_do_what_they_are_made_for(form, tmp_path):
    path, marker = write_evil(tmp_path / "x.pt", tmp_path / "marker", form), tmp_path / "marker"
    pickle.loads(path.read_bytes()) if form == "raw" else torch.load(path, weights_only=False)
    assert marker.is_dir()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("place", PLACES)
def test_no_pickle_is_run(place, form, tmp_path):
    marker, (prepare, read) = tmp_path / "marker", PLACES[place]
    (tmp_path / "files").mkdir()
    path = write_evil(prepare(tmp_path / "files"), marker, form)
    refusal(lambda: read(path))
    assert not marker.exists()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "name", ["model.safetensors", "training.pt", "checkpoint.json", "config.yaml", "tokenizer.json"]
)
def test_no_pickle_in_a_run_is_run(run, trained, tmp_path, name, form):
    write_evil(checkpoint_of(run) / name, tmp_path / "marker", form)
    if name != "training.pt":
        assert str(checkpoint_of(run)) in refusal(lambda: use(run, trained))
    if name != "tokenizer.json":  # a training has the one that its own configuration names
        keys = train_keys(tmp_path / "data") | {"name": "on", "pretrained_name": run, "resume_pretrained_state": True}
        assert str(checkpoint_of(run)) in refusal(lambda: commands.train(composed("train", keys)))
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize("name", ["0000.jsonl", "0000.tokens", MEMO])
def test_no_pickle_in_a_feature_cache_is_run(tmp_path, name):
    (tmp_path / "0000.jsonl").write_text("")
    (tmp_path / "0000.tokens").write_bytes(b"")
    for form in FORMS:
        write_evil(tmp_path / name, tmp_path / "marker", form)
        assert read_places(tmp_path, (3, 4)) == {} and FileDigests(tmp_path / MEMO).known == {}
    assert not (tmp_path / "marker").exists()


# --- configurations that come with weights ----------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [{"trust_remote_code": True}, {}], ids=["asked", "not asked"])
def test_no_code_beside_a_clip_is_run(tmp_path, settings):
    """open_clip would hand the setting to transformers, which would run the file."""
    folder, marker = write_open_clip(tmp_path / "clip"), tmp_path / "marker"
    config = json.loads((folder / "open_clip_config.json").read_text())
    config["model_cfg"]["text_cfg"] |= {"hf_tokenizer_name": "x", "tokenizer_kwargs": settings}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    (folder / "tokenizer_config.json").write_text('{"auto_map": {"AutoTokenizer": ["evil.Evil", null]}}')
    (folder / "evil.py").write_text(f"import os\nos.mkdir({str(marker)!r})\nclass Evil: pass\n")
    refusal(lambda: Clip.load(str(folder), None, section="--clip"))
    assert not marker.exists()


def test_a_clip_names_no_other_repository(tmp_path):
    folder = write_open_clip(tmp_path / "clip")
    whole = json.loads((folder / "open_clip_config.json").read_text())
    for part, name in (("text_cfg", "hf_model_name"), ("vision_cfg", "timm_model_name")):
        config = json.loads(json.dumps(whole))
        config["model_cfg"][part][name] = "hf-hub:evil/repository"
        (folder / "open_clip_config.json").write_text(json.dumps(config))
        for spelling in (str(folder), f"local-dir:{folder}"):
            assert "nothing in it was run" in refusal(lambda spelling=spelling: build_vision(pretrained_name=spelling))


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation", "quantization_config", "auto_map"])
def test_a_gpt2_brings_no_kernels_and_no_other_library(tmp_path, key):
    folder = write_gpt2(tmp_path / "gpt2", vocab_size=300)
    values = {"quantization_config": {"quant_method": "gptq", "bits": 4}, "auto_map": {"AutoConfig": "evil.C"}}
    config = json.loads((folder / "config.json").read_text()) | {key: values.get(key, "evil/kernel")}
    (folder / "config.json").write_text(json.dumps(config))
    lm = build_gpt2(pretrained_name=str(folder), config=None, vocab_size=300, eos_id=0)
    assert lm.config._attn_implementation == "sdpa" and not hasattr(lm.config, "quantization_config")


@pytest.mark.parametrize("size", [{"n_layer": 10**9}, {"n_layer": 10**40}, {"n_embd": 10**30}], ids=str)
def test_a_gpt2_of_any_size(tmp_path, size):
    folder = write_gpt2(tmp_path / "gpt2", vocab_size=300)
    config = json.loads((folder / "config.json").read_text()) | size
    (folder / "config.json").write_text(json.dumps(config))
    refusal(lambda: build_gpt2(pretrained_name=str(folder), config=None, vocab_size=300, eos_id=0))


def changed(run: Path, **values: object) -> None:
    """Values in a run's configuration, by dotted keys with __ for dots."""
    path = checkpoint_of(run) / "config.yaml"
    tree = yaml.safe_load(path.read_text())
    for key, value in values.items():
        *way, last = key.split("__")
        section = tree
        for part in way:
            section = section[part]
        section[last] = value
    path.write_text(yaml.dump(tree))


@pytest.mark.parametrize(
    "values",
    [
        {"model__text__pretrained_name": "${oc.env:EMOSCRIBE_TEST_SECRET}"},
        {"model__resampler__depth": 10**6},
        {"model__resampler__depth": 10**40},
        {"model__mapper__mlp_dim": 10**12},
        {"model__text__config": {"n_layer": 10**7}},
        {"model__vision__config": {"width": "wide"}},
        {"model__vision": "none"},
        {"trainer__test__beam_width": 10**40},
        {"dataset": 3},
    ],
    ids=str,
)
def test_a_run_that_reads_the_environment_or_never_ends(run, trained, monkeypatch, values):
    monkeypatch.setenv("EMOSCRIBE_TEST_SECRET", "hidden")
    changed(run, **values)
    assert "hidden" not in refusal(lambda: use(run, trained))


@pytest.mark.parametrize(
    ("key", "name"),
    [("model.text.pretrained_name", "evil/repository"), ("model.vision.pretrained_name", "hf-hub:evil/repository")],
)
def test_what_a_run_names_on_the_hub_is_fetched_only_if_the_user_names_it_too(run, trained, key, name):
    changed(run, **{key.replace(".", "__"): name})
    assert f"name it too if you trust who made it ({key}={name})" in refusal(lambda: use(run, trained))


def test_a_run_makes_no_feature_cache_elsewhere(run, tmp_path):
    """One that is there is used; a folder that the run's configuration names is not made into one."""
    folder, config = tmp_path / "elsewhere", composed("test", {"preset": "none", "pretrained_name": run})
    folder.mkdir()
    changed(run, dataset__feature_cache=str(folder))
    assert complete_from_checkpoint(config, find_checkpoint(str(run), tmp_path)).dataset.feature_cache is None
    (folder / MEMO).touch()
    assert complete_from_checkpoint(config, find_checkpoint(str(run), tmp_path)).dataset.feature_cache == str(folder)


def test_a_run_paints_no_demo_elsewhere(run, tmp_path):
    changed(run, dataset__name="demo", dataset__root=str(tmp_path / "demo"))
    config = complete_from_checkpoint(
        composed("test", {"preset": "none", "pretrained_name": run}), find_checkpoint(str(run), tmp_path)
    )
    assert "dataset.root=FOLDER" in refusal(lambda: prepare_data(config))
    assert not (tmp_path / "demo").exists()


def test_checksums_are_of_files_beside_them(run, trained, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for name in ("/dev/zero", "../../../../../../dev/zero", str(tmp_path / "pipe")):
        (checkpoint_of(run) / "SHA256SUMS").write_text(f"{'0' * 64}  {name}\n")
        assert "no file beside it" in refusal(lambda: use(run, trained))


# --- links that lead out ----------------------------------------------------------------------------------------------


@pytest.fixture
def treasure(tmp_path) -> Path:
    (tmp_path / "treasure").write_text("mine")
    return tmp_path / "treasure"


def test_nothing_is_written_through_a_link_in_a_run(run, trained, treasure):
    (run / "predict").mkdir()
    for name in ("predictions.jsonl.part", "predictions.jsonl", "predictions.json", "report.html", "skipped.jsonl"):
        (run / "predict" / name).symlink_to(treasure)
    (run / "predict" / f".report.html.{os.getpid()}.tmp").symlink_to(treasure)
    use(run, trained)
    assert treasure.read_text() == "mine" and (run / "predict" / "report.html").stat().st_size > 1000
    assert not any(path.is_symlink() for path in (run / "predict").iterdir())


def test_nothing_is_written_into_a_linked_folder(run, trained, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (run / "predict").symlink_to(tmp_path / "elsewhere")
    assert "leads out of" in refusal(lambda: use(run, trained))
    keys = train_keys(tmp_path / "data") | {"trainer.exp_dir": run.parent, "name": "run", "pretrained_name": run}
    keys |= {"resume_pretrained_state": True, "trainer.epochs": 2}
    for name in ("tensorboard", "metrics.jsonl", "checkpoints"):
        aside = (run / name).rename(tmp_path / f"aside {name}")
        (run / name).symlink_to(aside)
        assert "leads out of" in refusal(lambda: commands.train(composed("train", keys)))
        (run / name).unlink()
        aside.rename(run / name)


def test_neither_temporary_files_nor_locks_nor_memos_are_written_through_links(tmp_path, treasure):
    (tmp_path / f".a.{os.getpid()}.tmp").symlink_to(treasure)
    write_text(tmp_path / "a", "new")
    (tmp_path / "lock").symlink_to(treasure)
    with pytest.raises(OSError), locked(tmp_path / "lock", purpose="testing"):
        pass
    (tmp_path / MEMO).symlink_to(treasure)
    pictures = write_pictures(tmp_path / "pictures", 2)
    for path in pictures:
        os.utime(path, (0, 0))
    FileDigests(tmp_path / MEMO).contents(pictures, show=False)
    assert treasure.read_text() == "mine" and (tmp_path / "a").read_text() == "new"


def test_pictures_are_not_looked_for_through_links(run, trained, tmp_path):
    inside, outside = write_pictures(tmp_path / "in", 2), write_pictures(tmp_path / "out", 1)
    (tmp_path / "in" / "out.png").symlink_to(outside[0])
    (tmp_path / "in" / "near.png").symlink_to(inside[0])
    (tmp_path / "in" / "folder").symlink_to(tmp_path / "out")
    found: list[Path] = []
    assert find_pictures(tmp_path / "in", outside=found) == sorted([*inside, tmp_path / "in" / "near.png"])
    assert found == [tmp_path / "in" / "out.png"]
    use(run, trained, image=tmp_path / "in")
    page = (run / "predict" / "report.html").read_text()
    assert "symbolic link out of the folder" in page and "3 pictures" in page
    outcome = copies.copy_pictures(
        tmp_path / "in", tmp_path / "copies", copies.Settings(60, 95), max_pixels=10**6, workers=1
    )
    assert set(outcome.left_out) == {"out.png", "folder"} and len(outcome.copies) == 3


def test_a_folder_of_annotated_pictures_ends_where_it_ends(tmp_path):
    write_pictures(tmp_path / "images", 1)
    outside = write_pictures(tmp_path / "out", 1)[0]
    (tmp_path / "images" / "link.png").symlink_to(outside)
    entry = {"emotions": ["awe"], "explanations": ["x"]}
    (tmp_path / "a.json").write_text(json.dumps({"1": entry | {"image_name": "link.png"}}))
    split = read_split(dataset("artemis", tmp_path / "a.json", tmp_path / "images"), "train_ds")
    assert len(split.samples) == 0 and "symbolic link out of" in split.skipped[0].reason
    for name in ("../out/picture-000.png", str(outside)):
        (tmp_path / "a.json").write_text(json.dumps({"1": entry | {"image_name": name}}))
        assert "leads out of" in refusal(
            lambda: read_split(dataset("artemis", tmp_path / "a.json", tmp_path), "train_ds")
        )


def test_predictions_of_others_name_pictures_of_the_given_folder_only(tmp_path):
    outside = write_pictures(tmp_path / "out", 1)[0]
    picture = write_pictures(tmp_path / "images" / "Style", 1)[0]
    (tmp_path / "images" / "link.png").symlink_to(outside)
    folder = tmp_path / "images"
    assert _picture(folder, {"id": "1", "image": f"/home/somebody/Style/{picture.name}"}) == picture
    for name in (str(outside), "../out/picture-000.png", "Style/../../out/picture-000.png", "link.png", "..", "/", "."):
        found = _picture(folder, {"id": name, "image": name})
        assert found.is_relative_to(folder) and (not found.is_file() or found == picture)


# --- devices, texts, names --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["/dev/zero", "pipe"])
def test_devices_and_pipes_are_no_files(tmp_path, name):
    os.mkfifo(tmp_path / "pipe")
    path = tmp_path / name
    for read in (read_lexicon, read_predictions, lambda p: read_split(dataset("table", p, tmp_path), "train_ds")):
        assert "not an ordinary file" in refusal(lambda read=read: read(path))
    with time_limit(5), pytest.raises(ImageError, match="not a file"):
        open_image(path)


def test_a_thumbnail_is_made_of_pictures_only(tmp_path):
    page = tmp_path / "a.png"
    page.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(x) run\nshowpage\n")
    assert thumbnail(page) is None
    Image.new("RGB", (9, 9)).save(tmp_path / "b.png")
    assert thumbnail(tmp_path / "b.png")["width"] == 9


def test_texts_stay_texts_in_a_page(tmp_path):
    evil = "</p><script>alert(1)</script>\" onmouseover='x' {{ 7*7 }} ${x} \u202e"
    picture = write_pictures(tmp_path / "<img src=x onerror=alert(1)>", 1)[0]
    row = {"image": str(picture), "emotion": None, "emotion_distribution": None, "explanation": evil}
    row |= {"emotion_text": evil, "id": evil}
    write_predictions_page([row], tmp_path / "p.html", title=evil, facts={evil: evil}, skipped=[(evil, evil)])
    page = Page(tmp_path / "p.html")
    page.require_self_contained()
    assert not {"script", "img onerror"} & {tag for tag, _ in page.tags} and "7*7" in page.text


def test_cells_of_a_table_are_no_formulas(tmp_path):
    cells = ["=cmd|'/c calc'!A1", "+1", "-1", "@SUM(1)", "\tx", "plain", "a=b", 3]
    write_csv(tmp_path / "a.csv", ["name"], [[cell] for cell in cells])
    with (tmp_path / "a.csv").open(encoding="utf-8", newline="") as file:
        read = [row[0] for row in csv.reader(file)][1:]
    assert read == [*(f"'{cell}" for cell in cells[:5]), "plain", "a=b", "3"]
