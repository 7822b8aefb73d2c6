"""Checkpoints on disk: content, retention, search, damage."""

from __future__ import annotations

import json
import pickle
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file

from common.errors import UserError
from common.files import tidy
from data.tokenizer import load_tokenizer
from tests.helpers.launch import died_at_change
from tests.helpers.tiny import make_captioner, model_config, write_gpt2, write_open_clip
from trainer.runs.checkpoint import find_checkpoint, load_training, load_weights, save_checkpoint
from trainer.runs.retention import SUMS
from trainer.runs.task import CaptionTask


@pytest.fixture(scope="module")
def captioner(template):
    return make_captioner(template, gates=0.3)


def save(
    run: Path, captioner, template, *, step=1, value: float | None = 1.0, lower=True, keep: int = 1, keep_last: int = 1
) -> Path:
    optimizer = torch.optim.AdamW([p for p in captioner.parameters() if p.requires_grad], lr=0.1)
    return save_checkpoint(
        run,
        CaptionTask(captioner, weights={}, tokenizer=template.tokenizer),
        config=OmegaConf.create({"name": run.name, "seed": 0, "model": model_config(), "dataset": {}, "trainer": {}}),
        training={"optimizer": optimizer.state_dict(), "scaler": {}, "random": {"torch": torch.get_rng_state()}},
        info={"state": {"step": step, "epoch": 0}, "metrics": {"validation/loss": value}},
        monitored=value,
        lower_is_better=lower,
        keep=keep,
        keep_last=keep_last,
    )


def kept(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir())


def names(*steps: int) -> list[str]:
    return ["index.json", *(f"step-{step:08d}" for step in steps)]


# --- content ---------------------------------------------------------------------------------------------------------


def test_loading_restores_every_weight(tmp_path, template, captioner):
    folder = save(tmp_path / "run", captioner, template)
    other = make_captioner(template, seed=5)
    x = torch.randn(2, 1, 3, 32, 32), torch.ones(2, 1, dtype=torch.bool)
    assert not torch.allclose(other.look(*x).prefix, captioner.look(*x).prefix)
    load_weights(other, folder)
    for name, tensor in captioner.state_dict().items():
        assert torch.equal(other.state_dict()[name], tensor), name
    assert torch.equal(other.look(*x).prefix, captioner.look(*x).prefix)


def test_checkpoint_has_exactly_its_files(tmp_path, template, captioner):
    folder = save(tmp_path / "run", captioner, template, step=7)
    assert sorted(path.name for path in folder.iterdir()) == [
        "SHA256SUMS",
        "checkpoint.json",
        "config.yaml",
        "model.safetensors",
        "tokenizer.json",
        "training.pt",
    ]
    assert kept(tmp_path / "run") == names(7)
    info = json.loads((folder / "checkpoint.json").read_text())
    assert info["state"]["step"] == 7 and info["metrics"] == {"validation/loss": 1.0}
    assert info["versions"]["torch"] == torch.__version__.partition("+")[0] and "git" in info and info["device"]
    assert OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"))["model"] == model_config()


def test_tokenizer_is_restored(tmp_path, template, captioner):
    folder = save(tmp_path / "run", captioner, template)
    back = load_tokenizer(str(find_checkpoint("run", tmp_path).tokenizer))
    assert back.get_vocab() == template.tokenizer.get_vocab()
    assert back.eos_token_id == template.eos_id
    text = " the emotion is awe because the serene boat , öß"
    assert back(text).input_ids == template.tokenizer(text).input_ids
    assert (folder / "tokenizer.json").is_file()


def test_frozen_weights_are_stored_only_if_random(tmp_path, template):
    vision = str(write_open_clip(tmp_path / "clip"))
    language = str(write_gpt2(tmp_path / "gpt2", vocab_size=len(template.tokenizer)))
    from_folders = {
        "vision__pretrained_name": vision,
        "vision__config": None,
        "text__pretrained_name": language,
        "text__config": None,
    }
    captioner = make_captioner(template, **from_folders)
    folder = save(tmp_path / "run", captioner, template)
    stored = load_file(folder / "model.safetensors")
    assert {name for name in stored} == {name for name, p in captioner.named_parameters() if p.requires_grad}
    assert not any(name.startswith("vision.") or ".lm_block." in name or ".wte." in name for name in stored)
    random = make_captioner(template)
    stored = load_file(save(tmp_path / "random", random, template) / "model.safetensors")
    frozen = {name for name, p in random.named_parameters() if not p.requires_grad}
    assert frozen and frozen <= set(stored)
    again = make_captioner(template, seed=9, **from_folders)
    load_weights(again, folder)
    for name, tensor in captioner.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name


def test_trained_pretrained_weights_are_stored(tmp_path, template):
    language = str(write_gpt2(tmp_path / "gpt2", vocab_size=len(template.tokenizer)))
    settings = {"text__pretrained_name": language, "text__config": None, "text__trainable": True}
    captioner = make_captioner(template, **settings)
    with torch.no_grad():
        captioner.language.lm.transformer.wte.weight.add_(1.0)
    folder = save(tmp_path / "run", captioner, template)
    again = make_captioner(template, seed=3, **settings)
    load_weights(again, folder)
    assert torch.equal(again.language.lm.transformer.wte.weight, captioner.language.lm.transformer.wte.weight)
    assert again.language.lm.lm_head.weight is again.language.lm.transformer.wte.weight, "still tied"


# --- retention -------------------------------------------------------------------------------------------------------


def test_best_and_last_are_retained(tmp_path, template, captioner):
    run = tmp_path / "run"
    for step, value in enumerate([3.0, 1.0, 2.0, 4.0], start=1):
        save(run, captioner, template, step=step, value=value, keep=2)
    assert kept(run) == names(2, 3, 4)
    index = json.loads((run / "checkpoints" / "index.json").read_text())
    assert index["last"] == "step-00000004"
    assert [(entry["name"], entry["value"]) for entry in index["best"]] == [("step-00000002", 1), ("step-00000003", 2)]
    assert find_checkpoint("run", tmp_path).info["state"]["step"] == 2
    assert find_checkpoint("run", tmp_path, prefer="last").info["state"]["step"] == 4


def test_higher_can_be_better(tmp_path, template, captioner):
    run = tmp_path / "run"
    for step, value in enumerate([0.3, 0.9, 0.5], start=1):
        save(run, captioner, template, step=step, value=value, lower=False)
    assert kept(run) == names(2, 3)
    assert find_checkpoint("run", tmp_path).info["state"]["step"] == 2


def test_without_a_monitored_value_only_the_last_is_retained(tmp_path, template, captioner):
    run = tmp_path / "run"
    for step in (1, 2):
        save(run, captioner, template, step=step, value=None)
    assert kept(run) == names(2)
    assert find_checkpoint("run", tmp_path).info["state"]["step"] == 2


def test_retaining_no_best_checkpoint(tmp_path, template, captioner):
    run = tmp_path / "run"
    for step in (1, 2):
        save(run, captioner, template, step=step, value=float(step), keep=0)
    assert kept(run) == names(2)
    assert find_checkpoint("run", tmp_path).info["state"]["step"] == 2


def test_retaining_several_last_checkpoints(tmp_path, template, captioner):
    run = tmp_path / "run"
    for step, value in enumerate([1.0, None, 3.0, None], start=1):
        save(run, captioner, template, step=step, value=value, keep_last=2)
    assert kept(run) == names(1, 3, 4)


def test_going_back_removes_later_checkpoints(tmp_path, template, captioner):
    run = tmp_path / "run"
    for step, value in enumerate([2.0, 3.0, 1.0], start=1):
        save(run, captioner, template, step=step, value=value, keep=2, keep_last=3)
    save(run, captioner, template, step=2, value=4.0, keep=2, keep_last=3)
    assert kept(run) == names(1, 2)
    assert find_checkpoint("run", tmp_path).info["state"]["step"] == 1
    assert find_checkpoint("run", tmp_path, prefer="last").info["metrics"]["validation/loss"] == 4.0


def test_saving_a_step_again_replaces_it(tmp_path, template, captioner):
    run = tmp_path / "run"
    save(run, captioner, template, value=1.0, keep=3)
    save(run, captioner, template, value=5.0, keep=3)
    index = json.loads((run / "checkpoints" / "index.json").read_text())
    assert [entry["value"] for entry in index["best"]] == [5.0]
    assert kept(run) == names(1)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_or_infinite_value_is_never_the_best(tmp_path, template, captioner, value):
    run = tmp_path / "run"
    save(run, captioner, template, step=1, value=value)
    save(run, captioner, template, step=2, value=3.0)
    save(run, captioner, template, step=3, value=value)
    assert find_checkpoint("run", tmp_path).info["state"]["step"] == 2
    json.loads((run / "checkpoints" / "index.json").read_text(), parse_constant=lambda word: pytest.fail(word))


def test_failed_write_leaves_only_the_earlier_checkpoint(tmp_path, template, captioner):
    run = tmp_path / "run"
    save(run, captioner, template, step=1)
    with pytest.raises(TypeError):
        save_checkpoint(
            run,
            CaptionTask(captioner, weights={}, tokenizer=template.tokenizer),
            config=OmegaConf.create({}),
            training={},
            info={"state": {"step": 2}, "metrics": {"not for JSON": object()}},
            monitored=0.0,
            lower_is_better=True,
            keep=1,
        )
    assert kept(run) == names(1)
    assert find_checkpoint("run", tmp_path, prefer="last").info["state"]["step"] == 1


# --- search ----------------------------------------------------------------------------------------------------------


def test_checkpoint_can_be_named_in_every_way(tmp_path, template, captioner, monkeypatch):
    folder = save(tmp_path / "runs" / "mine", captioner, template)
    exp_dir = tmp_path / "runs"
    for name in ("mine", exp_dir / "mine", folder, folder / "model.safetensors", "mine/checkpoints/step-00000001"):
        found = find_checkpoint(str(name), exp_dir)
        assert found.folder.resolve() == folder.resolve()
        assert found.run.resolve() == (exp_dir / "mine").resolve()
    monkeypatch.chdir(tmp_path)
    assert find_checkpoint("runs/mine", Path("runs")).folder.resolve() == folder.resolve()


def test_copied_checkpoint_is_its_own_run(tmp_path, template, captioner):
    folder = save(tmp_path / "run", captioner, template)
    folder.rename(tmp_path / "copy")
    found = find_checkpoint(str(tmp_path / "copy"), tmp_path)
    assert found.run == found.folder == tmp_path / "copy"


def test_missing_checkpoint_names_the_places_searched(tmp_path):
    (tmp_path / "empty").mkdir()
    for name in ("nowhere", "empty"):
        with pytest.raises(UserError) as caught:
            find_checkpoint(name, tmp_path)
        text = str(caught.value)
        assert text.startswith(f"pretrained_name={name}: ") and str(tmp_path / name) in text
        assert "\n" not in text


# --- damage ----------------------------------------------------------------------------------------------------------


def complains(call, *parts: str) -> str:
    with pytest.raises(UserError) as caught:
        call()
    text = str(caught.value)
    assert "\n" not in text
    for part in parts:
        assert part in text
    return text


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"mapper__mlp_dim": 24}, "mapper._mapper.0.weight is 16×32 there and 24×32 here"),
        ({"resampler__depth": 3}, "resampler.layers.2."),
        ({"vad__enabled": False}, "is not part of this model"),
        ({"enable_mapper": False}, "mapper._mapper."),
        ({"text__xattn__freq": 2}, "language.lm.transformer.h.1.xattn_block."),
    ],
)
def test_another_architecture_names_the_first_difference(tmp_path, template, captioner, changes, difference):
    folder = save(tmp_path / "run", captioner, template)
    other = make_captioner(template, seed=4, **changes)
    before = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    complains(lambda: load_weights(other, folder), str(folder / "model.safetensors"), difference)
    assert all(torch.equal(before[name], tensor) for name, tensor in other.state_dict().items()), "partly loaded"


@pytest.mark.parametrize("damage", ["truncated", "empty", "foreign", "absent"])
def test_damaged_weights_are_reported(tmp_path, template, captioner, damage):
    folder = save(tmp_path / "run", captioner, template)
    path = folder / "model.safetensors"
    content = {"truncated": path.read_bytes()[:-100], "empty": b"", "foreign": b"PK\x03\x04 no weights" * 9}
    path.unlink() if damage == "absent" else path.write_bytes(content[damage])
    complains(lambda: load_weights(captioner, folder), str(path), "cannot be read")


@pytest.mark.parametrize("file", ["config.yaml", "checkpoint.json", "tokenizer.json"])
def test_missing_file_is_reported(tmp_path, template, captioner, file):
    folder = save(tmp_path / "run", captioner, template)
    (folder / file).unlink()
    complains(lambda: find_checkpoint("run", tmp_path), str(folder), f"{file} is missing")


@pytest.mark.parametrize("file", ["config.yaml", "checkpoint.json", SUMS])
@pytest.mark.parametrize("content", ["{", "", "[]", '{"a": 1}', "a: b: c"])
def test_damaged_small_file_is_reported(tmp_path, template, captioner, file, content):
    folder = save(tmp_path / "run", captioner, template)
    (folder / file).write_text(content)
    complains(lambda: find_checkpoint("run", tmp_path), str(folder / file))
    if file != SUMS:  # as after an intended change
        (folder / SUMS).unlink()
        complains(lambda: find_checkpoint("run", tmp_path), str(folder / file))


@pytest.mark.parametrize("content", [None, "{", "[]", '{"last": "gone", "best": [{"name": "gone", "value": 0}, 7]}'])
def test_index_is_not_needed(tmp_path, template, captioner, content):
    run = tmp_path / "run"
    for step, value in enumerate([3.0, 1.0, 2.0], start=1):
        save(run, captioner, template, step=step, value=value, keep=2)
    index = run / "checkpoints" / "index.json"
    index.unlink() if content is None else index.write_text(content)
    assert find_checkpoint("run", tmp_path).info["state"]["step"] == 2
    assert find_checkpoint("run", tmp_path, prefer="last").info["state"]["step"] == 3
    save(run, captioner, template, step=4, value=4.0, keep=2)
    assert kept(run) == names(2, 3, 4)
    assert [entry["name"] for entry in json.loads(index.read_text())["best"]] == ["step-00000002", "step-00000003"]


def test_run_without_checkpoints_is_reported(tmp_path, template, captioner):
    folder = save(tmp_path / "run", captioner, template)
    folder.rename(tmp_path / "elsewhere")
    complains(lambda: find_checkpoint("run", tmp_path), str(tmp_path / "run"), "there is no checkpoint")


@pytest.mark.parametrize("name", ["model.safetensors", "training.pt", "checkpoint.json", "config.yaml"])
def test_next_best_replaces_a_damaged_checkpoint(tmp_path, template, captioner, name, capsys):
    run = tmp_path / "run"
    for step, value in enumerate([1.0, 3.0, 2.0, 4.0], start=1):
        save(run, captioner, template, step=step, value=value, keep=3)
    path = run / "checkpoints" / "step-00000001" / name
    content = bytearray(path.read_bytes())
    content[-3] ^= 8
    path.write_bytes(content)
    found = find_checkpoint("run", tmp_path)
    said = capsys.readouterr().err
    if name == "training.pt":  # not needed for predictions
        assert found.folder == path.parent and said == ""
    else:
        assert found.folder.name == "step-00000003"
        assert f"warning: {path} was changed or damaged" in said and str(found.folder) in said
    complains(lambda: find_checkpoint(str(path.parent), tmp_path, prefer="last"), str(path), SUMS)


def test_checksums_pass_sha256sum(tmp_path, template, captioner):
    folder = save(tmp_path / "run", captioner, template)
    done = subprocess.run(["sha256sum", "--check", "--strict", SUMS], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.count(": OK") == 5


@pytest.mark.parametrize(
    ("file", "given", "kind", "found"),
    [
        ("coco-real.pt", "coco-real.pt", "perceiver", "coco-real.pt"),
        ("coco-real.pt", "coco-real", "perceiver", "coco-real.pt"),
        ("weights/coco-real.pt", "weights", "perceiver", "weights/coco-real.pt"),
        ("SEVLM/nle_model_best-res/config.json", "SEVLM", "sevlm", "SEVLM"),
        ("SEVLM/nle_model_best-res/config.json", "SEVLM/nle_model_best-res", "sevlm", "SEVLM"),
        ("jing/SEVLM/nle_model_best-acc/config.json", "jing", "sevlm", "jing/SEVLM"),
    ],
)
def test_published_weights_are_recognized(tmp_path, file, given, kind, found):
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).write_bytes(b"x")
    with pytest.raises(UserError) as error:
        find_checkpoint(str(tmp_path / given), tmp_path / "runs")
    command = (
        f"python -m model.checkpoint_import {kind} {tmp_path / found} --out {tmp_path / 'runs' / Path(found).stem}"
    )
    assert str(error.value).endswith(f"import it first: {command}")


# --- interrupted writes ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("again", [False, True])
def test_killed_writer_leaves_a_valid_checkpoint(tmp_path, template, captioner, again):
    """Step 2 after step 1, of which only the last is retained; or step 1 again, as after a validation."""
    base = tmp_path / "base"
    save(base, captioner, template, step=1, value=1.0)
    number, seen, died = 0, set(), True
    while died:
        number += 1
        run = Path(shutil.copytree(base, tmp_path / str(number)))
        work = {"step": 1 if again else 2, "value": 0.5}
        died = died_at_change(number, run, lambda run=run, work=work: save(run, captioner, template, **work))
        if not again:
            assert find_checkpoint(str(run), run, prefer="last"), "even before cleaning up"
        tidy(run / "checkpoints")
        assert not [name for name in kept(run) if name.startswith(".")]
        last = find_checkpoint(str(run), run, prefer="last")
        load_training(last.folder)
        seen.add((last.info["state"]["step"], last.info["metrics"]["validation/loss"]))
    assert number > 20 and seen == {(1, 1.0), (1 if again else 2, 0.5)}
    assert kept(run) == names(1 if again else 2)


@pytest.mark.parametrize("limit", [500, 20_000, 200_000])
def test_full_disk_is_one_sentence_and_changes_nothing(tmp_path, template, captioner, limit):
    resource = pytest.importorskip("resource")
    run = tmp_path / "run"
    save(run, captioner, template, step=1)
    before = kept(run)
    usual = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, usual[1]))  # of a file; Python ignores the signal for it
    try:
        words = (f"{run / 'checkpoints'}", "(File too large; ", "ulimit")
        complains(lambda: save(run, captioner, template, step=2), *words)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, usual)
    assert kept(run) == before
    assert find_checkpoint("run", tmp_path, prefer="last").info["state"]["step"] == 1


# --- no pickles ------------------------------------------------------------------------------------------------------


class Evil:
    """Writes the file `trace` when unpickled without restriction."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self):
        return (Path.write_text, (self.trace, "unpickled"))


def test_training_state_loads_with_weights_only(tmp_path, template, captioner):
    folder = save(tmp_path / "run", captioner, template)
    state = torch.load(folder / "training.pt", weights_only=True)
    assert set(state) == {"optimizer", "scaler", "random"}
    assert torch.equal(load_training(folder)["random"]["torch"], state["random"]["torch"])


@pytest.mark.parametrize("how", ["torch", "pickle"])
def test_pickled_training_state_is_refused_without_running_it(tmp_path, template, captioner, how):
    folder = save(tmp_path / "run", captioner, template)
    path, trace = folder / "training.pt", tmp_path / "trace"
    evil = {"optimizer": Evil(trace), "scaler": {}, "random": {}}
    torch.save(evil, path) if how == "torch" else path.write_bytes(pickle.dumps(evil, protocol=2))
    complains(lambda: load_training(folder), str(path), "nothing in it was run")
    assert not trace.exists()
    torch.load(path, weights_only=False) if how == "torch" else pickle.loads(path.read_bytes())
    assert trace.exists(), "the pickle must be harmful"


def test_pickled_weights_are_refused_without_running_them(tmp_path, template, captioner):
    folder = save(tmp_path / "run", captioner, template)
    path, trace = folder / "model.safetensors", tmp_path / "trace"
    torch.save({"mapper._mapper.0.weight": Evil(trace)}, path)
    complains(lambda: load_weights(captioner, folder), str(path))
    assert not trace.exists()


def test_yaml_tags_in_the_configuration_run_nothing(tmp_path, template, captioner):
    folder = save(tmp_path / "run", captioner, template)
    trace = tmp_path / "trace"
    tag = f"a: !!python/object/apply:os.mkdir ['{trace}']\n"
    (folder / "config.yaml").write_text(tag)
    complains(lambda: find_checkpoint("run", tmp_path), str(folder / "config.yaml"))
    assert not trace.exists()


def test_weights_are_cast_to_the_dtype_of_the_network(tmp_path, template, captioner):
    folder = save(tmp_path / "run", captioner, template)
    path = folder / "model.safetensors"
    save_file({name: tensor.to(torch.float64) for name, tensor in load_file(path).items()}, path)
    other = make_captioner(template, seed=8)
    load_weights(other, folder)
    assert other.mapper._mapper[0].weight.dtype == torch.float32
    assert torch.equal(other.mapper._mapper[0].weight, captioner.mapper._mapper[0].weight)
