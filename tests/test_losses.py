"""Each loss against a plain computation, and sums and counts that add up over any split of a batch."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from data.collate import collate
from data.schema import Batch
from data.text import IGNORED
from model.captioner import CaptionerOutput
from model.losses import NAMES, loss_counts, loss_sums
from tests.tiny import make_batch, make_captioner, make_dataset

EXACT = {"rtol": 1e-5, "atol": 1e-5}


@pytest.fixture(scope="module")
def captioner(template):
    return make_captioner(template, gates=0.7)


@pytest.fixture
def batch(tmp_path, template, captioner):
    return make_batch(tmp_path, template, captioner, count=4)


def small_batch(rows: int = 2, **changes) -> Batch:
    """Images of one text each, four tokens long, of which the first is not supervised; changes: tensors."""
    tokens = torch.tensor([[1, 2, 3, 4], [1, 5, 6, 7], [1, 8, 2, 3]])[:rows]
    labels = tokens.clone()
    labels[:, 0] = IGNORED
    flags = torch.zeros(rows, 4, dtype=torch.bool)
    fields = {
        "frames": torch.zeros(rows, 1, 3, 4, 4), "frame_mask": torch.ones(rows, 1, dtype=torch.bool),
        "input_ids": tokens, "labels": labels, "attention_mask": ~flags, "segment": torch.zeros_like(tokens),
        "text_image": torch.arange(rows), "vad": torch.zeros(rows, 4, 3), "vad_known": flags, "vad_target": flags,
        "emotion": torch.arange(rows), "histogram": torch.zeros(rows, 9),
    }  # fmt: skip
    return Batch(ids=["a", "b", "c"][:rows], **(fields | changes))


def output_for(batch: Batch, **parts) -> CaptionerOutput:
    supervised = int((batch.labels[:, 1:] != IGNORED).sum())
    hidden = torch.zeros(*batch.input_ids.shape, 2)
    return CaptionerOutput(hidden=hidden, logits=torch.zeros(supervised, 9), **parts)


def mean(sums, counts, name):
    return sums[name] / counts[name]


def test_the_caption_loss_is_cross_entropy_of_all_logits(captioner, batch):
    output = captioner(batch)
    full = captioner.language.logits(output.hidden)[:, :-1]
    expected = F.cross_entropy(full.flatten(0, 1), batch.labels[:, 1:].flatten(), ignore_index=IGNORED)
    ours = mean(loss_sums(output, batch), loss_counts(batch), "caption")
    torch.testing.assert_close(ours, expected, **EXACT)
    assert loss_counts(batch)["caption"] == batch.supervised_tokens


def test_the_emotion_loss_is_that_of_the_taught_names(captioner, batch, template):
    output = captioner(batch)
    log_probs = captioner.language.logits(output.hidden).log_softmax(dim=-1)
    start, expected, taught = len(template.prompt), torch.tensor(0.0), 0
    for row, emotion in enumerate(batch.emotion.tolist()):
        name = template.label_ids[emotion]
        if batch.labels[row, start] != IGNORED:
            taught += 1
            expected -= sum(log_probs[row, start - 1 + k, token] for k, token in enumerate(name))
    assert taught == len(batch.ids) < len(batch.emotion), "one text of every image"
    torch.testing.assert_close(loss_sums(output, batch)["emotion"], expected, **EXACT)
    assert loss_counts(batch)["emotion"] == taught


def test_data_without_emotions_has_no_emotion_loss():
    batch = small_batch(emotion=torch.tensor([-1, -1]))
    assert loss_counts(batch)["emotion"] == 0 and loss_sums(output_for(batch), batch)["emotion"] == 0


def test_the_vad_loss_worked_by_hand():
    target = torch.tensor([[0, 0, 1, 1], [0, 0, 0, 1]]).bool()
    vad = torch.zeros(2, 4, 3)
    vad[0, 2], vad[0, 3] = torch.tensor([1.0, 0.0, 0.0]), torch.tensor([0.0, 0.5, 0.0])
    batch = small_batch(vad=vad, vad_known=target, vad_target=target)  # row 1 ends in a word known to be neutral
    predicted = torch.full((2, 4, 3), 9.0)  # what nothing is compared with must not count
    predicted[0, 1] = torch.tensor([0.0, 0.0, 0.0])  # 1² + 0 + 0
    predicted[0, 2] = torch.tensor([0.0, 0.0, 2.0])  # 0 + 0.5² + 2²
    predicted[1, 2] = torch.tensor([1.0, 1.0, 1.0])  # 1 + 1 + 1
    sums, counts = loss_sums(output_for(batch, vad=predicted), batch), loss_counts(batch)
    assert counts["vad"] == 3 * 3
    assert sums["vad"].item() == pytest.approx(1 + 4.25 + 3)


def test_the_vad_loss_stays_inside_the_supervised_part():
    every = torch.ones(2, 4, dtype=torch.bool)
    labels = torch.full((2, 4), IGNORED)
    labels[0, 3] = 4
    batch = small_batch(labels=labels, vad_known=every, vad_target=every)
    sums = loss_sums(output_for(batch, vad=torch.full((2, 4, 3), 2.0)), batch)
    assert loss_counts(batch)["vad"] == 3 and sums["vad"].item() == pytest.approx(3 * 4.0)


def test_without_a_known_word_the_vad_loss_is_nothing_and_so_is_its_gradient():
    batch = small_batch()
    predicted = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    sums = loss_sums(output_for(batch, vad=predicted), batch)
    sums["vad"].backward()
    assert loss_counts(batch)["vad"] == 0 and sums["vad"] == 0
    assert torch.equal(predicted.grad, torch.zeros_like(predicted))


def test_the_contrastive_loss_worked_by_hand():
    none = float("-inf")
    scores = torch.tensor([[2.0, 1.0, -1.0], [0.5, none, 1.5], [3.0, none, none]], requires_grad=True)
    rows = small_batch(3, text_image=torch.tensor([0, 0, 1]), emotion=torch.tensor([0, 1, 2]))
    sums = loss_sums(output_for(rows, contrastive=scores), rows)
    expected = [-torch.log_softmax(torch.tensor(kept), 0)[0] for kept in ([2.0, 1.0, -1.0], [0.5, 1.5], [3.0])]
    torch.testing.assert_close(sums["contrastive"], sum(expected), **EXACT)
    sums["contrastive"].backward()
    assert torch.isfinite(scores.grad).all()
    assert (scores.grad[2] == 0).all(), "a row without negatives teaches nothing"
    assert (scores.grad[:2, 0] < 0).all() and scores.grad[0, 1] > 0


@pytest.mark.parametrize(
    ("text_image", "emotion", "count"),
    [([0], [3], 0), ([0, 0], [3, 3], 0), ([0, 0], [3, 4], 2), ([0, 0, 0], [3, 3, 4], 3), ([0, 1], [3, 3], 2)],
)
def test_texts_with_a_negative_are_counted(text_image, emotion, count):
    images = max(text_image) + 1
    changes = {"text_image": torch.tensor(text_image), "emotion": torch.tensor(emotion)}
    batch = small_batch(len(emotion), frames=torch.zeros(images, 1, 3, 4, 4), **changes)
    assert loss_counts(batch)["contrastive"] == count


def test_one_image_with_one_text_trains_without_nan(tmp_path, template):
    captioner = make_captioner(template, gates=0.7).train()
    dataset = make_dataset(tmp_path, template, captioner, 1, texts_per_image=1)
    batch = collate([dataset[0, 0]])
    sums, counts = loss_sums(captioner(batch), batch), loss_counts(batch)
    assert counts["contrastive"] == 0 and sums["contrastive"] == 0
    total = sum(sums[name] / counts[name].clamp(min=1) for name in NAMES)
    total.backward()
    assert torch.isfinite(total)
    assert all(torch.isfinite(p.grad).all() for p in captioner.parameters() if p.grad is not None)


def test_two_half_batches_add_up_to_the_whole(tmp_path, template, captioner):
    dataset = make_dataset(tmp_path, template, captioner, 6)
    items = [dataset[0, i] for i in range(6)]
    whole, halves = collate(items), [collate(items[:2]), collate(items[2:])]
    assert halves[0].input_ids.shape[1] != halves[1].input_ids.shape[1], "padded differently, which must not matter"
    counts, parts = loss_counts(whole), [loss_counts(half) for half in halves]
    for name in NAMES:
        assert counts[name] == parts[0][name] + parts[1][name] > 0, name
    sums = loss_sums(captioner(whole), whole)
    parts = [loss_sums(captioner(half), half) for half in halves]
    for name in ("caption", "emotion", "vad"):  # a contrastive negative is another image of the same batch
        torch.testing.assert_close(sums[name], parts[0][name] + parts[1][name], **EXACT)


def test_contrastive_rows_add_up():
    scores = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    batch = small_batch()
    sums = [loss_sums(output_for(batch, contrastive=rows), batch)["contrastive"] for rows in (scores, *scores.split(2))]
    torch.testing.assert_close(sums[0], sum(sums[1:]), **EXACT)


def test_losses_are_float32_in_half_precision(captioner, batch):
    output = captioner(batch)
    halves = {f.name: getattr(output, f.name).bfloat16() for f in dataclasses.fields(output)}
    sums = loss_sums(CaptionerOutput(**halves), batch)
    assert all(value.dtype == torch.float32 for value in sums.values())


def test_parts_that_are_off_have_no_loss(captioner, batch):
    output = captioner(batch)
    assert set(loss_sums(output, batch)) == set(loss_counts(batch)) == set(NAMES)
    output.vad = output.contrastive = None
    assert set(loss_sums(output, batch)) == {"caption", "emotion"}
