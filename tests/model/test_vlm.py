"""VLMs of three families: scores, padding, labels, LoRA, and models that cannot be used."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from common.errors import UserError
from data.prepare.instructions.conversations import asking
from model.vlm.answers import Answerer
from model.vlm.chat import IGNORED, Chat
from model.vlm.loading import linear_layers, load_model, load_processor, trained_state, with_lora
from tests.helpers.vlm import FAMILIES, TEMPLATE, write_vlm
from trainer.prediction.vlm import untuned

LABELS = ("awe", "anger", "something else")
QUESTION = asking("Which one: awe, anger or something else?")
LORA = {"r": 4, "alpha": 8, "dropout": 0.0, "targets": ["q_proj", "v_proj"], "whole": None}
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("vlm")
    return {family: write_vlm(root / family, family) for family in FAMILIES}


@pytest.fixture(scope="module", params=[*FAMILIES])
def answerer(request, folders) -> Answerer:
    return load(folders[request.param])


def load(folder: Path) -> Answerer:
    chat = Chat(load_processor(str(folder)), str(folder))
    return Answerer(load_model(str(folder), quantized=False, device=CPU), chat)


@pytest.fixture(scope="module")
def pictures() -> list[Image.Image]:
    """Three sizes: two families read more tokens of a larger picture."""
    random = np.random.default_rng(0)
    sizes = ((50, 40), (30, 70), (64, 64))
    return [Image.fromarray(random.integers(0, 255, (h, w, 3), dtype=np.uint8)) for w, h in sizes]


def plain_log_prob(answerer: Answerer, picture: Image.Image, answer: str) -> float:
    """Sum the log-probabilities of the answer's tokens in one forward pass without a cache."""
    inputs, labels = answerer.chat.training_inputs([(QUESTION, answer)], [picture])
    with torch.no_grad():
        log_probs = answerer.network(**inputs).logits[0].log_softmax(dim=-1)
    return sum(float(log_probs[at - 1, token]) for at, token in enumerate(labels[0].tolist()) if token != IGNORED)


def test_scores_equal_a_plain_computation(answerer, pictures):
    for picture in pictures:
        scored = answerer.score(picture, QUESTION, LABELS).log_probs
        assert scored.tolist() == pytest.approx(
            [plain_log_prob(answerer, picture, label) for label in LABELS], abs=1e-3
        )


def test_the_picture_changes_the_scores(answerer, pictures):
    first, second = (answerer.score(picture, QUESTION, LABELS).log_probs for picture in pictures[:2])
    assert (first - second).abs().max() > 1e-3


def test_a_batch_is_generated_as_one_by_one(answerer, pictures):
    questions = [asking("Why?"), asking("Why is this picture so calm and so wide?"), QUESTION]
    options = {"max_new_tokens": 8, "do_sample": False}
    together = answerer.generate(pictures, questions, **options)
    pairs = zip(pictures, questions, strict=True)
    assert together == [answerer.generate([picture], [question], **options)[0] for picture, question in pairs]
    assert len({*together}) > 1


def test_only_answer_and_end_of_turn_have_labels(answerer, pictures):
    talks = [(QUESTION, "awe"), (asking("Why?"), "because it is dark and the sea is wild"), (QUESTION, "anger")]
    _, labels = answerer.chat.training_inputs(talks, pictures)
    end = answerer.chat.render(QUESTION)[1]
    for row, (_, answer) in zip(labels, talks, strict=True):
        text = answerer.chat.processor.tokenizer.decode(row[row != IGNORED])
        assert text.strip() == answer + end


def test_padding_changes_no_loss(answerer, pictures):
    """Neither on the right, as in training, nor on the left."""
    talks = [(QUESTION, "awe"), (asking("Why?"), "because the sea is wild"), (asking("And why that?"), "anger")]

    def loss(which: list[int], **options: str) -> Tensor:
        chosen = [talks[i] for i in which]
        inputs, labels = answerer.chat.training_inputs(chosen, [pictures[i] for i in which])
        if options:
            texts = [before + answer + after for m, answer in chosen for before, after in [answerer.chat.render(m)]]
            inputs = answerer.chat.inputs(texts, [pictures[i] for i in which], **options)
            shift = [int(row.argmax()) for row in inputs["attention_mask"]]
            labels = torch.stack([row.roll(by) for row, by in zip(labels, shift, strict=True)])
        with torch.no_grad():
            logits = answerer.network(**inputs).logits[:, :-1]
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), reduction="sum")

    alone = sum(float(loss([i])) for i in range(len(talks)))
    assert float(loss([0, 1, 2])) == pytest.approx(alone, rel=1e-4)
    assert float(loss([0, 1, 2], side="left")) == pytest.approx(alone, rel=1e-4)


def test_the_mean_token_is_that_of_the_visual_tower(folders, pictures):
    for family in ("llava", "idefics3"):
        answerer = load(folders[family])
        for picture in pictures:
            inputs = answerer.chat.inputs([answerer.chat.render(QUESTION)[0]], [picture], side="left")
            visual = {name: inputs[name] for name in ("pixel_values", "pixel_attention_mask") if name in inputs}
            tokens = answerer.network.get_image_features(**visual).pooler_output
            mean = torch.cat([some.flatten(0, -2) for some in tokens]).mean(dim=0)
            torch.testing.assert_close(answerer.picture_token(picture, QUESTION), mean, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(answerer.score(picture, QUESTION, LABELS).picture, mean, rtol=1e-4, atol=1e-5)


def test_lora_starts_as_the_model_and_can_be_switched_off(folders, pictures):
    for family in FAMILIES:
        plain = load(folders[family])
        expected = plain.score(pictures[0], QUESTION, LABELS).log_probs
        network = with_lora(load(folders[family]).network, LORA)
        tuned = Answerer(network, plain.chat)
        torch.testing.assert_close(tuned.score(pictures[0], QUESTION, LABELS).log_probs, expected)
        with torch.no_grad():
            for parameter in trained_state(network).values():
                parameter.add_(torch.randn_like(parameter))
        assert (tuned.score(pictures[0], QUESTION, LABELS).log_probs - expected).abs().max() > 0.1
        off = Answerer(untuned(network), plain.chat)
        torch.testing.assert_close(off.score(pictures[0], QUESTION, LABELS).log_probs, expected)


def test_lora_is_in_the_language_model_alone(folders):
    """The visual tower of LLaVA has layers of the same names."""
    network = with_lora(load(folders["llava"]).network, {**LORA, "whole": ["multi_modal_projector"]})
    names = [name for name in trained_state(network) if "lora" in name]
    assert len(names) == 2 * 2 * 2 and all("language_model" in name for name in names)
    assert any("multi_modal_projector" in name for name in trained_state(network))
    plain = load(folders["llava"]).network
    layers = linear_layers(plain)
    every = trained_state(with_lora(plain, {**LORA, "targets": None}))
    assert sum("lora_A" in name for name in every) == len(layers) == 2 * 7  # of two Llama blocks


# --- models that cannot be used --------------------------------------------------------------------------------------


def changed(source: Path, folder: Path, *, template: str | None = None, without: tuple[str, ...] = ()) -> Path:
    shutil.copytree(source, folder)
    if template is not None:
        (folder / "chat_template.jinja").write_text(template)
    for name in without:
        (folder / name).unlink()
    return folder


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{% for turn in messages %}{{ turn['content'][-1]['text'] }}{% endfor %}", "leaves out the picture"),
        ("<image>", "leaves out the answer"),
        ("{{ messages.missing.deep }}", "chat template fails"),
    ],
)
def test_a_template_that_loses_something(folders, tmp_path, template, words):
    folder = changed(folders["llava"], tmp_path / "vlm", template=template)
    with pytest.raises(UserError, match=words):
        Chat(load_processor(str(folder)), str(folder))


def test_a_template_without_a_system_role_gets_its_text_in_the_users_turn(folders, tmp_path):
    check = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    folder = changed(folders["llava"], tmp_path / "vlm", template=check + TEMPLATE.replace("IMAGE", "<image>"))
    before, after = load(folder).chat.render(QUESTION)
    assert before.startswith("user: You look at pictures") and before.count("<image>") == 1
    assert after == "<|im_end|>"


def test_models_that_are_no_vlm(folders, tmp_path):
    no_template = changed(folders["llava"], tmp_path / "a", without=("chat_template.jinja",))
    with pytest.raises(UserError, match=r"no chat template: put a chat_template.jinja"):
        load_processor(str(no_template))
    text_only = changed(folders["llava"], tmp_path / "b", without=("processor_config.json",))
    with pytest.raises(UserError, match=r"image processor|cannot be loaded"):
        load_processor(str(text_only))
    with pytest.raises(UserError, match="without a network, copy the folder"):
        load_processor("nobody/nothing")
    language = changed(folders["llava"], tmp_path / "c")
    (language / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    with pytest.raises(UserError, match="cannot be loaded"):
        load_model(str(language), quantized=False, device=CPU)
    with pytest.raises(UserError, match=r"bitsandbytes|NVIDIA"):
        load_model(str(folders["llava"]), quantized=True, device=CPU)


def test_unknown_layers(folders):
    with pytest.raises(UserError, match=r"vlm.lora.targets: the language model has no c_attn; it has .*q_proj"):
        with_lora(load(folders["llava"]).network, {**LORA, "targets": ["c_attn"]})
    with pytest.raises(UserError, match=r"vlm.lora.whole: the model has no module projector"):
        with_lora(load(folders["llava"]).network, {**LORA, "whole": ["projector"]})
