from __future__ import annotations

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from common.config.check import ROOT, check_config, check_overrides, presets
from common.config.files import load_file
from common.errors import UserError
from tests.helpers import tiny
from tests.helpers.tiny import VISION


def composed(*overrides: str) -> DictConfig:
    with initialize_config_dir(config_dir=str(ROOT), version_base="1.3"):
        return compose("config", overrides=check_overrides(overrides))


def problems_of(*overrides: str) -> list[str]:
    """Return the problems that check_config reports."""
    with pytest.raises(UserError) as caught:
        check_config(composed(*overrides))
    return str(caught.value).splitlines()


@pytest.mark.parametrize(
    "keys", [{}, {"preset": "none", "name": "007"}, {"model.vision.config": VISION, "seed": "${name}"}]
)
def test_keys_are_set_as_hydra_sets_them(keys: dict[str, object]) -> None:
    found = tiny.composed("predict", {"image": "a(1).jpg", **keys}, return_hydra_config=True)
    words = tiny.arguments({"mode": "predict", "image": "a(1).jpg", **keys})
    with initialize_config_dir(config_dir=str(ROOT), version_base="1.3"):
        expected = compose("config", overrides=check_overrides(words), return_hydra_config=True)
    found.hydra.job.override_dirname = expected.hydra.job.override_dirname = ""  # not used
    assert OmegaConf.to_yaml(found) == OmegaConf.to_yaml(expected)


# --- the command line


def test_unknown_keys_are_reported_with_suggestions() -> None:
    with pytest.raises(UserError) as caught:
        check_overrides(
            ["trainer.epoch=3", "lr=1", "model.visoin.trainable=true", "+batch_size=3", "model.vad=true", "qqq=1"]
        )
    assert str(caught.value).splitlines() == [
        "unknown key 'trainer.epoch'; did you mean 'trainer.epochs'?",
        "unknown key 'lr'; did you mean 'model.optimizer.lr'?",
        "unknown key 'model.visoin.trainable'; did you mean 'model.vision.trainable'?",
        "unknown key 'batch_size'; did you mean 'dataset.train_ds.batch_size'?",
        "model.vad is a group of keys; set one of them, such as model.vad.enabled",
        "unknown key 'qqq'; python run.py --help lists all keys",
    ]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("preset=artemis", r"unknown preset 'artemis'; did you mean 'artemis_v1'\?"),
        ("preset=cocoo", r"unknown preset 'cocoo'; did you mean 'coco'\? \(abstract \| artemis_v1 \|"),
        ("preset=fi", r"unknown preset 'fi'; did you mean 'FI'\?"),
        ("train", r"'train' is not KEY=VALUE; did you mean 'mode=train'\?"),
        ("~trainer.epochs=1", "keys cannot be removed"),
        ("user=file", "unknown key 'user'"),
        ("hydraa.run.dir=x", "unknown key 'hydraa.run.dir'"),
    ],
)
def test_invalid_arguments(override: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_overrides([override])


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("image=my picture (1), a.jpg", "image", "my picture (1), a.jpg"),
        ("image=it's [here", "image", "it's [here"),
        ("name=007", "name", "007"),
        ("name=true", "name", "true"),
        ("pretrained_name=null", "pretrained_name", None),
        ("+trainer.epochs=3", "trainer.epochs", 3),
        ("dataset.test_ds.video_dir=clips", "dataset.test_ds.visual_dir", "clips"),
        ("model.vision.config.layers=2", "model.vision.config.layers", 2),
        ("model.text.config.new_field=2", "model.text.config.new_field", 2),
        ("model.vad={enabled: false}", "model.vad.enabled", False),
    ],
)
@pytest.mark.parametrize("preset", ["demo", "none"])
def test_values_are_passed_on_literally(override: str, key: str, value: object, preset: str) -> None:
    assert OmegaConf.select(composed(f"preset={preset}", override), key) == value


def test_lists_are_sweeps_only_with_multirun() -> None:
    assert check_overrides(["seed=1,2", "preset=demo,coco"], multirun=True) == ["seed=1,2", "preset=demo,coco"]
    assert check_overrides(["seed=1,2"]) == ["seed='1,2'"]
    assert check_overrides(["hydra.sweep.dir=x"]) == ["hydra.sweep.dir=x"]


def test_ignored_perceiver_keys_print_a_note(tmp_path, capsys):
    keys = ("model.text.xattn.num_latents", "dataset.validation_ds.shuffle")
    assert check_overrides(["seed=1", *(f"{key}=1" for key in keys)]) == ["seed=1"]
    assert capsys.readouterr().err == "".join(f"note: {key} has no effect here and is left out\n" for key in keys)
    (tmp_path / "mine.yaml").write_text(
        "dataset: {validation_ds: {shuffle: false}}\nmodel: {text: {xattn: {num_latents: 8, heads: 2}}}\n"
    )
    content, _ = load_file(str(tmp_path), "mine")
    assert content == {"dataset": {"validation_ds": {}}, "model": {"text": {"xattn": {"heads": 2}}}}
    assert capsys.readouterr().err.count("note: ") == 2


# --- the composed configuration


@pytest.mark.parametrize("preset", presets())
def test_presets_are_valid_with_paths(preset: str) -> None:
    paths = [f"dataset.{part}_ds.{key}=x" for part in ("train", "validation") for key in ("visual_dir", "json_path")]
    check_config(composed(f"preset={preset}", *paths))


def test_demo_is_valid_and_resolved() -> None:
    cfg = composed()
    check_config(cfg)
    assert cfg.dataset.name == "demo"
    assert OmegaConf.to_container(cfg)["trainer"]["exp_name"] == "demo"


def test_values_are_normalized_in_place() -> None:
    cfg = composed(
        "mode=PREDICT",
        "pretrained_name=demo",
        "image=x.png",
        "model.optimizer.name=AdamW",
        "model.optimizer.scheduler.name=Linear",
        "model.optimizer.weight_decay='1e-3'",
        "dataset.sign_languages=EN,de",
        "trainer.precision=BF16",
        "trainer.clip_grad_norm=1",
    )
    check_config(cfg)
    assert (cfg.mode, cfg.trainer.precision) == ("predict", "bf16")
    assert (cfg.model.optimizer.name, cfg.model.optimizer.scheduler.name) == ("adamw", "linear")
    assert (cfg.model.optimizer.weight_decay, cfg.trainer.clip_grad_norm) == (0.001, 1.0)
    assert cfg.dataset.sign_languages == ["en", "de"]


def test_all_problems_are_reported_at_once() -> None:
    lines = problems_of(
        "trainer.precision=fp61",
        "trainer.epochs=0",
        "trainer.test.top_p=1.5",
        "trainer.test.top_k=${seedd}",
        "model.optimizer.betas=[0.9,1]",
        "model.optimizer.lr=1e-3,1e-4",
        "model.vision.trainable=3",
        "model.contrastive.enabled=maybe",
        "dataset.sign_languages=[en,ed]",
        "dataset.train_ds.json_path=null",
    )
    assert lines == [
        "model.vision.trainable must be true or false, not 3",
        "model.contrastive.enabled must be auto or true or false, not 'maybe'",
        "model.optimizer.lr must be a number > 0, not '1e-3,1e-4'",
        "model.optimizer.betas must be a list of 2 values, each a number >= 0, < 1, not [0.9, 1]",
        "dataset.sign_languages must be a list of one or more values, each one of "
        "zh | uk | ru | bg | is | de | it | sv | lt | en, not ['en', 'ed']",
        "trainer.epochs must be a whole number >= 1, not 0",
        "trainer.precision must be one of auto | fp32 | fp16 | bf16, not 'fp61'; did you mean 'fp16'?",
        "trainer.test.top_p must be a number > 0, <= 1, not 1.5",
        "trainer.test.top_k: Interpolation key 'seedd' not found",
        "mode=train needs dataset.train_ds.json_path=FILE: the annotations of the images",
    ]


def test_emotion_folder_needs_only_a_training_folder() -> None:
    check_config(composed("preset=emotion_folder", "dataset.validation_ds.visual_dir=null"))
    lacking = ["dataset.name=emotion_folder", "dataset.train_ds.visual_dir=null"]
    missing = "dataset.train_ds.visual_dir=FOLDER: the images (or videos)"
    assert problems_of("preset=none", *lacking) == [f"mode=train needs {missing}"]


def test_labels_are_a_list() -> None:
    cfg = composed("dataset.labels=[joy,something else]")
    check_config(cfg)
    assert cfg.dataset.labels == ["joy", "something else"]
    assert problems_of("dataset.labels=[]") == [
        "dataset.labels must be a list of one or more values, each a string, not []"
    ]


def test_missing_keys_of_each_mode() -> None:
    assert problems_of("mode=test") == [
        "mode=test needs pretrained_name=RUN: the run folder, checkpoint folder or run name to test"
    ]
    assert problems_of("mode=predict") == [
        "mode=predict needs pretrained_name=RUN: the run folder, checkpoint folder or run name to use",
        "mode=predict needs image=PATH: an image, or a folder of images",
    ]
    needs = [line.partition("=FILE")[0].partition("=FOLDER")[0] for line in problems_of("preset=coco", "mode=train")]
    assert needs == [
        f"mode=train needs dataset.{part}_ds.{key}"
        for part in ("train", "validation")
        for key in ("visual_dir", "json_path")
    ]


def test_question_marks_are_an_error_only_if_the_mode_reads_the_key() -> None:
    cfg = composed("dataset.test_ds.json_path=???", "pretrained_name=???", "image=???")
    check_config(cfg)
    assert (cfg.dataset.test_ds.json_path, cfg.pretrained_name) == (None, None)
    assert problems_of("mode=tset", "seed=???")[1:] == ["seed is left open (???): write seed=… on the command line"]
    assert problems_of("mode=test", "pretrained_name=???", "dataset.test_ds.batch_size=???") == [
        "dataset.test_ds.batch_size is left open (???): write dataset.test_ds.batch_size=… on the command line",
        "mode=test needs pretrained_name=RUN: the run folder, checkpoint folder or run name to test",
    ]


def test_both_bridges_may_be_disabled() -> None:
    check_config(composed("model.enable_mapper=false", "model.enable_resampler_xattn=false"))


def test_unknown_keys_in_a_composed_configuration() -> None:
    cfg = composed()
    OmegaConf.update(cfg, "trainer.epoch", 3, force_add=True)
    OmegaConf.update(cfg, "model.vad", 3, force_add=True)
    with pytest.raises(UserError) as caught:
        check_config(cfg)
    assert str(caught.value).splitlines() == [
        "model.vad is a group of keys; set one of them, such as model.vad.enabled",
        "unknown key 'trainer.epoch'; did you mean 'trainer.epochs'?",
    ]


# --- a file of the user's own


def test_file_is_found_with_and_without_suffix(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("name: a\nhydra: {run: {dir: '${name}'}}\ndefaults: [x]\n")
    for name in ("mine", "mine.yaml"):
        content, preset = load_file(str(tmp_path), name)
        assert (content, preset) == ({"name": "a"}, "none")


def test_file_may_select_its_preset(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("preset: coco\nseed: 1\n")
    assert load_file(str(tmp_path), None) == ({"seed": 1}, "coco")


def test_project_config_is_not_loaded_twice() -> None:
    assert load_file(str(ROOT), "config.yaml") == (None, "demo")


def test_older_files_are_adapted(tmp_path: Path) -> None:
    (tmp_path / "old.yaml").write_text(
        "dataset:\n  train_ds: {video_dir: clips}\ntrainer: {exp_dir: null, epochs: 2}\n"
    )
    content, _ = load_file(str(tmp_path), "old")
    assert content == {"dataset": {"train_ds": {"visual_dir": "clips"}, "name": "mlslt"}, "trainer": {"epochs": 2}}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("trainer:\n  epoch: 3\n", r"bad.yaml: unknown key 'trainer.epoch'; did you mean 'trainer.epochs'\?"),
        ("trainer: 3\n", "bad.yaml: trainer is a group of keys"),
        ("trainer.epochs: 3\n", "bad.yaml: 'trainer.epochs' must be written as nested keys"),
        ("preset: cocoo\n", "bad.yaml: unknown preset 'cocoo'"),
        ("a: [1\n", "bad.yaml cannot be read as YAML: .*line 2"),
        ("seed: 1\nseed: 2\n", "bad.yaml cannot be read as YAML: .*duplicate key"),
        ("- 1\n", "bad.yaml holds no KEY: VALUE lines"),
        ("just words\n", "bad.yaml"),
    ],
)
def test_invalid_file(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "bad.yaml").write_text(text)
    with pytest.raises(UserError, match=message):
        load_file(str(tmp_path), "bad")


def test_missing_folder_or_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--config-path=.*nope: there is no such folder"):
        load_file(str(tmp_path / "nope"), "mine")
    (tmp_path / "mine.yaml").write_text("")
    with pytest.raises(UserError, match=r"--config-name=other: .* has no such file; it has mine\.yaml"):
        load_file(str(tmp_path), "other")
