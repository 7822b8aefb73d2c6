"""Each loss against a plain computation; sums and counts add up over any split of a batch."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F

from data.collate import collate
from data.schema import Batch
from data.text import IGNORED, EncodedText, Template
from data.vad.lexicon import Lexicon
from data.vad.pieces import PieceAligner
from model.captioner import CaptionerOutput
from model.losses import NAMES, loss_counts, loss_sums
from model.next_word import NextWord
from tests.helpers.tiny import LEXICON, make_batch, make_captioner, make_dataset

EXACT = {"rtol": 1e-5, "atol": 1e-5}


@pytest.fixture(scope="module")
def captioner(template):
    return make_captioner(template, gates=0.7, vad__sentence=True)


@pytest.fixture
def batch(tmp_path, template, captioner):
    return make_batch(tmp_path, template, captioner, count=4)


def small_batch(rows: int = 2, **changes) -> Batch:
    """Return images with one text of four tokens each, the first unsupervised; changes: tensors."""
    tokens = torch.tensor([[1, 2, 3, 4], [1, 5, 6, 7], [1, 8, 2, 3]])[:rows]
    labels = tokens.clone()
    labels[:, 0] = IGNORED
    flags = torch.zeros(rows, 4, dtype=torch.bool)
    fields = {
        "frames": torch.zeros(rows, 1, 3, 4, 4), "frame_mask": torch.ones(rows, 1, dtype=torch.bool),
        "input_ids": tokens, "labels": labels, "attention_mask": ~flags, "segment": torch.zeros_like(tokens),
        "emotion_start": torch.ones(rows, dtype=torch.long), "explanation_start": torch.full((rows,), 2),
        "text_image": torch.arange(rows), "vad": torch.zeros(rows, 4, 3), "vad_known": flags, "vad_target": flags,
        "emotion": torch.arange(rows), "histogram": torch.zeros(rows, 9),
    }  # fmt: skip
    return Batch(ids=["a", "b", "c"][:rows], **(fields | changes))


def output_for(batch: Batch, **parts) -> CaptionerOutput:
    supervised = int((batch.labels[:, 1:] != IGNORED).sum())
    hidden = torch.zeros(*batch.input_ids.shape, 2)
    logits = parts.pop("logits", torch.zeros(supervised, 9))
    return CaptionerOutput(hidden=hidden, next_word=NextWord(logits, torch.eye(9)), **parts)


def mean(sums, counts, name):
    return sums[name] / counts[name]


def test_caption_loss_is_cross_entropy_of_all_logits(captioner, batch):
    output = captioner(batch)
    full = captioner.language.logits(output.hidden)[:, :-1]
    expected = F.cross_entropy(full.flatten(0, 1), batch.labels[:, 1:].flatten(), ignore_index=IGNORED)
    ours = mean(loss_sums(output, batch), loss_counts(batch), "caption")
    torch.testing.assert_close(ours, expected, **EXACT)
    assert loss_counts(batch)["caption"] == int((batch.labels[:, 1:] != -100).sum())


def test_emotion_loss_covers_the_supervised_names(captioner, batch, template):
    output = captioner(batch)
    log_probs = captioner.language.logits(output.hidden).log_softmax(dim=-1)
    start, expected, supervised = len(template.prompt), torch.tensor(0.0), 0
    for row, emotion in enumerate(batch.emotion.tolist()):
        name = template.label_ids[emotion]
        if batch.labels[row, start] != IGNORED:
            supervised += 1
            expected -= sum(log_probs[row, start - 1 + k, token] for k, token in enumerate(name))
    assert supervised == len(batch.ids) < len(batch.emotion), "one text per image is supervised"
    torch.testing.assert_close(loss_sums(output, batch)["emotion"], expected, **EXACT)
    assert loss_counts(batch)["emotion"] == supervised


def test_data_without_emotions_has_no_emotion_loss():
    batch = small_batch(emotion=torch.tensor([-1, -1]), emotion_start=torch.tensor([-1, -1]))
    assert loss_counts(batch)["emotion"] == 0 and loss_sums(output_for(batch), batch)["emotion"] == 0


def test_supervised_prompt_words_are_not_in_the_emotion_loss():
    """As in SEVLM's supervised prompt: in "x E F y" with the name E F, x is not part of the emotion loss."""
    tokens = torch.tensor([[1, 2, 3, 4, 5]])
    labels = torch.tensor([[IGNORED, 2, 3, 4, 5]])
    flags = torch.zeros(1, 5, dtype=torch.bool)
    changes = {"input_ids": tokens, "labels": labels, "attention_mask": ~flags, "vad": torch.zeros(1, 5, 3)}
    changes |= {"segment": torch.tensor([[0, 0, 0, 0, 1]]), "emotion_start": torch.tensor([2]), "vad_target": flags}
    batch = small_batch(1, **changes)
    logits = torch.randn(4, 9, generator=torch.Generator().manual_seed(0))
    expected = F.cross_entropy(logits[1:3], torch.tensor([3, 4]), reduction="sum")
    torch.testing.assert_close(loss_sums(output_for(batch, logits=logits), batch)["emotion"], expected, **EXACT)
    assert loss_counts(batch)["emotion"] == 1 and loss_counts(batch)["caption"] == 4


# --- the annotators' shares as the target ----------------------------------------------------------------------------


class AllSupervised(Template):
    """The emotion of every text is supervised."""

    def encode(self, text: str, emotion: int | None, **options: object) -> EncodedText:
        return super().encode(text, emotion)


def first_tokens(template: Template) -> torch.Tensor:
    return torch.tensor([label[0] for label in template.label_ids])


def by_brute_force(log_probs, batch, emotion_tokens) -> tuple[float, float, int]:
    """Return sums of caption and emotion loss, and the number of emotions trained on shares."""
    caption, emotion, soft = 0.0, 0.0, 0
    for row in range(len(batch.input_ids)):
        for t in range(1, batch.input_ids.shape[1]):
            target = int(batch.labels[row, t])
            if target == IGNORED:
                continue
            loss = -float(log_probs[row, t - 1, target])
            shares = batch.histogram[batch.text_image[row]].tolist()
            if t == int(batch.emotion_start[row]) and sum(shares) > 0:
                soft += 1
                loss = 0.0
                for token in {*emotion_tokens.tolist()}:  # labels may share a first token
                    share = sum(h for h, first in zip(shares, emotion_tokens.tolist(), strict=True) if first == token)
                    loss -= share * float(log_probs[row, t - 1, token])
            caption += loss
            emotion += loss if int(batch.emotion_start[row]) <= t and int(batch.segment[row, t]) == 0 else 0.0
    return caption, emotion, soft


@pytest.mark.parametrize("every", [False, True])
@pytest.mark.parametrize("shared", ["as the tokenizer has it", "none", "all"])
def test_loss_with_annotator_shares_equals_brute_force(tmp_path, template, captioner, every, shared):
    template = AllSupervised(template.tokenizer, max_length=40) if every else template
    batch = make_batch(tmp_path, template, captioner, count=4)
    batch.histogram[2] = 0  # without shares, the label is used
    tokens = {"none": torch.arange(40, 49), "all": torch.full((9,), 45)}.get(shared, first_tokens(template))
    assert shared == "none" or len({*tokens.tolist()}) < 9, "some labels must share their first token"
    output = captioner(batch)
    log_probs = captioner.language.logits(output.hidden).log_softmax(dim=-1).detach()
    caption, emotion, soft = by_brute_force(log_probs, batch, tokens)
    assert soft == (6 if every else 3), "all supervised texts of three images, or one text of each"
    sums = loss_sums(output, batch, emotion_tokens=tokens)
    assert sums["caption"].item() == pytest.approx(caption, rel=1e-5)
    assert sums["emotion"].item() == pytest.approx(emotion, rel=1e-5)
    assert sums["emotion"] != loss_sums(output, batch)["emotion"]


def test_unanimous_shares_equal_the_label(captioner, batch, template):
    for image in range(len(batch.ids)):
        label = int(batch.emotion[batch.text_image == image][0])
        batch.histogram[image] = F.one_hot(torch.tensor(label), 9)
    output = captioner(batch)
    sums, by_label = loss_sums(output, batch, emotion_tokens=first_tokens(template)), loss_sums(output, batch)
    for name, value in by_label.items():
        torch.testing.assert_close(sums[name], value, **EXACT)


def test_label_is_used_without_shares(captioner, batch, template):
    batch.histogram.zero_()
    output = captioner(batch)
    sums, by_label = loss_sums(output, batch, emotion_tokens=first_tokens(template)), loss_sums(output, batch)
    assert all(torch.equal(sums[name], value) for name, value in by_label.items())


def test_gradient_with_shares_is_probability_minus_share():
    batch = small_batch(histogram=torch.tensor([[0.5, 0.25, 0.25, *[0.0] * 6], [0.0] * 9]))
    tokens = torch.tensor([8, 8, 6, 0, 0, 0, 0, 0, 0])
    logits = torch.randn(6, 9, generator=torch.Generator().manual_seed(0)).requires_grad_()
    loss_sums(output_for(batch, logits=logits), batch, emotion_tokens=tokens)["caption"].backward()
    target = F.one_hot(batch.labels[:, 1:].flatten(), 9).float()
    target[0] = torch.tensor([0, 0, 0, 0, 0, 0, 0.25, 0, 0.75])
    torch.testing.assert_close(logits.grad, logits.detach().softmax(dim=-1) - target, **EXACT)


def test_shares_are_not_used_for_unsupervised_emotions(captioner, batch, template):
    """An image's second text is chosen to differ, so the annotators' shares must not be used twice."""
    supervised_rows = batch.labels[torch.arange(len(batch.labels)), batch.emotion_start] != IGNORED
    output = captioner(batch)
    output.next_word.hidden.retain_grad()
    loss_sums(output, batch, emotion_tokens=first_tokens(template))["emotion"].backward()
    rows = (batch.labels[:, 1:] != IGNORED).nonzero()[:, 0]
    assert {*rows[output.next_word.hidden.grad.abs().amax(dim=-1) > 0].tolist()} == {
        *supervised_rows.nonzero().flatten().tolist()
    }


# --- VAD -------------------------------------------------------------------------------------------------------------


def test_vad_loss_equals_a_computation_by_hand():
    target = torch.tensor([[0, 0, 1, 1], [0, 0, 0, 1]]).bool()
    vad = torch.zeros(2, 4, 3)
    vad[0, 2], vad[0, 3] = torch.tensor([1.0, 0.0, 0.0]), torch.tensor([0.0, 0.5, 0.0])
    batch = small_batch(vad=vad, vad_known=target, vad_target=target)  # row 1 ends in a neutral word of the lexicon
    predicted = torch.full((2, 4, 3), 9.0)  # predictions without a target must not count
    predicted[0, 1] = torch.tensor([0.0, 0.0, 0.0])  # 1² + 0 + 0
    predicted[0, 2] = torch.tensor([0.0, 0.0, 2.0])  # 0 + 0.5² + 2²
    predicted[1, 2] = torch.tensor([1.0, 1.0, 1.0])  # 1 + 1 + 1
    sums, counts = loss_sums(output_for(batch, vad=predicted), batch), loss_counts(batch)
    assert counts["vad"] == 3 * 3
    assert sums["vad"].item() == pytest.approx(1 + 4.25 + 3)


def test_vad_loss_covers_only_supervised_tokens():
    every = torch.ones(2, 4, dtype=torch.bool)
    labels = torch.full((2, 4), IGNORED)
    labels[0, 3] = 4
    batch = small_batch(labels=labels, vad_known=every, vad_target=every)
    sums = loss_sums(output_for(batch, vad=torch.full((2, 4, 3), 2.0)), batch)
    assert loss_counts(batch)["vad"] == 3 and sums["vad"].item() == pytest.approx(3 * 4.0)


def test_vad_loss_and_gradient_are_zero_without_known_words():
    batch = small_batch()
    predicted = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    sums = loss_sums(output_for(batch, vad=predicted), batch)
    sums["vad"].backward()
    assert loss_counts(batch)["vad"] == 0 and sums["vad"] == 0
    assert torch.equal(predicted.grad, torch.zeros_like(predicted))


@pytest.mark.parametrize("length", [8, 30])
def test_published_vad_targets_are_tokens_6_and_later(template, length):
    """For SEVLM's length of 30, states 5 to 28 predict tokens 6 to 29."""
    pieces = {template.tokenizer.decode([i]).strip() for i in range(len(template.tokenizer))}
    lexicon = Lexicon(dict.fromkeys((piece for piece in pieces if piece), (0.5, -0.5, 0.25)))
    aligner = PieceAligner(lexicon, template.tokenizer, first_target=6)
    piece = next(i for i in range(len(template.tokenizer)) if aligner.align([i])[1][0])
    vad, known, target = aligner.align([template.bos_id, *[piece] * (length - 1)])
    assert known.tolist() == [False, *[True] * (length - 1)]
    tokens = torch.full((1, length), piece)
    labels = tokens.index_fill(1, torch.tensor([0]), IGNORED)
    changes = {"input_ids": tokens, "labels": labels, "attention_mask": tokens > -1, "segment": tokens * 0}
    batch = small_batch(1, **changes, vad=vad[None], vad_known=known[None], vad_target=target[None])
    predicted = torch.zeros(1, length, 3, requires_grad=True)
    sums = loss_sums(output_for(batch, vad=predicted), batch)
    sums["vad"].backward()
    states = predicted.grad.abs().amax(dim=-1)[0].nonzero().flatten().tolist()
    assert states == list(range(5, length - 1))
    assert loss_counts(batch)["vad"] == 3 * len(states) == 3 * (length - 6)
    assert sums["vad"].item() == pytest.approx((0.25 + 0.25 + 0.0625) * len(states))


def test_sentence_vad_loss_equals_a_computation_by_hand():
    target = torch.tensor([[0, 1, 1, 1], [0, 1, 0, 0], [0, 0, 0, 1]]).bool()
    vad = torch.full((3, 4, 3), 5.0)  # values without a target must not count
    vad[0, 2], vad[0, 3] = torch.tensor([1.0, 0.0, 0.0]), torch.tensor([0.0, 0.5, 0.0])  # mean .5, .25, 0
    vad[2, 3] = torch.tensor([0.0, 0.0, 0.0])  # neutral, but a target
    predicted = torch.tensor([[0.0, 0.0, 1.0], [9.0, 9.0, 9.0], [0.0, 2.0, 0.0]], requires_grad=True)
    batch = small_batch(3, vad=vad, vad_known=target, vad_target=target)  # explanations begin at token 2
    sums = loss_sums(output_for(batch, vad_sentence=predicted), batch)
    assert loss_counts(batch)["vad_sentence"] == 2 * 3, "texts without a known word in the explanation do not count"
    assert sums["vad_sentence"].item() == pytest.approx((0.25 + 0.0625 + 1.0) + 4.0)
    sums["vad_sentence"].backward()
    assert (predicted.grad[1] == 0).all() and predicted.grad[[0, 2]].any(dim=1).all()


def test_sentence_vad_target_is_the_mean_of_the_explanation(captioner, batch, template):
    """On real texts, from the words' values; the emotion's name is excluded."""
    lookup, counted = Lexicon(dict(LEXICON)).lookup, 0
    output = captioner(batch)
    expected = 0.0
    for row, ids in enumerate(batch.input_ids):
        explanation = template.decode(ids[: int(batch.attention_mask[row].sum())].tolist()).split(" because ")[1]
        values = [torch.tensor(value) for word in explanation.split() if (value := lookup(word)) is not None]
        counted += bool(values)
        if values:
            expected += (output.vad_sentence[row] - torch.stack(values).mean(dim=0)).square().sum().item()
    assert loss_counts(batch)["vad_sentence"] == 3 * counted > 0
    assert loss_sums(output, batch)["vad_sentence"].item() == pytest.approx(expected, rel=1e-4)


def test_contrastive_loss_equals_a_computation_by_hand():
    none = float("-inf")
    scores = torch.tensor([[2.0, 1.0, -1.0], [0.5, none, 1.5], [3.0, none, none]], requires_grad=True)
    rows = small_batch(3, text_image=torch.tensor([0, 0, 1]), emotion=torch.tensor([0, 1, 2]))
    sums = loss_sums(output_for(rows, contrastive=scores), rows)
    expected = [-torch.log_softmax(torch.tensor(kept), 0)[0] for kept in ([2.0, 1.0, -1.0], [0.5, 1.5], [3.0])]
    torch.testing.assert_close(sums["contrastive"], sum(expected), **EXACT)
    sums["contrastive"].backward()
    assert torch.isfinite(scores.grad).all()
    assert (scores.grad[2] == 0).all(), "a row without negatives has no gradient"
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


def test_large_scores_do_not_overflow():
    scores = torch.tensor([[1e4, -1e4, 0.0], [-1e4, 1e4, 1e4], [1e4, 1e4, -1e4]], requires_grad=True)
    batch = small_batch(3)
    loss = loss_sums(output_for(batch, contrastive=scores), batch)["contrastive"]
    loss.backward()
    assert loss.item() == pytest.approx(0 + 2e4 + math.log(2), rel=1e-4)
    assert torch.isfinite(scores.grad).all() and scores.grad[1, 0] == -1


FAULTS = {
    "no known word": {},
    "one image": {"rows": 1},
    "no emotions": {"emotion": torch.tensor([-1, -1]), "emotion_start": torch.tensor([-1, -1])},
    "unsupervised emotions": {"labels": torch.tensor([[IGNORED, IGNORED, 3, 4], [IGNORED, IGNORED, 6, 7]])},
    "nothing supervised": {"labels": torch.full((2, 4), IGNORED)},
}


@pytest.mark.parametrize("shares", [False, True])
@pytest.mark.parametrize("fault", FAULTS)
def test_losses_without_terms_are_zero_with_finite_gradients(fault, shares):
    """If a count is 0, the sum and its gradient are exactly 0; all gradients are finite."""
    segment = torch.tensor([[0, 0, 1, 1], [0, 0, 1, 1]])
    changes = {"segment": segment, "histogram": torch.full((2, 9), 1 / 9 if shares else 0.0)} | FAULTS[fault]
    rows = changes.pop("rows", 2)
    batch = small_batch(rows, **{name: tensor[:rows] for name, tensor in changes.items()})
    counts = loss_counts(batch)
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(rows, 3, generator=generator)
    scores[:, 1] = float("-inf")
    scores[:, 2] = scores[:, 2] if rows > 1 else float("-inf")
    parts = {
        "logits": torch.randn(int(counts["caption"]), 9, generator=generator),
        "vad": torch.randn(rows, 4, 3, generator=generator),
        "vad_sentence": torch.randn(rows, 3, generator=generator),
        "contrastive": scores,
    }
    parts = {name: part.requires_grad_() for name, part in parts.items()}
    sums = loss_sums(output_for(batch, **parts), batch, emotion_tokens=torch.arange(9) if shares else None)
    empty = {name for name in NAMES if counts[name] == 0}
    absent = {"one image": {"contrastive"}, "no emotions": {"emotion"}, "unsupervised emotions": {"emotion"}}
    absent["nothing supervised"] = {"caption", "emotion"}
    assert empty == {"vad", "vad_sentence"} | absent.get(fault, set())
    for name in NAMES:
        assert torch.isfinite(sums[name]), name
        assert sums[name] == 0 if name in empty else sums[name] > 0, name
    sum(sums[name] / counts[name].clamp(min=1) for name in NAMES).backward()
    assert all(torch.isfinite(part.grad).all() for part in parts.values())
    assert all(not parts[name].grad.any() for name in empty & parts.keys())
    assert parts["logits"].grad.any() or "caption" in empty


def test_single_image_with_one_text_gives_no_nan(tmp_path, template):
    captioner = make_captioner(template, gates=0.7, vad__sentence=True).train()
    dataset = make_dataset(tmp_path, template, captioner, 1, texts_per_image=1)
    batch = collate([dataset[0, 0]])
    sums, counts = loss_sums(captioner(batch), batch), loss_counts(batch)
    assert counts["contrastive"] == 0 and sums["contrastive"] == 0
    total = sum(sums[name] / counts[name].clamp(min=1) for name in NAMES)
    total.backward()
    assert torch.isfinite(total)
    assert all(torch.isfinite(p.grad).all() for p in captioner.parameters() if p.grad is not None)


def test_sums_and_counts_of_partial_batches_add_up(tmp_path, template, captioner):
    dataset = make_dataset(tmp_path, template, captioner, 6)
    items = [dataset[0, i] for i in range(6)]
    whole, halves = collate(items), [collate(items[:2]), collate(items[2:])]
    assert halves[0].input_ids.shape[1] != halves[1].input_ids.shape[1], "the paddings must differ for this test"
    counts, parts = loss_counts(whole), [loss_counts(half) for half in halves]
    for name in NAMES:
        assert counts[name] == parts[0][name] + parts[1][name] > 0, name
    sums = loss_sums(captioner(whole), whole)
    parts = [loss_sums(captioner(half), half) for half in halves]
    for name in ("caption", "emotion", "vad", "vad_sentence"):  # contrastive negatives depend on the batch
        torch.testing.assert_close(sums[name], parts[0][name] + parts[1][name], **EXACT)


def test_contrastive_sums_of_rows_add_up():
    scores = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    batch = small_batch()
    sums = [loss_sums(output_for(batch, contrastive=rows), batch)["contrastive"] for rows in (scores, *scores.split(2))]
    torch.testing.assert_close(sums[0], sum(sums[1:]), **EXACT)


def test_losses_are_float32_in_half_precision(captioner, batch):
    output = captioner(batch)
    parts = {f.name: getattr(output, f.name) for f in dataclasses.fields(output)}
    words = NextWord(output.next_word.hidden.bfloat16(), output.next_word.words.bfloat16())
    kept = {"next_word": words, "bridge": {}}
    halves = {name: kept[name] if name in kept else value.bfloat16() for name, value in parts.items()}
    sums = loss_sums(CaptionerOutput(**halves), batch)
    assert all(value.dtype == torch.float32 for value in sums.values())


def test_disabled_parts_have_no_loss(captioner, batch):
    output = captioner(batch)
    assert set(loss_sums(output, batch)) == set(loss_counts(batch)) == set(NAMES)
    output.vad = output.vad_sentence = output.contrastive = None
    assert set(loss_sums(output, batch)) == {"caption", "emotion"}
