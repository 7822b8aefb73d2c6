"""VLE with random weights in the published layout against the formulas in vle_reference.py."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from model.vle import (
    VLEForITM,
    VLEForMLM,
    VLEForPBC,
    VLEForVCRQ2A,
    VLEForVCRQA2R,
    VLEForVQA,
    VLEModel,
)
from tests.model.vle import vle_reference as reference
from tests.model.vle.vle_files import HEADS, TINY_TEXT, positions, random_state, tiny_config, write_folder

CONFIG = tiny_config(token_types=6)
STATE = random_state(CONFIG, HEADS)
CLASSES = {
    "vqa": VLEForVQA, "itm": VLEForITM, "pbc": VLEForPBC, "mlm": VLEForMLM, "q2a": VLEForVCRQ2A, "qa2r": VLEForVCRQA2R,
}  # fmt: skip
TEXTS, PATCHES, CHOICES = 3, positions(CONFIG) - 1, 4
BOXES = [[[0, 1, 4, 5], [15]], [], [[2, 3], [7], [8, 9, 10, 12]]]
BOX_TYPES = [[2, 3], [], [5, 2, 4]]
NO_DECAY = ("bias", "LayerNorm.weight", "norm.weight", "norm1.weight", "norm2.weight")

close = partial(torch.testing.assert_close, atol=1e-5, rtol=0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """All heads in one file: each class takes its own."""
    return write_folder(tmp_path_factory.mktemp("vle"), CONFIG, STATE)


def make_texts(length: int = 20, *, texts: int = TEXTS, seed: int = 1) -> dict[str, Tensor]:
    """Return texts padded to `length`, which the first one has."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(4, TINY_TEXT["vocab_size"], (texts, length), generator=generator)
    lengths = torch.randint(3, length, (texts,), generator=generator)
    lengths[0] = length
    mask = (torch.arange(length)[None] < lengths[:, None]).long()
    return {"input_ids": ids * mask, "attention_mask": mask}


def make_pixels(pictures: int = TEXTS) -> Tensor:
    size = CONFIG["vision_config"]["image_size"]
    return torch.randn(pictures, 3, size, size, generator=torch.Generator().manual_seed(2))


def make_inputs(length: int = 20) -> dict[str, Tensor]:
    return {**make_texts(length), "pixel_values": make_pixels()}


def text_types(mask: Tensor) -> list[list[int]]:
    """Return token types of the tokens that are no padding: a list for each text, each of another length."""
    return [[(row + place) % 6 for place in range(int(count))] for row, count in enumerate(mask.sum(dim=1))]


def expected(inputs: dict[str, Tensor], boxes=None, types=None, *, state=STATE) -> reference.Fused:
    ids, mask, pixels = inputs["input_ids"], inputs["attention_mask"], inputs["pixel_values"]
    return reference.encode(state, CONFIG, ids, mask, pixels, boxes, types)


def assert_same_outputs(found, wanted: reference.Fused, mask: Tensor, image_mask: Tensor | None = None) -> None:
    """Compare where tokens are: nothing reads the states of padding."""
    close(found.pooler_output, wanted.pooled)
    close(found.text_embeds[mask.bool()], wanted.text[mask.bool()])
    assert found.text_embeds.shape == wanted.text.shape and found.image_embeds.shape == wanted.image.shape
    there = torch.ones(wanted.image.shape[:2], dtype=torch.bool) if image_mask is None else image_mask
    close(found.image_embeds[there], wanted.image[there])


@pytest.mark.parametrize("length", [7, 20, 40], ids=["short", "log buckets", "beyond max_position_embeddings"])
@torch.no_grad()
def test_encoder(folder, length):
    inputs = make_inputs(length)
    assert_same_outputs(VLEModel.from_pretrained(folder)(**inputs), expected(inputs), inputs["attention_mask"])


@torch.no_grad()
def test_features_of_the_towers(folder):
    model, inputs = VLEModel.from_pretrained(folder), make_inputs()
    mask, pixels = inputs["attention_mask"], inputs.pop("pixel_values")
    wanted = reference.text_features(STATE, CONFIG, inputs["input_ids"], mask)
    close(model.get_text_features(**inputs)[mask.bool()], wanted[mask.bool()])
    close(model.get_image_features(pixels), reference.image_features(STATE, CONFIG, pixels))


@pytest.mark.parametrize("counts", [(2, 0, 3), (0, 0, 0)], ids=["boxes", "token types only"])
@torch.no_grad()
def test_boxes(folder, counts):
    inputs, boxes = make_inputs(), [some[:count] for some, count in zip(BOXES, counts, strict=True)]
    box_types = [some[:count] for some, count in zip(BOX_TYPES, counts, strict=True)]
    types = (box_types, text_types(inputs["attention_mask"]))
    model = VLEModel.from_pretrained(folder)
    found = model(**inputs, patch_ids=boxes, extend_token_type_ids=types)
    there = torch.arange(1 + PATCHES + max(counts))[None] < 1 + PATCHES + torch.tensor(counts)[:, None]
    assert_same_outputs(found, expected(inputs, boxes, types), inputs["attention_mask"], there)
    plain = model(**inputs).pooler_output
    assert (plain - found.pooler_output).abs().max() > 1e-3, "boxes and token types must have an effect"


LABELS = {
    "vqa": {"vqa_labels": [[0, 3], [], [6]], "vqa_scores": [[0.3, 1.0], [], [0.6]]},
    "itm": {"itm_labels": torch.tensor([1, 0, 1])},
    "pbc": {"pbc_labels": torch.arange(TEXTS * PATCHES).reshape(TEXTS, PATCHES) % 3 % 2},
}


def labels_of(head: str, inputs: dict[str, Tensor]) -> dict:
    if head != "mlm":
        return LABELS[head]
    chosen = torch.arange(inputs["input_ids"].shape[1])[None] % 4 == 1
    return {"mlm_labels": inputs["input_ids"].masked_fill(~(chosen & inputs["attention_mask"].bool()), -100)}


@pytest.mark.parametrize("head", ["vqa", "itm", "pbc", "mlm"])
@torch.no_grad()
def test_head(folder, head):
    model, inputs = CLASSES[head].from_pretrained(folder), make_inputs()
    labels = labels_of(head, inputs)
    output = model(**inputs, **labels, return_loss=True)
    wanted = reference.head_logits(STATE, CONFIG, head, expected(inputs))
    there = inputs["attention_mask"].bool() if head == "mlm" else slice(None)
    close(output.logits[there], wanted[there])
    close(model.score(model.vle(**inputs))[there], wanted[there])
    if head == "vqa":
        loss = reference.vqa_loss(wanted, *labels.values())
    else:
        loss = reference.cross_entropy(wanted, *labels.values())
    close(output.loss, loss, rtol=1e-6)
    assert model(**inputs).loss is None


def make_choices(samples: int) -> tuple[list[dict[str, Tensor]], list[reference.Boxes], list[reference.Types]]:
    """Return texts, boxes and token types of each of the four choices."""
    texts = [make_texts(12, texts=samples, seed=10 + choice) for choice in range(CHOICES)]
    counts = [[1 + (choice + sample) % 3 for sample in range(samples)] for choice in range(CHOICES)]
    boxes = [[BOXES[2][:count] for count in some] for some in counts]
    box_types = [[BOX_TYPES[2][:count] for count in some] for some in counts]
    types = [(some, text_types(text["attention_mask"])) for some, text in zip(box_types, texts, strict=True)]
    return texts, boxes, types


@pytest.mark.parametrize(("samples", "with_boxes"), [(1, True), (1, False), (2, True)])
@pytest.mark.parametrize("head", ["q2a", "qa2r"])
@torch.no_grad()
def test_four_choices(folder, head, samples, with_boxes):
    texts, boxes, types = make_choices(samples)
    pixels, labels = make_pixels(samples), torch.tensor([2, 0])[:samples]
    extra = {"patch_ids": boxes, "extend_token_type_ids": types} if with_boxes else {}
    output = CLASSES[head].from_pretrained(folder)(
        input_ids=[text["input_ids"] for text in texts],
        attention_mask=[text["attention_mask"] for text in texts],
        pixel_values=pixels,
        vcr_labels=labels,
        return_loss=True,
        **extra,
    )
    fused = [
        expected({**text, "pixel_values": pixels}, *((boxes[choice], types[choice]) if with_boxes else ()))
        for choice, text in enumerate(texts)
    ]
    wanted = torch.cat([reference.head_logits(STATE, CONFIG, head, one) for one in fused], dim=1)
    close(output.logits, wanted)
    close(output.loss, reference.cross_entropy(wanted, labels))


def six_groups(named: dict[str, Tensor], rate: float = 1e-3) -> list[dict]:
    """Return the published groups: three rates, each with and without weight decay, by parts of the names."""
    groups: dict[tuple[float, float], list[Tensor]] = {}
    for name, parameter in named.items():
        factor = 50 if "vqa_classifier" in name else 5 if "cross_modal" in name else 1
        decay = 0.0 if any(part in name for part in NO_DECAY) else 0.01
        groups.setdefault((factor * rate, decay), []).append(parameter)
    assert len(groups) == 6
    return [{"params": some, "lr": lr, "weight_decay": decay} for (lr, decay), some in groups.items()]


def five_steps(named: dict[str, Tensor], loss_of) -> list[float]:
    """Train with AdamW, the rate rising from 0 in one step and falling linearly; return the losses."""
    optimizer = torch.optim.AdamW(six_groups(named), betas=(0.9, 0.98), eps=1e-8)
    schedule, losses = LambdaLR(optimizer, lambda step: 0.0 if step == 0 else 1.25 - step / 4), []
    for _ in range(5):
        loss = loss_of()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    return losses


def test_five_steps_of_fine_tuning(folder):
    """In fp64: where a gradient should be zero, AdamW would enlarge its rounding error to a whole step."""
    model, inputs, labels = VLEForVQA.from_pretrained(folder).double().eval(), make_inputs(), LABELS["vqa"]
    inputs["pixel_values"] = inputs["pixel_values"].double()
    found = five_steps(dict(model.named_parameters()), lambda: model(**inputs, **labels, return_loss=True).loss)
    own = {name: value.double().requires_grad_() for name, value in random_state(CONFIG, ["vqa"]).items()}

    def loss() -> Tensor:
        logits = reference.head_logits(own, CONFIG, "vqa", expected(inputs, state=own))
        return reference.vqa_loss(logits, *labels.values())

    wanted = five_steps(own, loss)
    assert found == pytest.approx(wanted, abs=2e-6)
    assert wanted[0] == wanted[1] and wanted[4] < wanted[1] - 0.1, "the first step has a rate of zero, the others learn"
    trained = {name.removeprefix("vle."): value for name, value in model.state_dict().items()}
    for name, value in own.items():
        close(trained[name], value, atol=1e-4)


@torch.no_grad()
def test_a_picture_is_encoded_once_for_several_texts(folder):
    model, texts, pixels = VLEModel.from_pretrained(folder), make_texts(texts=4), make_pixels(2)
    index, encoded = torch.tensor([1, 0, 1, 1]), []
    model.vision_model.vision_model.register_forward_pre_hook(
        lambda _, positional, named: encoded.append(len(positional[0] if positional else named["pixel_values"])),
        with_kwargs=True,
    )
    shared = model(**texts, pixel_values=pixels, image_index=index)
    assert encoded == [2]
    wanted = expected({**texts, "pixel_values": pixels[index]})
    assert_same_outputs(shared, wanted, texts["attention_mask"])


@torch.no_grad()
def test_a_picture_shared_by_texts_with_boxes(folder):
    model, texts, pixels = VLEModel.from_pretrained(folder), make_texts(), make_pixels(2)
    index, types = torch.tensor([1, 1, 0]), (BOX_TYPES, text_types(texts["attention_mask"]))
    boxes = {"patch_ids": BOXES, "extend_token_type_ids": types}
    shared = model(**texts, pixel_values=pixels, image_index=index, **boxes)
    wanted = expected({**texts, "pixel_values": pixels[index]}, BOXES, types)
    close(shared.pooler_output, wanted.pooled)


@torch.no_grad()
def test_padding_changes_nothing(folder):
    model, texts, pixels = VLEModel.from_pretrained(folder).double(), make_texts(), make_pixels().double()
    longer = {name: F.pad(value, (0, 25), value=0 if name == "attention_mask" else 7) for name, value in texts.items()}
    plain, padded = model(**texts, pixel_values=pixels), model(**longer, pixel_values=pixels)
    mask = texts["attention_mask"].bool()
    close(padded.pooler_output, plain.pooler_output, atol=1e-9)
    close(padded.image_embeds, plain.image_embeds, atol=1e-9)
    close(padded.text_embeds[:, :20][mask], plain.text_embeds[mask], atol=1e-9)
