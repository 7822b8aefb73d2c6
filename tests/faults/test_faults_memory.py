"""Out of memory: the message names the keys to lower, and a checkpoint holds the last complete step."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
import torch

from common.errors import UserError
from common.faults import explain_error, out_of_memory
from tests.helpers.tiny import make_captioner, make_template
from tests.trainer.test_trainer import make_trainer
from trainer.prediction.writer import _rows
from trainer.runs.retention import entries

TOO_MUCH = 2**48  # bytes


def make(folder: Path, **sizes):
    return make_trainer(folder, make_captioner(make_template(folder / "tokenizer"), gates=0.7), **sizes)


def fail_to_look(trainer, when) -> None:
    """Run out of memory in the forward pass if `when` is true of the frames."""
    look = trainer.task.network.look
    trainer.task.network.look = lambda *args: torch.empty(TOO_MUCH) if when(args[0]) else look(*args)


def test_out_of_memory_in_training_names_the_keys_to_lower(tmp_path):
    trainer = make(tmp_path, batch_size=4)
    trainer.config.dataset.train_ds.batch_size, trainer.config.trainer.accumulation_steps = 5, 2
    fail_to_look(trainer, lambda frames: True)
    with pytest.raises(UserError) as caught:
        trainer.fit()
    said, command = str(caught.value).splitlines()
    assert said.startswith("memory ran out in training (DefaultCPUAllocator: can't allocate memory")
    keys = ("dataset.train_ds.batch_size (now 5)", "dataset.texts_per_image", "dataset.max_length")
    assert all(key in said for key in (*keys, "trainer.gradient_checkpointing=true"))
    assert said.endswith(". There is no checkpoint yet; to begin again:")
    assert {"dataset.train_ds.batch_size=2", "trainer.accumulation_steps=5"} <= {*shlex.split(command)}


def test_out_of_memory_at_batch_size_one_suggests_gradient_checkpointing(tmp_path):
    trainer = make(tmp_path, batch_size=4)
    trainer.config.dataset.train_ds.batch_size = 1
    fail_to_look(trainer, lambda frames: True)
    with pytest.raises(UserError, match=r"trainer\.gradient_checkpointing=true[^\n]*$"):
        trainer.fit()


def test_out_of_memory_leaves_a_checkpoint_of_the_last_step(tmp_path):
    trainer = make(tmp_path, batch_size=2, count=8)
    fail_to_look(trainer, lambda frames: trainer.state.step == 3)
    with pytest.raises(UserError) as caught:
        trainer.fit()
    (last,) = entries(tmp_path / "run" / "checkpoints")
    said = str(caught.value)
    assert last.step == 3 and f"{last.folder} holds the training; to resume:" in said
    assert "resume_pretrained_state=true" in said.splitlines()[-1] and "batch_size=" in said.splitlines()[-1]


def test_out_of_memory_in_validation_names_its_keys(tmp_path):
    trainer = make(tmp_path, batch_size=8, count=16)
    fail_to_look(trainer, lambda frames: not torch.is_grad_enabled())
    with pytest.raises(UserError) as caught:
        trainer.fit()
    said, command = str(caught.value).splitlines()
    assert said.startswith("memory ran out in validation (")
    keys = ("dataset.validation_ds.batch_size", "trainer.num_validation_captions", "trainer.num_validation_images")
    assert all(key in said for key in keys) and "dataset.validation_ds.batch_size=" in command
    assert entries(tmp_path / "run" / "checkpoints")[0].step == 2


def test_out_of_memory_in_prediction_names_its_keys(tmp_path):
    trainer = make(tmp_path, batch_size=4)
    predictor, (batch, *_) = trainer.validator.predictor, trainer.data.loader
    fail_to_look(trainer, lambda frames: True)
    with pytest.raises(UserError, match=r"^memory ran out \(.*dataset\.test_ds\.batch_size.*trainer\.test\.beam_wid"):
        list(_rows(batch, [], predictor, trainer.accelerator, None))


# --- recognizing the errors ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 9 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: y"),
        RuntimeError("MPS backend out of memory (MPS allocated: 5.00 GB)"),
        MemoryError(),
        OSError(12, "Cannot allocate memory"),
    ],
)
def test_out_of_memory_errors_are_recognized(error):
    assert out_of_memory(error)
    said = explain_error(error)
    assert said.startswith("memory ran out (") and "dataset.train_ds.batch_size" in said and "enforce fail" not in said


def test_other_errors_are_not_out_of_memory():
    assert not any(map(out_of_memory, [RuntimeError("shape"), ValueError("out of memory"), OSError(28, "No space")]))
