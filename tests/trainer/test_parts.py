"""Parts that are built from a configuration or checkpoint: network, template, aligner, predictor."""

from __future__ import annotations

import math

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from common.config.check import check_config, check_overrides
from common.errors import UserError
from data.sevlm_text import SevlmTemplate
from data.text import Template
from data.vad.align import VadAligner
from data.vad.pieces import PieceAligner
from model.sevlm import SevlmCaptioner
from tests.helpers.tiny import ROOT, arguments, run_mode, write_gpt2, write_run, write_splits
from trainer.prediction.build import build_predictor
from trainer.runs.checkpoint import Checkpoint
from trainer.setup.autos import resolve_auto
from trainer.setup.parts import build_parts, frozen_weights


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    return write_splits(tmp_path_factory.mktemp("splits"))


def resolved(keys, *, has_emotions: bool = True, has_texts: bool = True, **changes) -> DictConfig:
    overrides = {**keys, "mode": "train", **{key.replace("__", "."): value for key, value in changes.items()}}
    with initialize_config_dir(version_base="1.3", config_dir=str(ROOT)):
        config = compose("config", overrides=check_overrides(arguments(overrides)))
    check_config(config)
    resolve_auto(config, has_emotions=has_emotions, has_texts=has_texts)
    return config


def test_architecture_and_vad_unit_select_the_parts(keys):
    ours = build_parts(resolved(keys))
    assert type(ours.template) is Template and type(ours.aligner) is VadAligner
    theirs = build_parts(resolved(keys, model__architecture="sevlm", dataset__vad_unit="piece", dataset__max_length=30))
    assert type(theirs.template) is SevlmTemplate and type(theirs.captioner) is SevlmCaptioner
    assert type(theirs.aligner) is PieceAligner and theirs.aligner.first_target == 6
    assert theirs.captioner.length == 30 and theirs.captioner.pad_id == theirs.template.pad_id
    assert tuple(theirs.captioner.segment_ids.tolist()) == theirs.template.segment_ids
    assert build_parts(resolved(keys, dataset__vad_unit="piece")).aligner.first_target == 0


@pytest.mark.parametrize("fusion", ["gated", "concat", "off"])
@pytest.mark.parametrize("encoder", ["none", "causal", "bidirectional"])
def test_vad_fusion_and_encoder_are_built_as_configured(keys, fusion, encoder):
    config = resolved(keys, model__vad__fusion=fusion, model__vad__encoder=encoder, model__vad__encoder_layers=2)
    captioner = build_parts(config).captioner
    assert (captioner.fusion is None) == (fusion == "off")
    assert (captioner.vad_encoder is None) == (fusion == "off" or encoder == "none")
    assert captioner.causal == (captioner.vad_encoder is None or encoder == "causal")
    assert captioner.vad_head is not None and captioner.vad_sentence_head is None
    assert captioner.vad_encoder is None or len(captioner.vad_encoder.encoder["layers"]) == 2


def test_emotion_tokens_exist_for_histogram_targets_only(keys):
    device = torch.device("cpu")
    for config, expected in ((resolved(keys), False), (resolved(keys, model__emotion_target="histogram"), True)):
        parts = build_parts(config)
        tokens = parts.emotion_tokens(config, device)
        assert (tokens is not None) == expected
        assert not expected or tokens.tolist() == [ids[0] for ids in parts.template.label_ids]


@pytest.mark.parametrize("key", ["model.emotion_target=histogram", "model.architecture=sevlm"])
def test_settings_that_need_emotions_are_refused_without(keys, key):
    name, _, value = key.partition("=")
    with pytest.raises(UserError, match=f"{key} needs emotions"):
        resolved(keys | {name: value}, has_emotions=False)


def test_contrastive_negatives_depend_on_the_architecture(keys):
    for architecture, negatives in (("emoscribe", "read"), ("sevlm", "states")):
        assert resolved(keys | {"model.architecture": architecture}).model.contrastive.negatives == negatives
    with pytest.raises(UserError, match=r"set model\.contrastive\.negatives=states"):
        resolved(keys | {"model.architecture": "sevlm", "model.contrastive.negatives": "read"})


def checkpoint(tmp_path, config, **info) -> Checkpoint:
    return Checkpoint(tmp_path, config, {"state": {}, **info})


def test_the_temperature_is_the_checkpoint_s_unless_it_is_set(keys, tmp_path):
    config = resolved(keys)
    parts = build_parts(config)
    fitted = checkpoint(tmp_path, config, emotion_temperature=1.7)
    assert build_predictor(config, parts, fitted).temperature == 1.7
    assert build_predictor(config, parts, checkpoint(tmp_path, config)).temperature == 1.0, "no temperature stored"
    assert build_predictor(config, parts).temperature == 1.0
    given = resolved(keys, trainer__test__emotion_temperature=0.5)
    assert build_predictor(given, parts, fitted).temperature == 0.5
    other = resolved(keys, trainer__test__emotion_scoring="first_token")
    assert build_predictor(other, parts, fitted).temperature == 1.0, "fitted for another scoring"


@pytest.mark.parametrize("fitted", [0, -1.0, math.nan, math.inf, "1.0", None])
def test_an_invalid_temperature_is_refused(keys, tmp_path, fitted):
    config = resolved(keys)
    with pytest.raises(UserError, match="emotion_temperature=1"):
        build_predictor(config, build_parts(config), checkpoint(tmp_path, config, emotion_temperature=fitted))


def test_validation_generates_one_explanation_per_image(keys, tmp_path):
    config = resolved(keys, trainer__test__best_of=3, trainer__test__decoding_strategy="nucleus", top_emotions=2)
    parts = build_parts(config)
    assert (build_predictor(config, parts).best_of, build_predictor(config, parts).top_emotions) == (1, 1)
    config.mode = "test"
    used = build_predictor(config, parts, checkpoint(tmp_path, config))
    assert (used.best_of, used.top_emotions) == (3, 1)
    config.mode = "predict"
    assert build_predictor(config, parts, checkpoint(tmp_path, config)).top_emotions == 2


def test_without_explanations_only_emotions_are_trained(keys):
    config = resolved(keys, has_texts=False)
    assert (config.dataset.emotions, config.dataset.explanations) == (True, False)
    assert not config.model.vad.enabled and not config.model.contrastive.enabled and not config.model.text.segments
    assert not build_parts(config).with_explanations and build_parts(resolved(keys)).with_explanations
    explicit = resolved(keys, has_texts=False, model__vad__enabled=True, dataset__explanations=True)
    assert explicit.model.vad.enabled and explicit.dataset.explanations


def test_configured_labels_reach_the_template(keys):
    parts = build_parts(resolved(keys, dataset__labels="[joy,something else]"))
    assert parts.template.labels == ("joy", "something else")
    assert len(parts.emotion_tokens(resolved(keys, model__emotion_target="histogram"), "cpu")) == 2


def test_other_frozen_weights_than_in_training_are_refused(keys, tmp_path):
    language = write_gpt2(tmp_path / "gpt2", vocab_size=330)
    own = {**keys, "model.text.pretrained_name": language, "model.text.config": None}
    run = write_run({**own, "trainer.limit_train_batches": 1, "trainer.exp_dir": tmp_path}, "run")
    write_gpt2(language, vocab_size=330, seed=1)
    with pytest.raises(UserError, match=r"was trained with other weights of model\.text\.pretrained_name=.*gpt2"):
        run_mode("test", {"pretrained_name": run, "trainer.exp_dir": tmp_path})


def test_only_weights_that_the_checkpoint_lacks_are_compared(keys):
    assert not frozen_weights(build_parts(resolved(keys)).captioner)  # random weights; the tied output layer as well


def test_training_without_any_trained_weight_is_refused(keys, tmp_path):
    frozen = {
        "enable_mapper": False,
        "enable_resampler_xattn": False,
        "contrastive.enabled": False,
        "text.segments": False,
    }
    own = {**keys, **{f"model.{key}": value for key, value in frozen.items()}, "model.vad.enabled": False}
    own |= {"model.vision.trainable": False, "model.text.trainable": False, "trainer.exp_dir": tmp_path}
    with pytest.raises(UserError, match=r"no weight of the network is trained: set model\.enable_mapper or"):
        write_run(own, "run")


def test_training_without_any_loss_is_refused(keys):
    weights = ("caption", "emotion", "vad", "vad_sentence", "contrastive")
    with pytest.raises(UserError, match=r"model\.loss_weights: all are 0"):
        write_run({**keys, **{f"model.loss_weights.{name}": 0 for name in weights}}, "run")
