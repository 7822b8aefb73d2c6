"""Weights in 8 bits: what is stored, what is loaded, and products of integers."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from model.build import own_state
from model.decoding import int8, packed
from model.decoding.int8 import SCALE, SMALLEST, Int8Linear, can_multiply, from_int8, in_int8, quantize
from model.decoding.packed import PackedLinear, PackedSelfAttention, optimize_for_generation
from model.standalone import make_standalone
from tests.helpers.tiny import make_batch, make_captioner, model_config
from tests.model.test_packed import WIDE

integers = pytest.mark.skipif(not can_multiply(), reason="this CPU has no exact products of 8-bit integers")


@pytest.fixture(scope="module")
def captioner(template):
    captioner = make_captioner(template, gates=0.8, seed=3, **WIDE)
    make_standalone(captioner, model_config(**WIDE))
    return captioner


@pytest.mark.parametrize("axis", [0, 1])
@torch.no_grad()
def test_no_value_moves_by_more_than_half_a_step(axis):
    values = torch.randn(40, 50) * torch.logspace(-3, 3, 50)
    values[0], values[:, 0] = 0, 0
    found, scale = quantize(values, axis)
    assert found.dtype == torch.int8 and scale.shape == ((1, 50) if axis == 0 else (40, 1))
    assert ((found * scale - values).abs() <= scale * 0.501).all()


def test_values_that_are_loaded_give_the_integers_that_were_stored(captioner):
    stored = in_int8(captioner, own_state(captioner))
    again = copy.deepcopy(captioner)
    again.load_state_dict(from_int8(stored), strict=False)
    for name, tensor in in_int8(again, own_state(again)).items():
        torch.testing.assert_close(tensor, stored[name], rtol=1e-6 if name.endswith(SCALE) else 0, atol=0)


def test_large_linear_layers_are_stored_as_integers(captioner):
    state = own_state(captioner)
    stored = in_int8(captioner, state)
    small = {name for name, tensor in stored.items() if tensor.dtype == torch.int8}
    assert {name + SCALE for name in small} == stored.keys() - state.keys()
    for part in ("in_proj_weight", "c_fc.weight", "wte.weight"):
        assert any(part in name for name in small), part
    large = {name for name, tensor in state.items() if tensor.ndim == 2 and tensor.numel() >= SMALLEST}
    assert all(name.endswith(("wpe.weight", "latents", "positional_embedding")) for name in large - small)
    assert sum(t.nbytes for t in stored.values()) < 0.4 * sum(t.nbytes for t in state.values())


def test_a_scale_of_another_shape_is_refused():
    weight = torch.ones(3, 4, dtype=torch.int8)
    for scale in (torch.ones(2, 1), torch.ones(3), torch.ones(1, 1, 1)):
        with pytest.raises(ValueError, match=r"the scale of w has another shape"):
            from_int8({"w": weight, "w" + SCALE: scale})
    assert from_int8({"w": weight, "v" + SCALE: torch.ones(3, 1)})["w"] is weight, "not one of these files"


@integers
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows", [(1,), (7,), (3, 5), (0,)], ids=str)
@torch.no_grad()
def test_layer_is_that_of_rounded_weights_and_inputs(rows, bias):
    layer, x = nn.Linear(161, 190, bias=bias), torch.randn(*rows, 161) * 30
    ours = Int8Linear(layer.weight, layer.bias)
    values, scale = quantize(x.view(-1, 161), 1)
    expected = nn.functional.linear((values * scale).view(x.shape), ours.weight, layer.bias)
    torch.testing.assert_close(ours(x), expected, rtol=1e-4, atol=1e-4)
    assert (ours(x) - layer(x)).norm() <= 0.02 * layer(x).norm()


@integers
@torch.no_grad()
def test_a_row_does_not_depend_on_the_others():
    layer, x = Int8Linear(torch.randn(256, 128), torch.randn(256)), torch.randn(9, 128)
    assert torch.equal(layer(x)[4:5], layer(x[4:5]))


@integers
@torch.no_grad()
def test_generation_uses_integers(captioner, template, tmp_path):
    batch = make_batch(tmp_path, template, captioner, count=3)
    ours = copy.deepcopy(captioner)
    optimize_for_generation(ours, bf16=False, int8=True)
    kinds = [type(module) for module in ours.modules()]
    assert kinds.count(PackedSelfAttention) == 2 and kinds.count(Int8Linear) > 8 and PackedLinear not in kinds
    expected, found = (network.look(batch.frames, batch.frame_mask).prefix for network in (captioner, ours))
    assert 0 < (found - expected).norm() / expected.norm() < 0.05
    expected, found = (network(batch).hidden for network in (captioner, ours))
    assert 0 < (found - expected).norm() / expected.norm() < 0.05


@pytest.mark.parametrize("bf16", [False, True])
def test_other_cpus_and_bf16_compute_with_floats(captioner, monkeypatch, bf16):
    monkeypatch.setattr(packed, "can_multiply", lambda: bf16)
    ours = copy.deepcopy(captioner)
    optimize_for_generation(ours, bf16=bf16, int8=True)
    assert not any(isinstance(module, Int8Linear) for module in ours.modules())


def test_a_cpu_that_clips_sums_is_found(monkeypatch):
    product = torch._int_mm
    monkeypatch.setattr(torch, "_int_mm", lambda a, b: product(a, b).clamp(max=32767))
    int8.can_multiply.cache_clear()
    try:
        assert not can_multiply()
    finally:
        int8.can_multiply.cache_clear()
