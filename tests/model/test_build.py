"""Construction from the configuration: trained parts, weight counts, and the contents of a checkpoint."""

from __future__ import annotations

import pytest
import torch

from model.build import count_parameters, own_state
from model.captioner import Captioner
from tests.helpers.tiny import RESNET, make_batch, make_captioner, model_config, write_gpt2, write_open_clip

ALWAYS = {"cross-attention", "fusion", "vad_head", "contrastive", "segments"}


@pytest.fixture(scope="module")
def weights(tmp_path_factory, template):
    """Keys of the configuration for folders of pretrained weights."""
    root = tmp_path_factory.mktemp("weights")
    return {
        "vision__pretrained_name": str(write_open_clip(root / "clip")),
        "vision__config": None,
        "text__pretrained_name": str(write_gpt2(root / "gpt2", vocab_size=len(template.tokenizer))),
        "text__config": None,
    }


@pytest.fixture(scope="module")
def resnet(tmp_path_factory):
    folder = write_open_clip(tmp_path_factory.mktemp("resnet"), vision=RESNET)
    return {"vision__pretrained_name": str(folder), "vision__config": None}


@pytest.fixture
def batch(tmp_path, template, weights):
    return make_batch(tmp_path, template, make_captioner(template, **weights))


def trained_parts(captioner: Captioner) -> set[str]:
    return {row.part for row in count_parameters(captioner) if row.trained}


def restored(captioner: Captioner, template, **changes) -> Captioner:
    """Build again with another seed and load the state of a checkpoint of `captioner`."""
    again = make_captioner(template, seed=99, gates=0.0, **changes)
    assert not again.load_state_dict(own_state(captioner), strict=False).unexpected_keys
    return again


def assert_equal_outputs(captioner, again, batch):
    with torch.no_grad():
        ours, theirs = captioner(batch), again(batch)
    for name in ("logits", "vad", "contrastive"):
        torch.testing.assert_close(getattr(ours, name), getattr(theirs, name), rtol=0, atol=0)


def test_every_weight_is_counted_once(template):
    captioner = make_captioner(template)
    rows = {row.part: row for row in count_parameters(captioner)}
    assert sum(row.trained + row.frozen for row in rows.values()) == sum(p.numel() for p in captioner.parameters())
    trained = sum(p.numel() for p in captioner.parameters() if p.requires_grad)
    assert sum(row.trained for row in rows.values()) == trained
    assert set(rows) == {"vision", "mapper", "resampler", "language", *ALWAYS}
    xattn = sum(p.numel() for gated in captioner.language.cross_attention for p in gated.parameters())
    assert (rows["cross-attention"].trained, rows["cross-attention"].frozen) == (xattn, 0)
    assert rows["language"].trained == 0 and rows["vision"].trained == 0


def test_backbones_are_frozen_by_default(template):
    assert trained_parts(make_captioner(template)) == {"mapper", "resampler", *ALWAYS}


@pytest.mark.parametrize("part", ["mapper", "resampler"])
def test_a_part_can_be_frozen(template, part):
    captioner = make_captioner(template, **{f"{part}__trainable": False})
    assert trained_parts(captioner) == {"mapper", "resampler", *ALWAYS} - {part}
    assert not getattr(captioner.train(), part).training


@pytest.mark.parametrize(("key", "part"), [("vision__trainable", "vision"), ("text__trainable", "language")])
def test_a_backbone_can_be_trained(template, key, part):
    captioner = make_captioner(template, **{key: True})
    assert trained_parts(captioner) == {"mapper", "resampler", part, *ALWAYS}
    frozen = [n for n, p in getattr(captioner, part).named_parameters() if not p.requires_grad]
    assert frozen == (["visual.ln_post.weight", "visual.ln_post.bias"] if part == "vision" else [])


def test_only_the_output_layer_can_be_trained(template, weights):
    captioner = make_captioner(template, text__trainable_lm_head=True, **weights)
    opened = [n for n, p in captioner.language.named_parameters() if p.requires_grad and ".xattn_block." not in n]
    assert opened == ["lm.transformer.wte.weight"], "GPT-2's output layer is its word embedding"
    assert captioner.language.lm.lm_head.weight.requires_grad
    assert "language.lm.transformer.wte.weight" in own_state(captioner)
    assert not captioner.train().language.blocks[0].lm_block.training


@pytest.mark.parametrize("tower", [None, RESNET], ids=["vit", "resnet"])
def test_every_trained_weight_gets_a_gradient(tmp_path, template, tower):
    """An unused trained weight would be miscounted and would stall training on several devices."""
    keys = {"vision__trainable": True, "text__trainable": True} | ({"vision__config": tower} if tower else {})
    captioner = make_captioner(template, gates=0.5, **keys)
    batch = make_batch(tmp_path, template, captioner)
    output = captioner(batch)
    (output.logits.sum() + output.vad.sum() + output.contrastive[output.contrastive.isfinite()].sum()).backward()
    unused = [n for n, p in captioner.named_parameters() if p.requires_grad and p.grad is None]
    assert unused == []


def test_checkpoint_omits_frozen_pretrained_weights(template, weights):
    captioner = make_captioner(template, **weights)
    state = own_state(captioner)
    assert set(state) == {n for n, p in captioner.named_parameters() if p.requires_grad}
    assert not any(name.startswith("vision.") for name in state)
    assert all(".xattn_block." in name for name in state if name.startswith("language."))


@pytest.mark.parametrize("switches", [{}, {"text__trainable": True}, {"vision__trainable": True}], ids=str)
def test_checkpoint_with_pretrained_backbones_restores_outputs(template, weights, batch, switches):
    captioner = make_captioner(template, gates=0.6, **weights, **switches)
    with torch.no_grad():
        for parameter in captioner.parameters():
            if parameter.requires_grad:
                parameter.add_(0.01)
    assert_equal_outputs(captioner, restored(captioner, template, **weights, **switches), batch)


def test_checkpoint_with_random_backbones_restores_outputs(template, batch):
    captioner = make_captioner(template, gates=0.6)
    assert_equal_outputs(captioner, restored(captioner, template), batch)


def test_checkpoint_holds_embeddings_of_added_tokens(tmp_path, template, weights, batch):
    """Embeddings of added tokens are random, so they cannot be downloaded again."""
    folder = write_gpt2(tmp_path / "gpt2", vocab_size=len(template.tokenizer) - 40)
    keys = {**weights, "text__pretrained_name": str(folder)}
    captioner = make_captioner(template, gates=0.6, **keys)
    assert_equal_outputs(captioner, restored(captioner, template, **keys), batch)


def test_checkpoint_holds_running_statistics_of_a_trained_resnet(template, resnet):
    captioner = make_captioner(template, gates=0.6, vision__trainable=True, **resnet).train()
    with torch.no_grad():
        captioner.vision(torch.randn(4, 1, 3, 64, 64))
    again, images = restored(captioner, template, vision__trainable=True, **resnet), torch.randn(2, 1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(again.eval().vision(images), captioner.eval().vision(images), rtol=0, atol=0)


def test_building_does_not_change_the_configuration(template):
    config = model_config()
    before = repr(config)
    make_captioner(template)
    from model.build import build_captioner

    build_captioner(config, vocab_size=len(template.tokenizer), eos_id=template.eos_id)
    assert repr(config) == before
