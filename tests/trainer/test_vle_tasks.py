"""VLE's tasks: sums and counts of the losses against plain computations, and hidden objects."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from data.pairs import IGNORED, PairBatch, PairDataset, collate_pairs
from data.readers.picture_rows import PictureRows
from data.readers.vcr import VcrRows
from model.vle.heads import VLEForEmotion, VLEForITM, VLEForPBC, VLEForPreTraining, VLEForVQA
from model.vle.processor import PictureView, VLEProcessor
from model.vle.vcr_heads import VLEForVCRQ2A
from tests.helpers.vle import WORDS, tiny_model, write_processor
from tests.helpers.vle_runs import COLORS, write_rows, write_vcr
from trainer.vle.pretraining import PretrainTask
from trainer.vle.tasks import EmotionTask, MatchTask, RegionTask, VcrTask, VqaTask
from trainer.vle.texts import Captions, Encoder, MatchTexts, PretrainTexts, RegionTexts, VcrTexts, VqaTexts

GRID, OBJECTS = 4, ("boat", "house", "sky", "tree")
ANSWERS = {"yes": 0, "no": 1, "blue": 2}


@pytest.fixture(scope="module")
def processor(tmp_path_factory) -> VLEProcessor:
    return VLEProcessor.from_pretrained(write_processor(tmp_path_factory.mktemp("p"), 32, [*WORDS, *COLORS]))


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> PictureRows:
    root = tmp_path_factory.mktemp("rows")
    return PictureRows(write_rows(root, "train", 6), root / "images")


@pytest.fixture(scope="module")
def make(processor, rows):
    """Return the batch of some pictures for a kind of texts."""

    def call(kind: str, *chosen: int, epoch: int = 0) -> PairBatch:
        encode = Encoder(processor.tokenizer, 20)
        match = MatchTexts(Captions(rows), encode, 0)
        objects = {name: label for label, name in enumerate(OBJECTS)}
        texts = {
            "vqa": VqaTexts(rows, encode, ANSWERS),
            "match": match,
            "regions": RegionTexts(rows, encode, GRID, 0),
            "pretrain": PretrainTexts(match, GRID, 0.15, objects, rows),
        }[kind]
        data = PairDataset(rows.samples, view=PictureView(processor), texts=texts, seed=0)
        return collate_pairs([data[epoch, index] for index in chosen or range(6)])

    return call


def alone(batch: PairBatch, text: int, **more: object) -> dict:
    """Return the encoder's arguments for one text and its own picture, without padding."""
    length = int(batch.attention_mask[text].sum())
    picture = int(batch.text_image[text])
    return {"input_ids": batch.input_ids[[text], :length], "pixel_values": batch.pixels[[picture]], **more}


def checked(task, batch: PairBatch) -> tuple[dict[str, float], dict[str, int]]:
    """Return sums and counts, after a check that the losses are finite and have gradients."""
    sums, counts = task.sums(task.network, batch), task.counts(batch)
    assert sums.keys() == counts.keys() == task.weights.keys()
    sum(sums.values()).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in task.network.parameters())
    task.network.zero_grad()
    return {name: value.item() for name, value in sums.items()}, {name: int(value) for name, value in counts.items()}


def test_answers_have_a_binary_loss_each(make, processor):
    network = tiny_model(VLEForVQA, id2label=[*ANSWERS], num_token_types=2)
    task, batch = VqaTask(network, processor), make("vqa")
    sums, counts = checked(task, batch)
    expected = 0.0
    for text in range(12):
        row = batch.texts[text].about["answers"]
        (logits,) = network(**alone(batch, text)).logits.tolist()
        for answer, logit in zip(ANSWERS, logits, strict=True):
            p, target = 1 / (1 + math.exp(-logit)), row.get(answer, 0.0)
            expected -= target * math.log(p) + (1 - target) * math.log(1 - p)
    assert counts == {"vqa": 12} and sums == pytest.approx({"vqa": expected}, rel=1e-4)
    results = task.results(task.outputs(network, batch), batch)
    assert [row["id"] for row in results] == [n for i in range(6) for n in (10 * i, 10 * i + 1)]
    reached = [row["answers"].get(row["answer"], 0.0) for row in results]
    assert task.headline(results) == {"accuracy": sum(reached) / 12}


def test_pairs_match_or_not(make, processor):
    network = tiny_model(VLEForITM, num_token_types=2)
    task, batch = MatchTask(network, processor), make("match")
    sums, counts = checked(task, batch)
    logits = torch.cat([network(**alone(batch, text)).logits for text in range(12)])
    assert batch.targets["match"].tolist() == [1, 0] * 6
    expected = -sum(logits[i].log_softmax(0)[(i + 1) % 2].item() for i in range(12))
    assert counts == {"match": 12} and sums == pytest.approx({"match": expected}, rel=1e-4)
    results = task.results({"match": logits}, batch)
    assert [row["score"] for row in results] == pytest.approx(logits.softmax(1)[:, 1].tolist(), abs=1e-5)
    right = sum((row["score"] > 0.5) == (i % 2 == 0) for i, row in enumerate(results))
    assert task.headline(results) == {"match_accuracy": right / 12}


def test_regions_are_means_over_the_patches(make, processor):
    network = tiny_model(VLEForPBC, num_token_types=2)
    task, batch = RegionTask(network, processor), make("regions")
    sums, counts = checked(task, batch)
    expected = 0.0
    for text in range(6):
        (logits,) = network(**alone(batch, text)).logits
        expected += F.cross_entropy(logits, batch.targets["patches"][text]).item()
    assert counts == {"patches": 6} and sums == pytest.approx({"patches": expected}, rel=1e-4)
    perfect = F.one_hot(batch.targets["patches"], 2).float() * 9
    results = task.results({"patches": perfect}, batch)
    assert task.headline(results) == {"average_precision": 1.0, "pointing": 1.0}
    assert task.headline(task.results({"patches": -perfect}, batch))["pointing"] == 0.0


def test_emotions_are_compared_with_the_shares(processor, make):
    network = tiny_model(VLEForEmotion, id2label=["awe", "fear", "joy"], num_token_types=2)
    task, batch = EmotionTask(network, processor), make("match", 0, 1)
    shares = torch.tensor([[0.5, 0.5, 0.0], [0.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.2, 0.2, 0.6]])
    batch.targets["shares"] = shares
    sums, counts = checked(task, batch)
    logits = torch.cat([network(**alone(batch, text)).logits for text in range(4)])
    expected = -(shares * logits.log_softmax(1)).sum().item()
    assert counts == {"emotion": 3} and sums == pytest.approx({"emotion": expected}, rel=1e-4)
    log_probs, histograms = task.table(task.results({"emotion": logits}, batch))
    torch.testing.assert_close(log_probs, logits.log_softmax(1), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(histograms, shares)


def test_vcr_chooses_one_of_four(tmp_path, processor):
    rows = VcrRows(write_vcr(tmp_path, "train", 3), tmp_path / "images")
    texts = VcrTexts(rows, Encoder(processor.tokenizer, 24), GRID, rationales=False)
    data = PairDataset(rows.samples, view=PictureView(processor), texts=texts, seed=0)
    batch = collate_pairs([data[0, index] for index in range(3)])
    network = tiny_model(VLEForVCRQ2A, num_token_types=5)
    task = VcrTask(network, processor)
    sums, counts = checked(task, batch)
    scores = []
    for text in range(12):
        own = batch.texts[text]
        boxes = {"patch_ids": [own.boxes], "extend_token_type_ids": ([own.box_types], [own.token_types])}
        scores.append(network.score(network.vle(**alone(batch, text, **boxes))).item())
    logits = torch.tensor(scores).view(3, 4)
    expected = -sum(logits[i].log_softmax(0)[i].item() for i in range(3))
    assert counts == {"vcr": 3} and sums == pytest.approx({"vcr": expected}, rel=1e-4)
    results = task.results({"vcr": torch.tensor([[0.0], [2.0], [1.0], [0.0]] * 3)}, batch)
    assert [(row["prediction"], row["label"]) for row in results] == [(1, 0), (1, 1), (1, 2)]
    assert results[0]["answer"] == "the dog is lost" and results[0]["answers"] == {"Casey is calm": 1.0}
    assert task.headline(results) == {"accuracy": pytest.approx(1 / 3)}
    batch.targets["choice"][:4] = IGNORED
    assert checked(task, batch)[1] == {"vcr": 2}
    assert task.results(task.outputs(network, batch), batch)[0]["label"] is None


# --- pre-training ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pretraining(processor) -> PretrainTask:
    text = {"vocab_size": len(processor.tokenizer)}
    return PretrainTask(
        tiny_model(VLEForPreTraining, object_names=OBJECTS, num_token_types=2, text_config=text), processor
    )


def hidden_picture(task: PretrainTask, batch: PairBatch, text: int) -> torch.Tensor:
    """Return the text's picture with the patches of its box black, computed pixel by pixel."""
    picture = batch.pixels[batch.text_image[text]].clone()
    settings = task.processor.image_processor
    for patch in batch.texts[text].boxes[0]:
        top, left = patch // GRID * 8, patch % GRID * 8
        for channel in range(3):
            black = -settings.image_mean[channel] / settings.image_std[channel]
            picture[channel, top : top + 8, left : left + 8] = black
    return picture


def test_only_the_objects_text_has_the_picture_with_hidden_patches(make, pretraining):
    batch, given = make("pretrain"), {}
    pixels = batch.pixels.clone()
    pretraining.outputs(lambda rows, **inputs: given.update(inputs) or {}, batch)
    assert torch.equal(batch.pixels, pixels), "the batch is not changed"
    boxed = [text for text in range(len(batch.texts)) if batch.texts[text].boxes]
    assert len(boxed) == 6 and len(given["pixel_values"]) == 12
    for text in range(len(batch.texts)):
        seen = given["pixel_values"][given["image_index"][text]]
        if text in boxed:
            torch.testing.assert_close(seen, hidden_picture(pretraining, batch, text))
            assert not torch.equal(seen, pixels[batch.text_image[text]])
        else:
            assert torch.equal(seen, pixels[batch.text_image[text]])


def test_pretraining_adds_four_means(make, pretraining):
    batch, network = make("pretrain", epoch=3), pretraining.network
    sums, counts = checked(pretraining, batch)
    expected, numbers = dict.fromkeys(pretraining.weights, 0.0), dict.fromkeys(pretraining.weights, 0)
    for text, own in enumerate(batch.texts):
        inputs = alone(batch, text)
        fused = network.vle(**inputs)
        match, patches = own.targets["match"], own.targets["patches"]
        if match != IGNORED:
            expected["match"] -= VLEForITM.score(network, fused)[0].log_softmax(0)[match].item()
            numbers["match"] += 1
        if (patches != IGNORED).any():
            fused.image_embeds = fused.image_embeds[:, :17]
            expected["patches"] += F.cross_entropy(VLEForPBC.score(network, fused)[0], patches).item()
            numbers["patches"] += 1
        for token, label in enumerate(own.words or ()):
            if label != IGNORED:
                words = network.mlm_score[0](fused.text_embeds[0, token])
                logits = network.mlm_score[1].predictions(words, network.get_input_embeddings().weight)
                expected["words"] -= logits.log_softmax(0)[label].item()
                numbers["words"] += 1
        if own.targets["object"] != IGNORED:
            inputs["pixel_values"] = hidden_picture(pretraining, batch, text)[None]
            logits = network.mpc_classifier(network.vle(**inputs, patch_ids=[own.boxes]).image_embeds[0, 17])
            expected["object"] -= logits.log_softmax(0)[own.targets["object"]].item()
            numbers["object"] += 1
    assert counts == numbers and all(numbers.values())
    assert sums == pytest.approx(expected, rel=1e-3)
    results = pretraining.results(pretraining.outputs(network, batch), batch)
    assert [row["match"] for row in results] == [1, 0] * 6
    assert sum("patches" in row for row in results) == counts["patches"]


@pytest.mark.parametrize("missing", [("match", "patches"), ("patches",), ("words",), ("object",), "all"])
def test_a_batch_without_any_target_of_a_loss(make, pretraining, missing):
    batch = make("pretrain", epoch=3)
    missing = [*pretraining.weights] if missing == "all" else missing
    for name in missing:
        batch.targets[name] = torch.full_like(batch.targets[name], IGNORED)
        for text in batch.texts if name == "object" else ():
            text.boxes = None
    sums, counts = checked(pretraining, batch)
    assert {name for name, count in counts.items() if count == 0} == {*missing}
    assert {name for name, value in sums.items() if value == 0} == {*missing}
    results = pretraining.results(pretraining.outputs(pretraining.network, batch), batch)
    assert len(results) == counts["match"]


def test_without_object_names_there_is_no_loss_of_objects(make, processor):
    network = tiny_model(VLEForPreTraining, num_token_types=2, text_config={"vocab_size": len(processor.tokenizer)})
    task = PretrainTask(network, processor)
    assert task.weights.keys() == {"match", "patches", "words"}
    checked(task, make("pretrain", 0))
