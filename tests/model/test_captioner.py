"""The whole network: weight counts, freezing, causality, padding, and plain GPT-2 with gates at zero."""

from __future__ import annotations

import copy
import functools

import pytest
import torch
from omegaconf import OmegaConf
from transformers import GPT2LMHeadModel

from common.errors import UserError
from model.build import build_captioner, count_parameters, own_state
from model.captioner import Text
from model.losses import loss_sums
from tests.helpers.tiny import (
    RESNET,
    ROOT,
    VISION,
    make_batch,
    make_captioner,
    model_config,
    video_batch,
)


@pytest.fixture(scope="module")
def opened(template):
    """All gates are open, so that every part affects the output."""
    return make_captioner(template, gates=0.7)


@pytest.fixture
def batch(tmp_path, template, opened):
    return make_batch(tmp_path, template, opened)


def test_default_model_has_the_published_number_of_trained_weights():
    config = model_config(text__segments=False, vad__enabled=False, contrastive__enabled=False)
    defaults = OmegaConf.load(ROOT / "config.yaml").model
    for part in ("mapper", "resampler"):
        config[part] = dict(defaults[part])
    config["text"] |= {"xattn": dict(defaults.text.xattn), "config": {}}
    config["vision"]["config"] = {"image_size": 224, "patch_size": 32, "width": 768, "layers": 12}  # ViT-B-32
    with torch.device("meta"):
        captioner = build_captioner(config, vocab_size=50257, eos_id=50256)
    assert sum(row.trained for row in count_parameters(captioner)) == 39_026_456
    assert sum(row.trained + row.frozen for row in count_parameters(captioner)) == 250_922_264


def test_gates_at_zero_give_plain_gpt2(template):
    captioner = make_captioner(template)
    plain = GPT2LMHeadModel(captioner.language.lm.config).eval()
    weights = captioner.language.lm.state_dict()
    plain.load_state_dict({k.replace(".lm_block.", "."): v for k, v in weights.items() if ".xattn_block." not in k})
    ids = torch.randint(0, len(template.tokenizer), (2, 11), generator=torch.Generator().manual_seed(1))
    visual = captioner.look(torch.randn(2, 1, 3, 32, 32), torch.ones(2, 1, dtype=torch.bool))
    text = Text(ids, torch.ones_like(ids), torch.ones(2, 11, 3), torch.ones(2, 11, dtype=torch.bool), None)
    entry = functools.partial(captioner.fuse, text=text)
    hidden = captioner.language(captioner.embed(text), visual=visual.keys_values, entry=entry)
    torch.testing.assert_close(captioner.language.logits(hidden), plain(input_ids=ids).logits)


def test_outputs_depend_on_the_picture_with_open_gates(opened, batch):
    shown, other = opened(batch).logits, copy.deepcopy(batch)
    other.frames = batch.frames.flip(0)
    assert not torch.allclose(shown, opened(other).logits, atol=1e-4)


def test_outputs_do_not_depend_on_later_tokens(opened, batch, template):
    cut = 7
    changed = copy.deepcopy(batch)
    changed.input_ids[:, cut:] = (changed.input_ids[:, cut:] + 5) % len(template.tokenizer)
    changed.vad[:, cut:] = -changed.vad[:, cut:]
    changed.vad_known[:, cut:] = ~changed.vad_known[:, cut:]
    before, after = opened(batch), opened(changed)
    torch.testing.assert_close(before.hidden[:, :cut], after.hidden[:, :cut])
    torch.testing.assert_close(before.vad[:, :cut], after.vad[:, :cut])
    assert not torch.allclose(before.hidden[:, cut:], after.hidden[:, cut:], atol=1e-4)


def test_padding_on_the_right_does_not_change_outputs(opened, batch):
    wider = copy.deepcopy(batch)
    for name, value in (("input_ids", 3), ("labels", -100), ("attention_mask", False), ("segment", 0)):
        tensor = getattr(batch, name)
        setattr(wider, name, torch.cat([tensor, torch.full_like(tensor[:, :4], value)], dim=1))
    for name in ("vad", "vad_known", "vad_target"):
        tensor = getattr(batch, name)
        setattr(wider, name, torch.cat([tensor, torch.zeros_like(tensor[:, :4])], dim=1))
    a, b = opened(batch), opened(wider)
    torch.testing.assert_close(a.logits, b.logits)
    torch.testing.assert_close(a.contrastive, b.contrastive)


@pytest.mark.parametrize(
    ("mapper_type", "lengths"), [("mlp", [2, 5, 3]), ("transformer", [2, 5, 3]), ("mlp", [1, 2, 2])]
)
def test_outputs_of_a_video_do_not_depend_on_its_batch(template, batch, mapper_type, lengths):
    captioner, own = make_captioner(template, gates=0.7, mapper__mapper_type=mapper_type), lengths[0]
    video = video_batch(batch, lengths)
    together = captioner.look(video.frames, video.frame_mask)
    ids = batch.input_ids[batch.text_image == 0][:1]
    segment, vad, known = torch.zeros_like(ids), torch.zeros(*ids.shape, 3), torch.zeros_like(ids, dtype=torch.bool)
    alone = captioner.look(video.frames[:1, :own], video.frame_mask[:1, :own])
    text = Text(ids, segment, vad, known, torch.ones_like(ids, dtype=torch.bool), right_padded=True)
    a = captioner.read(together.rows(torch.tensor([0])), text)
    b = captioner.read(alone, text)
    torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("negatives", ["read", "states"])
def test_scores_of_explanations_are_divided_by_the_temperature(template, batch, negatives):
    settings = {"gates": 0.7, "contrastive__negatives": negatives}
    one, quarter = (
        make_captioner(template, **settings, contrastive__temperature=t)(batch).contrastive for t in (1, 0.25)
    )
    assert torch.isfinite(one).any()
    torch.testing.assert_close(quarter, 4 * one)


def test_exactly_the_unfrozen_weights_get_gradients(template, batch):
    captioner = make_captioner(template, gates=0.7).train()
    output = captioner(batch)
    (output.logits.sum() + output.vad.sum() + output.contrastive[torch.isfinite(output.contrastive)].sum()).backward()
    for name, parameter in captioner.named_parameters():
        trained = name.startswith(("mapper", "resampler", "fusion", "vad_head", "contrastive", "segments"))
        trained = trained or ".xattn_block." in name
        assert parameter.requires_grad == trained, name
        if name != "resampler.time_pos_emb":
            assert (parameter.grad is not None and bool(parameter.grad.abs().sum() > 0)) == trained, name


def test_frozen_parts_stay_in_eval_mode_in_training(template):
    captioner = make_captioner(template).train()
    assert not captioner.vision.training
    assert not captioner.language.lm.transformer.h[0].lm_block.training
    assert captioner.resampler.training and captioner.language.cross_attention[0].training
    trained = make_captioner(template, text__trainable=True, vision__trainable=True).train()
    assert trained.vision.training and trained.language.lm.transformer.h[0].lm_block.training


@torch.no_grad()
def from_cache(captioner, batch):
    """Return the batch as from a feature cache: tokens in float16 instead of pixels."""
    cached = copy.deepcopy(batch)
    cached.tokens = captioner.vision(batch.frames).half() * batch.frame_mask[..., None, None]
    cached.frames = batch.frames.new_empty(*batch.frames.shape[:3], 0, 0)
    return cached


@pytest.mark.parametrize("lengths", [None, [2, 5, 3]], ids=["pictures", "clips"])
@pytest.mark.parametrize("vision", [VISION, RESNET], ids=["ViT", "ResNet"])
def test_cached_tokens_give_the_outputs_of_frames(template, tmp_path, vision, lengths):
    captioner = make_captioner(template, gates=0.7, vision__config=vision, mapper__mapper_type="transformer")
    batch = make_batch(tmp_path, template, captioner)
    batch = batch if lengths is None else video_batch(batch, lengths)
    seen, cached = captioner(batch), captioner(from_cache(captioner, batch))
    for name in ("hidden", "logits", "vad", "contrastive"):
        torch.testing.assert_close(getattr(cached, name), getattr(seen, name), rtol=0, atol=5e-3)
    losses = [loss_sums(output, b) for output, b in ((seen, batch), (cached, from_cache(captioner, batch)))]
    assert losses[0].keys() == losses[1].keys()
    for name, value in losses[0].items():
        torch.testing.assert_close(losses[1][name], value, rtol=1e-3, atol=1e-3)


def test_encoder_does_not_run_with_cached_tokens(template, batch):
    captioner = make_captioner(template, gates=0.7, vision__trainable=True)
    cached = from_cache(captioner, batch)
    cached.tokens.requires_grad_()
    captioner.vision.register_forward_hook(lambda *_: pytest.fail("the encoder ran"))
    captioner(cached).logits.sum().backward()
    assert cached.tokens.grad is None and next(captioner.mapper.parameters()).grad.any()


@pytest.mark.parametrize(
    "switches",
    [
        {"enable_mapper": False},
        {"enable_resampler_xattn": False},
        {"enable_mapper": False, "enable_resampler_xattn": False},
        {"vad__enabled": False},
        {"contrastive__enabled": False},
        {"text__segments": False},
        {"text__xattn__freq": 2},
    ],
)
def test_parts_switch_off_one_by_one(template, batch, switches):
    captioner = make_captioner(template, gates=0.7, **switches)
    output = captioner(batch)
    assert torch.isfinite(output.logits).all()
    assert (output.vad is None) == (switches.get("vad__enabled") is False)
    assert (output.contrastive is None) == (switches.get("contrastive__enabled") is False)
    blocks = {"text__xattn__freq": 2}.items() <= switches.items()
    if switches.get("enable_resampler_xattn") is False:
        assert not captioner.language.cross_attention
    else:
        assert len(captioner.language.cross_attention) == (2 if blocks else 3)


def test_widths_must_agree_without_mapper(template):
    vision = {"image_size": 32, "patch_size": 16, "width": 48, "layers": 1, "head_width": 16}
    with pytest.raises(UserError, match=r"48 and 32"):
        make_captioner(template, enable_mapper=False, vision__config=vision)


def test_checkpoint_holds_random_frozen_weights_and_tied_ones_once(template):
    state = own_state(make_captioner(template))
    assert any(name.startswith("vision.") for name in state), "random frozen weights cannot be loaded from elsewhere"
    assert "language.lm.transformer.wte.weight" in state
    assert "language.lm.lm_head.weight" not in state


def test_error_for_too_many_frames_names_the_setting(template, batch):
    captioner = make_captioner(template)
    video = video_batch(batch, [7, 2, 2])
    with pytest.raises(UserError, match="num_time_embeds=6"):
        captioner.look(video.frames, video.frame_mask)
