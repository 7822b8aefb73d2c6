"""Losses are balanced by their gradients at the bridge, and TensorBoard shows both."""

from __future__ import annotations

import json

import pytest
import torch

from tests.helpers.tiny import make_batch, make_captioner, make_template, run_mode, write_splits
from trainer.loop.balance import gradient_squares, scales, update, variation
from trainer.runs.task import CaptionTask


def test_limit_scales_only_losses_that_exceed_it():
    ratios = {"vad": 25.0, "head": 0.64, "emotion": 0.0625, "contrastive": 0.0}
    assert scales(ratios, 0.5) == {"vad": 0.1, "head": 0.625, "emotion": 1.0, "contrastive": 1.0}
    assert scales(ratios, None) == {}


def test_running_mean_starts_with_the_first_measurement():
    ratios: dict[str, float] = {}
    update(ratios, {"caption": 4.0, "vad": 8.0})
    assert ratios == {"vad": 2.0}
    update(ratios, {"caption": 1.0, "vad": 12.0})
    assert ratios == pytest.approx({"vad": 3.0})
    for nothing in ({"caption": 0.0, "vad": 1.0}, {"caption": 1.0, "vad": float("inf")}, {"vad": 1.0}):
        update(ratios, nothing)
    assert ratios == pytest.approx({"vad": 3.0})


def test_gradients_are_those_of_the_whole_backward_pass(tmp_path):
    template = make_template(tmp_path / "tokenizer")
    captioner = make_captioner(template, gates=0.7)
    task = CaptionTask(captioner, weights={}, tokenizer=template.tokenizer)
    losses = task.sums(captioner, make_batch(tmp_path / "images", template, captioner))
    assert set(task.bridge) == {"prefix", "latents"}
    measured = gradient_squares(losses, task.bridge)
    assert measured["contrastive"] == 0, "the contrastive head alone learns from false explanations"
    for tensor in task.bridge.values():
        tensor.retain_grad()
    (losses["caption"] + losses["vad"]).backward()
    whole = sum(tensor.grad.square().sum() for tensor in task.bridge.values())
    assert 0 < float(whole) <= float((measured["caption"].sqrt() + measured["vad"].sqrt()) ** 2) * 1.0001
    assert float(whole) >= float((measured["caption"].sqrt() - measured["vad"].sqrt()) ** 2) * 0.9999


def test_variation_is_the_share_that_differs_between_pictures():
    same, other = torch.ones(4, 2, 3), torch.tensor([-1.0, 1.0])[:, None, None].expand(2, 2, 3)
    assert variation({"prefix": same, "latents": other}) == pytest.approx({"prefix": 0.0, "latents": 1.0})


def test_latents_carry_the_picture_from_the_first_step(tmp_path):
    template = make_template(tmp_path / "tokenizer")
    captioner = make_captioner(template)
    visual = captioner.look(*(lambda b: (b.frames, b.frame_mask))(make_batch(tmp_path / "i", template, captioner, 9)))
    start = variation(visual.bridge)["latents"]
    with torch.no_grad():
        captioner.resampler.latents.normal_()
        captioner.resampler.time_pos_emb.normal_()
    batch = make_batch(tmp_path / "i", template, captioner, 9)
    assert start > 2 * variation(captioner.look(batch.frames, batch.frame_mask).bridge)["latents"]


def test_heavy_emotion_loss_cannot_drown_the_words(tmp_path):
    keys = {**write_splits(tmp_path), "trainer.log_every_n_steps": 1, "trainer.epochs": 2, "name": "run"}
    run_mode("train", {**keys, "model.loss_weights.emotion": 50.0})
    rows = [json.loads(line) for line in (tmp_path / "runs/run/metrics.jsonl").read_text().splitlines()]
    rows = [row for row in rows if "bridge/gradient_caption" in row]
    assert len(rows) == 4
    for row in rows[:1]:
        ratio = row["bridge/gradient_emotion"] / row["bridge/gradient_caption"]
        assert ratio > 5 and row["bridge/scale_emotion"] == pytest.approx(0.5 / ratio)
        assert {"bridge/varied_prefix", "bridge/varied_latents", "bridge/scale_vad"} <= row.keys()
