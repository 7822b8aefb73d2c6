"""The training loop on small real data: steps, resuming, errors, validation and checkpoints."""

from __future__ import annotations

import io
import json
import math
import random
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import trainer.loop.trainer
from common.errors import UserError
from data.loaders import make_loader
from model.captioner import Captioner
from model.losses import NAMES
from tests.helpers.tiny import ROOT, make_captioner, make_dataset, make_template, run_mode, write_run, write_splits
from trainer.loop.tracker import Tracker
from trainer.loop.trainer import Trainer, TrainingLoader
from trainer.loop.validation import Validator
from trainer.prediction.build import decoding
from trainer.prediction.predictor import Predictor
from trainer.runs.checkpoint import find_checkpoint, load_weights
from trainer.runs.retention import SUMS, entries
from trainer.runs.state import random_states, restore_random_states
from trainer.runs.task import CaptionTask
from trainer.runtime.processes import grouped
from trainer.setup.device import make_accelerator


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    """12 training images, 3 batches per epoch, and 4 for validation."""
    return write_splits(tmp_path_factory.mktemp("splits"), train=12)


@pytest.fixture
def train(keys, tmp_path):
    """Train into tmp_path/NAME like the command, and return that folder."""

    def call(name: str = "run", **changes) -> Path:
        own = {key.replace("__", "."): value for key, value in changes.items()}
        run_mode("train", {**keys, "trainer.exp_dir": tmp_path, "name": name, **own})
        return tmp_path / name

    return call


@pytest.fixture(scope="module")
def usual(keys) -> Path:
    """A run of one epoch with the keys as they are; read-only."""
    return write_run(keys, "usual")


@pytest.fixture
def run(usual, tmp_path) -> Path:
    """A copy of that run."""
    return Path(shutil.copytree(usual, tmp_path / "run"))


def weights(run: Path, prefer: str = "last") -> dict[str, torch.Tensor]:
    return load_file(find_checkpoint(str(run), run.parent, prefer=prefer).folder / "model.safetensors")


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def lines(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def validations(run: Path) -> list[dict]:
    return [line for line in lines(run) if "validation/loss" in line]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# --- one step --------------------------------------------------------------------------------------------------------


def make_trainer(folder: Path, captioner: Captioner, *, batch_size: int, accumulation: int = 1, count: int = 4):
    """Return a Trainer with plain SGD, so that the change of the weights is the gradient."""
    template = make_template(folder / "tokenizer")
    config = OmegaConf.load(ROOT / "config.yaml")
    config.trainer.update(accumulation_steps=accumulation, epochs=1, device="cpu", clip_grad_norm=None)
    config.model.balance = None  # else measured on the first of several batches
    config.model.optimizer.update(lr=0.1, scheduler={"name": "constant", "warmup_steps": 0, "min_lr": 0.0})
    dataset = make_dataset(folder / "images", template, captioner, count)
    loader, sampler = make_loader(dataset, batch_size=batch_size, num_workers=0, shuffle=False)
    accelerator, tracker = make_accelerator(config), Tracker(folder / "run")
    weights = OmegaConf.to_container(config.model.loss_weights)
    task = CaptionTask(captioner, weights=weights, tokenizer=template.tokenizer)
    validator = Validator(
        task=task,
        loader=loader,
        samples=dataset.samples,
        predictor=Predictor(captioner, template, dataset.aligner, decoding(config), True),
        tracker=tracker,
        strict=False,
        pictures=0,
        limit_batches=None,
    )
    return Trainer(
        config=config,
        run=folder / "run",
        accelerator=accelerator,
        task=task,
        optimizer=torch.optim.SGD([p for p in captioner.parameters() if p.requires_grad], lr=0.1),
        data=TrainingLoader(loader, sampler, batch_size),
        validator=validator,
        tracker=tracker,
        skipped=[],
    )


def stepped(folder: Path, *, batch_size: int, accumulation: int, **changes) -> tuple[dict, Trainer]:
    captioner = make_captioner(make_template(folder / "tokenizer"), gates=0.7, **changes)
    trainer = make_trainer(folder, captioner, batch_size=batch_size, accumulation=accumulation)
    before = {name: p.detach().clone() for name, p in captioner.named_parameters()}
    trainer.fit()
    assert trainer.state.step == 1
    return {name: p.detach() - before[name] for name, p in captioner.named_parameters()}, trainer


@pytest.mark.parametrize("vad", [True, False])
def test_accumulated_small_batches_equal_one_large_batch(tmp_path, vad):
    """Without the contrastive loss, whose false pairs depend on the batch."""
    changes = {"contrastive__enabled": False, "vad__enabled": vad}
    whole, one = stepped(tmp_path / "a", batch_size=4, accumulation=1, **changes)
    parts, two = stepped(tmp_path / "b", batch_size=2, accumulation=2, **changes)
    four, _ = stepped(tmp_path / "c", batch_size=1, accumulation=4, **changes)
    counts = [int((batch.labels[:, 1:] != -100).sum()) for batch in two.data.loader]
    assert counts[0] != counts[1], "texts of equal length would not show a mean of means"
    assert max(float(change.abs().max()) for change in whole.values()) > 1e-3
    for name, change in whole.items():
        torch.testing.assert_close(parts[name], change, atol=1e-6, rtol=0, msg=lambda m, name=name: f"{name}: {m}")
        torch.testing.assert_close(four[name], change, atol=1e-6, rtol=0, msg=lambda m, name=name: f"{name}: {m}")
    assert one.metrics["validation/loss"] == pytest.approx(two.metrics["validation/loss"], abs=1e-5)


def test_last_step_of_an_epoch_may_have_fewer_batches(train):
    assert [len(group) for group in grouped(range(7), 3)] == [3, 3, 1]  # type: ignore[arg-type]
    assert list(grouped([], 2)) == []
    run = train(trainer__accumulation_steps=2, trainer__epochs=2)
    state = find_checkpoint("run", run.parent).info["state"]
    assert (state["step"], state["images"], state["epoch"]) == (4, 24, 2)


def test_clipping_bounds_the_step_and_logs_the_unclipped_norm(tmp_path):
    captioner = make_captioner(make_template(tmp_path / "tokenizer"), gates=0.7)
    trainer = make_trainer(tmp_path, captioner, batch_size=4)
    trainer.settings.clip_grad_norm = 0.01
    trainer.settings.log_every_n_steps = 1
    before = [p.detach().clone() for p in captioner.parameters()]
    trainer.fit()
    moved = sum(float((p.detach() - b).square().sum()) for p, b in zip(captioner.parameters(), before, strict=True))
    assert math.sqrt(moved) == pytest.approx(0.1 * 0.01, rel=1e-3)
    assert lines(tmp_path / "run")[0]["train/grad_norm"] > 0.1


def test_only_trainable_weights_change(train):
    start = weights(train("start", model__optimizer__lr=1e-30))
    end = weights(train("end", model__optimizer__lr=1e-2, trainer__epochs=2))
    for name in start:
        frozen = name.startswith(("vision.", "language.")) and ".xattn_block." not in name
        unused = name == "resampler.time_pos_emb"  # an image uses only its first row
        assert unused or torch.equal(start[name], end[name]) == frozen, name
    assert any(".xattn_block." in name for name in start)


# --- reproducing and resuming ----------------------------------------------------------------------------------------


def test_seed_determines_the_run(train, usual):
    first, again, other = usual, train("b"), train("c", seed=7)
    assert equal(weights(first), weights(again))
    assert not equal(weights(first), weights(other))
    for line, same in zip(lines(first), lines(again), strict=True):
        assert {**line, "time": 0} == {**same, "time": 0}


def test_number_of_loader_processes_does_not_matter(train):
    alone = train("a", **DROPOUT)
    helped = train("b", dataset__train_ds__num_workers=2, dataset__validation_ds__num_workers=1, **DROPOUT)
    assert equal(weights(alone), weights(helped))


def test_bf16_trains_close_to_fp32(train):
    full = train("fp32", trainer__precision="fp32")
    half = train("bf16", trainer__precision="bf16")
    assert not equal(weights(full), weights(half))
    assert {tensor.dtype for tensor in weights(half).values()} == {torch.float32}
    assert validations(half)[0]["validation/loss"] == pytest.approx(validations(full)[0]["validation/loss"], rel=0.02)


DROPOUT = {"model__text__trainable": True}  # of GPT-2: a resumed run must repeat it


def test_resumed_run_equals_the_uninterrupted_one(train):
    schedule = {"model__optimizer__scheduler__name": "constant", "model__optimizer__scheduler__warmup_steps": 0}
    unbroken = train("a", trainer__epochs=3, **DROPOUT, **schedule)
    broken = train("b", trainer__epochs=1, **DROPOUT, **schedule)
    assert not equal(weights(unbroken), weights(broken))
    train("b", trainer__epochs=3, pretrained_name=broken, resume_pretrained_state=True, **DROPOUT, **schedule)
    assert equal(weights(unbroken), weights(broken))
    assert states(unbroken) == states(broken)
    same_steps = [line["step"] for line in validations(unbroken)]
    assert [line["step"] for line in validations(broken)] == same_steps == [3, 6, 9]
    for a, b in zip(validations(unbroken), validations(broken), strict=True):
        assert {**a, "time": 0} == {**b, "time": 0}


def states(run: Path) -> dict:
    return find_checkpoint(str(run), run.parent, prefer="last").info["state"]


def kill_after_saving(monkeypatch, step: int) -> None:
    """Stop like a crash right after the checkpoint of that step."""
    save = trainer.loop.trainer.save_checkpoint

    def save_and_stop(*args, info, **kwargs):
        save(*args, info=info, **kwargs)
        if info["state"]["step"] == step:
            raise KeyboardInterrupt

    monkeypatch.setattr(trainer.loop.trainer, "save_checkpoint", save_and_stop)


def test_run_killed_within_an_epoch_resumes_bit_for_bit(train, monkeypatch):
    settings = {"trainer__epochs": 2, "trainer__check_val_every_n_steps": 1, **DROPOUT}
    unbroken = train("a", **settings)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        kill_after_saving(patch, 5)
        train("b", **settings)
    broken = unbroken.parent / "b"
    assert states(broken)["step"] == 5
    train("b", pretrained_name="b", resume_pretrained_state=True, **settings)
    assert states(unbroken) == states(broken)
    assert equal(weights(unbroken), weights(broken))


def test_repeated_steps_are_in_tensorboard_once(train, monkeypatch):
    settings = {"trainer__epochs": 2, "trainer__log_every_n_steps": 1}
    write = Tracker.scalars

    def write_and_stop(tracker, values, step):
        write(tracker, values, step)
        if step == 5:  # two steps after the checkpoint
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Tracker, "scalars", write_and_stop)
        train(**settings)
    time.sleep(1.1)  # TensorBoard orders event files by the second in their names
    run = train(pretrained_name="run", resume_pretrained_state=True, **settings)
    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    assert [point.step for point in events.Scalars("train/loss")] == [1, 2, 3, 4, 5, 6]
    assert [point.step for point in events.Scalars("validation/loss")] == [3, 6]


class StopsAfterOne:
    """Batches, of which the first sets a stop request."""

    def __init__(self, stop, batches) -> None:
        self.stop, self.batches = stop, batches

    def __iter__(self):
        for batch in self.batches:
            yield batch
            self.stop.name = "SIGTERM"


def test_interrupted_validation_is_repeated_after_resuming(tmp_path):
    whole = make_trainer(tmp_path / "a", make_captioner(make_template(tmp_path / "t"), gates=0.7), batch_size=2)
    assert whole.fit()
    captioner = make_captioner(make_template(tmp_path / "t"), gates=0.7)
    stopped = make_trainer(tmp_path / "b", captioner, batch_size=2)
    stopped.validator.loader.batches = StopsAfterOne(stopped.stop, stopped.validator.loader.batches)
    assert not stopped.fit()
    run = tmp_path / "b" / "run"
    checkpoint = find_checkpoint(str(run), tmp_path, prefer="last")
    assert checkpoint.info["state"]["step"] == 2 and checkpoint.info["state"]["epoch"] == 1
    assert checkpoint.info["monitored"]["value"] is None and not (run / "metrics.jsonl").read_text()
    captioner = make_captioner(make_template(tmp_path / "t"), seed=3)
    load_weights(captioner, checkpoint.folder)
    again = make_trainer(tmp_path / "b", captioner, batch_size=2)
    again.resume(checkpoint)
    assert again.fit()
    assert states(run) == states(tmp_path / "a" / "run") and again.metrics == whole.metrics
    (first,), (second,) = lines(run), lines(tmp_path / "a" / "run")
    assert {**first, "time": 0} == {**second, "time": 0}


def test_every_random_generator_is_restored():
    def drawn() -> list[float]:
        return [random.gauss(0, 1), random.random(), np.random.randn(), np.random.rand(), float(torch.rand(()))]

    drawn()  # normal numbers are drawn in pairs
    kept = random_states()
    expected = drawn() + drawn()
    buffer = io.BytesIO()
    torch.save(kept, buffer)
    buffer.seek(0)
    restore_random_states(torch.load(buffer, weights_only=True))
    assert drawn() + drawn() == expected


def test_pretrained_weights_start_a_new_run(train, usual):
    second = train("b", pretrained_name=usual, model__optimizer__lr=1e-30)
    assert equal(weights(usual), weights(second))
    assert states(second)["step"] == 3


def test_resuming_a_finished_run_does_nothing(train, run):
    before = contents(run / "checkpoints")
    train(pretrained_name=run, resume_pretrained_state=True)
    assert contents(run / "checkpoints") == before


def test_resuming_with_another_optimizer_is_refused(train, run):
    with pytest.raises(UserError, match=r"training\.pt belongs to another optimizer"):
        train(pretrained_name=run, resume_pretrained_state=True, trainer__epochs=2, model__text__trainable=True)


# --- errors ----------------------------------------------------------------------------------------------------------


def test_nan_loss_stops_before_the_update(train, run, keys):
    bad = run.parent / "bad"
    shutil.copytree(find_checkpoint("run", run.parent).folder, bad)
    poisoned = load_file(bad / "model.safetensors")
    poisoned["mapper._mapper.0.weight"][0, 0] = math.nan
    save_file(poisoned, bad / "model.safetensors")
    (bad / SUMS).unlink()
    before = contents(run)
    with pytest.raises(UserError) as caught:
        train("next", pretrained_name=bad)
    text = str(caught.value)
    assert text.startswith("the loss is nan at step 1, in the batch of the images ") and "\n" not in text
    named = text.partition("of the images ")[2].partition(";")[0].split(", ")
    known = json.loads(Path(keys["dataset.train_ds.json_path"]).read_text())
    assert len(named) == 4 and set(named) <= set(known)
    assert not (run.parent / "next" / "checkpoints").exists()
    assert contents(run) == before


def test_diverging_run_keeps_its_earlier_checkpoints(train, run):
    before = contents(run / "checkpoints" / "step-00000003")
    with pytest.raises(UserError, match=r"^the validation loss is NaN or infinite after step 4; epoch 2"):
        train(
            pretrained_name=run,
            resume_pretrained_state=True,
            trainer__epochs=3,
            model__optimizer__lr=1e30,
            trainer__check_val_every_n_steps=1,
        )
    assert contents(run / "checkpoints" / "step-00000003") == before
    best = find_checkpoint("run", run.parent)
    assert best.info["state"]["step"] == 3
    train("next", pretrained_name=run)


def test_infinite_gradient_stops_before_the_update(tmp_path):
    captioner = make_captioner(make_template(tmp_path / "tokenizer"), gates=0.7)
    trainer = make_trainer(tmp_path, captioner, batch_size=2)
    captioner.mapper._mapper[0].bias.register_hook(lambda grad: grad * math.inf)
    before = {name: p.detach().clone() for name, p in captioner.named_parameters()}
    with pytest.raises(UserError, match=r"the gradient norm is \S+ at step 1, in the batch of the images id0, id1;"):
        trainer.fit()
    assert all(torch.equal(p, before[name]) for name, p in captioner.named_parameters())
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.parametrize("split", ["train", "validation"])
def test_split_without_readable_images_is_one_sentence(train, keys, tmp_path, split):
    images = tmp_path / "images"
    shutil.copytree(keys[f"dataset.{split}_ds.visual_dir"], images)
    for path in images.rglob("*.png"):
        path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(UserError) as caught:
        train(**{f"dataset__{split}_ds__visual_dir": images})
    assert str(keys[f"dataset.{split}_ds.json_path"]) in str(caught.value) or str(images) in str(caught.value)
    assert not (tmp_path / "run" / "checkpoints").exists(), "an untrained model"


# --- validation and checkpoints --------------------------------------------------------------------------------------


def test_validation_after_epochs_and_at_the_end(train):
    run = train(trainer__epochs=3, trainer__check_val_every_n_epoch=2)
    assert [line["step"] for line in validations(run)] == [6, 9]


def test_validation_after_steps_and_once_at_the_end_of_an_epoch(train):
    run = train(trainer__epochs=2, trainer__check_val_every_n_steps=1)
    assert [line["step"] for line in validations(run)] == [1, 2, 3, 4, 5, 6]
    only = {"trainer__check_val_every_n_epoch": None, "trainer__check_val_every_n_steps": 2}
    run = train("by-steps", trainer__epochs=2, **only)
    assert [line["step"] for line in validations(run)] == [2, 4, 6]


def test_limited_batches_make_a_shorter_epoch(train):
    run = train(trainer__epochs=2, trainer__limit_train_batches=1, trainer__limit_val_batches=1)
    assert {key: states(run)[key] for key in ("step", "images", "epoch")} == {"step": 2, "images": 8, "epoch": 2}
    assert lines(run)[-1]["epoch/lr"] < 1e-4, "the schedule ends here"


def test_schedule_ends_at_the_last_step(train):
    run = train(trainer__epochs=2, trainer__log_every_n_steps=1, model__optimizer__scheduler__warmup_steps=2)
    found = [line["train/lr"] for line in lines(run) if "train/lr" in line]
    assert found == pytest.approx([5e-5, 1e-4, 1e-4, 7.5e-5, 5e-5, 2.5e-5])


def test_early_stopping_uses_the_patience(train):
    settings = {
        "trainer__epochs": 9,
        "model__optimizer__lr": 1e-30,
        "trainer__early_stopping_patience": 2,
        "trainer__checkpoint_callback_params__monitor": "val_emotion_accuracy",
    }
    run = train(**settings)
    assert [line["step"] for line in validations(run)] == [3, 6, 9]
    assert states(run)["bad_validations"] == 2
    run = train("by-steps", **{**settings, "trainer__check_val_every_n_steps": 1})
    assert [line["step"] for line in validations(run)] == [1, 2, 3], "in the middle of an epoch too"


@pytest.mark.parametrize(
    ("monitor", "figure", "best"),
    [
        ("val_loss", "validation/loss", min),
        ("train_loss", "epoch/loss", min),
        ("val_emotion_accuracy", "validation/emotion_accuracy", max),
    ],
)
def test_monitored_metric_decides_the_best(train, monitor, figure, best):
    run = train(
        trainer__epochs=3,
        model__optimizer__lr=2e-3,
        trainer__checkpoint_callback_params__monitor=monitor,
        trainer__checkpoint_callback_params__save_top_k=2,
    )
    index = json.loads((run / "checkpoints" / "index.json").read_text())
    found = {f"step-{line['step']:08d}": line[figure] for line in validations(run)}
    assert index["last"] == "step-00000009" and len(index["best"]) == 2
    for entry in index["best"]:
        assert entry["value"] == found[entry["name"]]
    assert index["best"][0]["value"] == best(found.values()) == states(run)["best"]
    others = [value for name, value in found.items() if name not in [entry["name"] for entry in index["best"]]]
    assert best([index["best"][1]["value"], *others]) == index["best"][1]["value"]


def test_checkpoints_by_steps_minutes_and_validations(train):
    often = {"trainer__checkpoint_callback_params__keep_last": 9, "trainer__epochs": 2}
    run = train("steps", trainer__checkpoint_every_n_steps=2, **often)
    assert [entry.step for entry in entries(run / "checkpoints")] == [6, 4, 3, 2]
    run = train("minutes", trainer__checkpoint_every_n_minutes=1e-6, **often)
    assert [entry.step for entry in entries(run / "checkpoints")] == [6, 5, 4, 3, 2, 1]
    assert [entry.value is None for entry in entries(run / "checkpoints")] == [False, True, True, False, True, True]


# --- logs ------------------------------------------------------------------------------------------------------------


def test_tensorboard_and_jsonl_have_all_metrics(train):
    settings = {"trainer__log_every_n_steps": 1, "trainer__num_validation_images": 2, "model__vad__sentence": True}
    run = train(trainer__epochs=2, **settings)
    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    parts = ("loss", *(f"loss_{name}" for name in NAMES))
    wanted = {f"{group}/{part}" for group in ("train", "epoch", "validation") for part in parts}
    wanted |= {"validation/emotion_accuracy", "train/lr", "train/grad_norm", "gates/vad_fusion"}
    wanted |= {f"gates/{part}_{i:02d}" for part in ("attention", "feed_forward") for i in range(3)}
    wanted |= {"speed/images_per_second", "speed/texts_per_second", "memory/peak_gigabytes"}
    assert wanted <= set(events.Tags()["scalars"])
    for tag in events.Tags()["scalars"]:
        points = events.Scalars(tag)
        assert all(math.isfinite(point.value) for point in points), tag
        each_step = tag.startswith(("train/", "gates/", "speed/", "memory/", "bridge/"))
        assert [point.step for point in points] == ([1, 2, 3, 4, 5, 6] if each_step else [3, 6]), tag
    assert all(events.Scalars(tag)[-1].value > 0 for tag in wanted if tag.startswith(("speed/", "memory/")))
    assert events.Scalars("gates/attention_00")[-1].value != 0, "the gates open"
    pictures = events.Images("pictures/1")
    assert [picture.step for picture in pictures] == [3, 6] and pictures[0].width > 100
    assert any("configuration" in tag for tag in events.Tags()["tensors"])
    in_lines = {name for line in lines(run) for name in line}
    assert wanted | {"step", "time"} <= in_lines


def test_total_loss_is_the_weighted_sum(train):
    weights = {name: 0.5 + i for i, name in enumerate(NAMES)}
    settings = {f"model__loss_weights__{name}": weight for name, weight in weights.items()}
    run = train(**settings, model__vad__sentence=True)
    (line,) = validations(run)
    for group in ("epoch", "validation"):
        total = sum(weight * line[f"{group}/loss_{name}"] for name, weight in weights.items())
        assert line[f"{group}/loss"] == pytest.approx(total, rel=1e-5)


def test_checkpoint_has_the_metrics_of_its_validation(usual):
    metrics = find_checkpoint("usual", usual.parent).info["metrics"]
    assert metrics == {name: value for name, value in validations(usual)[0].items() if name.startswith("validation/")}


# --- learning --------------------------------------------------------------------------------------------------------


def test_learns_emotions_of_held_out_images(tmp_path):
    """Each of nine colors stands for an emotion; three annotators in four agree."""
    keys = write_splits(tmp_path, train=72, val=18)
    keys |= {"model.vision.trainable": True, "model.text.trainable": True, "model.contrastive.enabled": False}
    keys |= {"dataset.vad_lexicon": None, "dataset.texts_per_image": 1, "dataset.max_length": 20}
    keys |= {"dataset.train_ds.batch_size": 12, "model.optimizer.lr": 5e-3, "name": "run"}
    keys |= {"model.loss_weights.emotion": 4.0}
    run_mode("train", {**keys, "trainer.epochs": 24, "trainer.check_val_every_n_epoch": 12})
    rows = validations(tmp_path / "runs" / "run")
    assert rows[-1]["epoch/loss"] < 0.5 * rows[0]["epoch/loss"]
    assert rows[-1]["validation/loss"] < 0.7 * rows[0]["validation/loss"]
    assert rows[-1]["validation/emotion_accuracy"] >= 0.4, "chance is 0.11"
