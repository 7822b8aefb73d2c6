"""Memory that runs out, really: what is said of it, and that what is proposed fits."""

from __future__ import annotations

import multiprocessing
import re
import resource
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import psutil
import pytest
import torch
from tqdm import tqdm

from data.schema import Batch
from errors import UserError
from faults import explained, out_of_memory
from model.generation import Decoding
from tests.launch import server
from tests.test_trainer import make_trainer
from tests.tiny import GPT2, make_captioner, make_template
from trainer.memory import MARGIN, Need, Peak, advice, free_memory, select, within_memory
from trainer.predictions import _rows
from trainer.rescue import need_of_step
from trainer.shelf import entries
from trainer.steps import windows

WIDE = {"text__config": {**GPT2, "n_embd": 128, "n_layer": 4}}  # a megabyte a picture
BATCH = 32


def make(folder: Path, *, batch_size: int = BATCH, count: int = BATCH, **network):
    captioner = make_captioner(make_template(folder / "tokenizer"), gates=0.7, **(network or WIDE))
    trainer = make_trainer(folder, captioner, batch_size=batch_size, count=count)
    trainer.validator.predictor.decoding = Decoding(strategy="beam", max_length=10, beam_width=5)
    return trainer


def first_batch(trainer):
    return next(windows(trainer.data.loader, 1))[0]


def with_memory(more: float, work: Callable[[Path, int], Callable[[], object]], folder: Path, batch_size: int) -> str:
    """What a new process says that may have so many bytes more, once `work` has prepared it: "", or its UserError."""
    received, sent = multiprocessing.Pipe(duplex=False)
    process = server.Process(target=_live, args=(more, work, folder, batch_size, sent))
    process.start()
    sent.close()
    try:
        return received.recv()
    finally:
        process.join(60)


def _live(more: float, work: Callable, folder: Path, batch_size: int, sent: Connection) -> None:
    torch.set_num_threads(1)
    tqdm.monitor_interval = 0  # its thread alone would reserve more address space than these networks take
    prepared = work(folder, batch_size)
    space = psutil.Process().memory_info().vms + int(more)
    resource.setrlimit(resource.RLIMIT_AS, (space, space))
    try:
        prepared()
        sent.send("")
    except UserError as error:
        sent.send(str(error))


def training(folder: Path, batch_size: int) -> Callable[[], object]:
    trainer = make(folder, batch_size=batch_size)
    trainer.stepper.backward(select(first_batch(trainer), [0]))  # what a process needs once, whatever the batch
    trainer.settings.check_val_every_n_epoch = None
    trainer.validator.loader.batches = [first_batch(make(folder / "validation", batch_size=1))]
    return trainer.fit


def allocating(folder: Path, batch_size: int) -> Callable[[], object]:
    trainer = make(folder, batch_size=batch_size, text__config=GPT2)
    key = {"key": "dataset.test_ds.batch_size", "others": "trainer.test.beam_width too"}
    return lambda: within_memory(allocate, first_batch(trainer), trainer.task.network, **key)


def allocate(batch: Batch) -> torch.Tensor:
    return torch.empty(len(batch.ids), 40_000_000, dtype=torch.uint8)


def follow(more: float, work: Callable, folder: Path) -> tuple[str, int]:
    """What is said first, and the number of images at which the advice, followed, is no longer needed."""
    first, size = "", BATCH
    for number in range(6):  # near the limit a word that is one token longer decides
        said = with_memory(more, work, folder / str(number), size)
        first = first or said
        if not said:
            break
        found = re.search(r"so about (\d+) would fit: set dataset\.(?:train|test)_ds\.batch_size=\1\b", said)
        assert found, said
        assert int(found[1]) < size
        size = int(found[1])
    else:
        pytest.fail(f"advice that does not help: {said}")
    return first, size


# --- the estimate ----------------------------------------------------------------------------------------------------


def test_the_peak_is_that_of_tensors_alive_at_once():
    known = torch.zeros(100)
    with Peak([known]) as peak:
        a = known.view(10, 10) + 1  # 400 bytes
        b = a * 2
        assert peak.now == peak.most == 800
        del a
        assert (peak.now, peak.most) == (400, 800)
        b.add_(1).view(-1)[3:]
        c = b.double()
    assert peak.most == 1200 and c is not None


def test_what_two_images_take_foretells_what_many_take(tmp_path):
    trainer = make(tmp_path)
    batch = first_batch(trainer)
    need = need_of_step(trainer.stepper, batch)
    with Peak([*trainer.task.network.parameters(), *trainer.task.network.buffers()]) as peak:
        trainer.stepper.backward(batch)
    trained = sum(p.nbytes for p in trainer.task.network.parameters() if p.requires_grad)
    assert need.of(BATCH) - 2 * trained == pytest.approx(peak.most, rel=0.25), "two usual ones"
    assert need.per_image > 500_000


def test_a_part_of_a_batch_is_what_the_loader_would_have_made_of_it(tmp_path):
    trainer = make(tmp_path, batch_size=4)
    batch = first_batch(trainer)
    part = select(batch, [1, 3])
    assert part.ids == [batch.ids[1], batch.ids[3]] and torch.equal(part.frames, batch.frames[[1, 3]])
    assert part.text_image.tolist() == [0, 0, 1, 1] and len(part.histogram) == 2
    assert torch.equal(part.input_ids[2:], batch.input_ids[batch.text_image == 3])


def test_what_fits_is_told_with_a_margin():
    need = Need(fixed=100, per_image=10)
    assert need.of(5) == 150 and need.fitting(1000) == int((MARGIN * 1000 - 100) / 10) and need.fitting(10) == 0
    text, fits = advice(need, images=200, free=1000, key="dataset.train_ds.batch_size", value=200)
    assert fits == 75 and "about 75 would fit: set dataset.train_ds.batch_size=75" in text
    assert advice(need, images=10, free=10**6, key="a", value=10)[1] == 8, "ten did not fit, whatever the estimate says"
    text, fits = advice(need, images=200, free=50, key="a", value=200)
    assert fits is None and "too little for one" in text
    assert advice(None, images=8, free=10, key="a", value=8) == ("lower a (now 8)", None)


def test_free_memory_is_bounded_by_the_machine_and_by_a_limit_of_the_process():
    free = free_memory(torch.device("cpu"))
    assert 0 < free <= psutil.virtual_memory().total
    usual = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (psutil.Process().memory_info().vms + 2**28, usual[1]))
    try:
        less = free_memory(torch.device("cpu"))
        resource.setrlimit(resource.RLIMIT_AS, (psutil.Process().memory_info().vms + 2**29, usual[1]))
        assert free_memory(torch.device("cpu")) - less == pytest.approx(2**28, rel=0.1)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, usual)


# --- it runs out -----------------------------------------------------------------------------------------------------


def test_a_training_says_how_many_images_fit_and_they_do(tmp_path):
    trainer = make(tmp_path)
    more = 0.5 * need_of_step(trainer.stepper, first_batch(trainer)).of(BATCH)
    said, fits = follow(more, training, tmp_path)
    assert said.startswith("memory ran out in training (DefaultCPUAllocator: can't allocate memory")
    assert re.search(r"32 images take about \S+ .B beside the network, \S+ .B are free, ", said)
    assert re.search(r" and trainer\.accumulation_steps=\d+ for steps of the same size; dataset\.texts_per", said)
    assert "There is no checkpoint yet; to begin again:\n" in said and "batch_size=" in said.splitlines()[-1]
    assert 6 <= fits <= MARGIN * BATCH


def test_what_was_trained_by_then_is_in_a_checkpoint(tmp_path):
    trainer = make(tmp_path, batch_size=2, count=8, text__config=GPT2)
    step = trainer.stepper.__class__.__call__

    class Greedy(trainer.stepper.__class__):
        def __call__(self, window, number):
            if number == 3:
                torch.empty(2**48)
            return step(self, window, number)

    trainer.stepper.__class__ = Greedy
    with pytest.raises(UserError) as caught:
        trainer.fit()
    (last,) = entries(tmp_path / "run" / "checkpoints")
    said = str(caught.value)
    assert last.step == 3 and f"{last.folder} holds the training; to go on:" in said
    assert "resume_pretrained_state=true" in said.splitlines()[-1] and "batch_size=" in said.splitlines()[-1]


def test_a_validation_names_its_own_setting(tmp_path):
    trainer = make(tmp_path, batch_size=8, count=16, text__config=GPT2)
    trainer.config.model.optimizer.lr = 1e-4
    look = trainer.task.network.look

    def greedy(*args):
        return look(*args) if len(args[0]) < 8 or torch.is_grad_enabled() else torch.empty(2**48)

    trainer.task.network.look = greedy
    with pytest.raises(UserError, match=r"memory ran out in validation .*set dataset\.validation_ds\.batch_size=6"):
        trainer.fit()
    assert entries(tmp_path / "run" / "checkpoints")[0].step == 2


def test_work_on_a_batch_says_how_many_images_fit(tmp_path):
    said, fits = follow(20 * 40e6, allocating, tmp_path)
    assert said.startswith("memory ran out (DefaultCPUAllocator: ") and said.endswith("; trainer.test.beam_width too")
    assert 12 <= fits <= 20 and "32 images take about 1.3 GB beside the network" in said


def test_predicting_names_its_own_setting(tmp_path):
    trainer = make(tmp_path, batch_size=4, count=4, text__config=GPT2)
    predictor, (batch, *_) = trainer.validator.predictor, trainer.data.loader
    look = trainer.task.network.look
    trainer.task.network.look = lambda *args: look(*args) if len(args[0]) < 4 else torch.empty(2**48)
    with pytest.raises(UserError, match=r"^memory ran out \(.*dataset\.test_ds\.batch_size=3; trainer\.test\.beam_wid"):
        list(_rows(batch, [], predictor, trainer.accelerator, None))


# --- which errors these are ------------------------------------------------------------------------------------------


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
def test_every_way_to_say_it(error):
    assert out_of_memory(error)
    said = explained(error)
    assert said.startswith("memory ran out (") and "dataset.train_ds.batch_size" in said and "enforce fail" not in said


def test_what_is_something_else():
    assert not any(map(out_of_memory, [RuntimeError("shape"), ValueError("out of memory"), OSError(28, "No space")]))
