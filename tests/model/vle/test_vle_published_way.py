"""The published way as re-built in benchmarks/vle.py: the same answers, but with full attention matrices."""

from __future__ import annotations

import pytest
import torch

from benchmarks.vle import LargestTensor, published_logits
from model.vle import VLEForVQA
from tests.model.vle import vle_reference as reference
from tests.model.vle.vle_files import TINY_VISION, random_state, tiny_config, write_folder

BATCH, TOKENS = 2, 36**2 + 1  # as many tokens as at 576 pixels with patches of 16
CONFIG = tiny_config(vision={**TINY_VISION, "image_size": 288})
MATRIX = BATCH * TINY_VISION["num_attention_heads"] * TOKENS**2 * 4  # bytes of one layer's attention in fp32


@pytest.fixture(scope="module")
def state():
    return random_state(CONFIG, ["vqa"])


@pytest.fixture(scope="module")
def model(state, tmp_path_factory):
    return VLEForVQA.from_pretrained(write_folder(tmp_path_factory.mktemp("vle"), CONFIG, state))


@pytest.fixture(scope="module")
def inputs():
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    pixels = torch.randn(BATCH, 3, 288, 288, generator=torch.Generator().manual_seed(2))
    return {"input_ids": mask * 7, "attention_mask": mask, "pixel_values": pixels}


@torch.no_grad()
def test_the_published_way_gives_the_same_answers(model, state, inputs):
    fused = reference.encode(state, CONFIG, *(inputs[name] for name in ("input_ids", "attention_mask", "pixel_values")))
    wanted = reference.head_logits(state, CONFIG, "vqa", fused)
    torch.testing.assert_close(published_logits(model, **inputs), wanted, atol=1e-5, rtol=0)
    torch.testing.assert_close(model(**inputs).logits, wanted, atol=1e-5, rtol=0)


@torch.no_grad()
def test_no_full_attention_matrix_is_held(model, inputs):
    with LargestTensor() as published:
        published_logits(model, **inputs)
    with LargestTensor() as ours:
        model(**inputs)
    assert published.largest == MATRIX
    assert ours.largest < MATRIX / 10
