"""VAD of words: fusions that start as the identity, unknown and neutral words, and the published encoder."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from model.vad import ConcatFusion, GatedFusion, VadEncoder, VadHead

EXACT = {"rtol": 1e-5, "atol": 1e-5}


@pytest.fixture
def fusion():
    torch.manual_seed(0)
    return GatedFusion(8, hidden_dim=5)


@pytest.fixture
def words():
    generator = torch.Generator().manual_seed(1)
    embeddings, vad = torch.randn(2, 4, 8, generator=generator), torch.rand(2, 4, 3, generator=generator) * 2 - 1
    known = torch.tensor([[1, 0, 1, 1], [0, 1, 1, 0]]).bool()
    return embeddings, vad * known[..., None], known


def test_gated_fusion_starts_as_the_identity_with_a_gradient(fusion, words):
    fused = fusion(*words)
    assert torch.equal(fused, words[0])
    fused.square().sum().backward()
    assert fusion.gate.grad.abs() > 0, "the gate must get a gradient"


def test_unknown_words_are_unchanged_with_an_open_gate(fusion, words):
    torch.nn.init.constant_(fusion.gate, 1.0)
    embeddings, _, known = words
    fused = fusion(*words)
    assert torch.equal(fused[~known], embeddings[~known])
    assert ((fused - embeddings)[known].abs().amax(dim=-1) > 1e-3).all()


def test_neutral_words_differ_from_unknown_ones(fusion):
    torch.nn.init.constant_(fusion.gate, 1.0)
    embeddings, neutral = torch.zeros(1, 2, 8), torch.zeros(1, 2, 3)
    known, unknown = fusion(embeddings, neutral, torch.tensor([[True, False]]))[0]
    assert (unknown == 0).all() and known.abs().max() > 1e-3


def test_gate_scales_the_features_by_its_tanh(fusion, words):
    torch.nn.init.constant_(fusion.gate, 0.3)
    embeddings, vad, known = words
    expected = embeddings[known] + torch.tensor(0.3).tanh() * fusion.embed(vad[known])
    torch.testing.assert_close(fusion(*words)[known], expected)


def test_concat_fusion_starts_as_the_identity_with_a_gradient(words):
    fusion = ConcatFusion(8)
    fused = fusion(*words)
    assert torch.equal(fused, words[0])
    fused.square().sum().backward()
    assert (fusion.linear.weight.grad[:, 8:].abs().amax(dim=0) > 0).all(), "all three values must get gradients"


def test_concat_fusion_is_a_linear_layer_at_masked_positions(words):
    fusion = ConcatFusion(8)
    generator = torch.Generator().manual_seed(2)
    for parameter in fusion.parameters():
        torch.nn.init.normal_(parameter, generator=generator)
    hidden, features, where = words
    weight, bias = fusion.linear.weight, fusion.linear.bias
    expected = hidden @ weight[:, :8].T + features @ weight[:, 8:].T + bias
    fused = fusion(*words)
    torch.testing.assert_close(fused[where], expected[where], **EXACT)
    assert torch.equal(fused[~where], hidden[~where])


def test_head_predicts_three_values():
    assert VadHead(8)(torch.zeros(2, 5, 8)).shape == (2, 5, 3)


# --- the encoder -----------------------------------------------------------------------------------------------------


def encoder(**settings) -> VadEncoder:
    """Return an encoder with random norms, so that a missing part is noticed."""
    torch.manual_seed(3)
    built = VadEncoder(**settings)
    with torch.no_grad():
        for name, parameter in built.named_parameters():
            if "norm" in name:
                parameter += 0.3 * torch.randn_like(parameter)
    return built.eval()


def values(rows: int = 2, length: int = 7, *, seed: int = 4) -> torch.Tensor:
    return torch.rand(rows, length, 3, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def published(state: dict[str, np.ndarray], vad: np.ndarray, *, layers: int, causal: bool) -> np.ndarray:
    """Compute the published formula for one text (S, 3) in double precision."""

    def norm(x: list[float], name: str) -> list[float]:
        mean = sum(x) / 3
        deviation = math.sqrt(sum((a - mean) ** 2 for a in x) / 3 + 1e-5)
        weight, bias = state[f"{name}.weight"], state[f"{name}.bias"]
        return [(a - mean) / deviation * w + b for a, w, b in zip(x, weight, bias, strict=True)]

    def linear(x: list[float], name: str) -> list[float]:
        weight, bias = state[f"{name}.weight"], state[f"{name}.bias"]
        return [sum(w * a for w, a in zip(row, x, strict=True)) + b for row, b in zip(weight, bias, strict=True)]

    x = [norm([*(row + state["pos_encoder.weight"][t])], "norm") for t, row in enumerate(vad)]
    for i in range(layers):
        layer = f"encoder.layers.{i}"
        query, key, value = (
            [linear(row, f"{layer}.self_attention.{part}") for row in x] for part in ("query", "key", "value")
        )
        after = []
        for t, row in enumerate(x):
            seen = range(t + 1) if causal else range(len(x))
            weights = [math.exp(sum(a * b for a, b in zip(query[t], key[s], strict=True)) / math.sqrt(3)) for s in seen]
            total = sum(weights)
            attended = [sum(w * value[s][d] for w, s in zip(weights, seen, strict=True)) / total for d in range(3)]
            y = norm([a + b for a, b in zip(row, attended, strict=True)], f"{layer}.norm1")
            inner = [max(0.0, a) for a in linear(y, f"{layer}.fc.0")]
            y = norm([a + b for a, b in zip(y, linear(inner, f"{layer}.fc.2"), strict=True)], f"{layer}.norm2")
            after.append([a + b for a, b in zip(row, y, strict=True)])
        x = after
    return np.array(x)


def plain(module: VadEncoder, vad: torch.Tensor) -> torch.Tensor:
    """`published` of one text (S, 3) with this module's weights."""
    state = {name: tensor.double().numpy() for name, tensor in module.state_dict().items()}
    layers = len(module.encoder["layers"])
    return torch.from_numpy(published(state, vad.double().numpy(), layers=layers, causal=module.causal)).float()


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("layers", [0, 1, 3])
def test_encoder_equals_the_published_formula(causal, layers):
    module, vad = encoder(causal=causal, layers=layers), values()
    with torch.no_grad():
        for row, found in zip(vad, module(vad, None), strict=True):
            torch.testing.assert_close(found, plain(module, row), rtol=1e-4, atol=1e-5)


def test_encoder_has_the_published_parameters():
    state = VadEncoder(causal=False).state_dict()
    shapes = {"pos_encoder.weight": (5000, 3), "norm.weight": (3,), "norm.bias": (3,)}
    for i in range(3):
        layer = f"encoder.layers.{i}"
        for part in ("query", "key", "value"):
            shapes |= {f"{layer}.self_attention.{part}.weight": (3, 3), f"{layer}.self_attention.{part}.bias": (3,)}
        shapes |= {f"{layer}.fc.0.weight": (128, 3), f"{layer}.fc.0.bias": (128,)}
        shapes |= {f"{layer}.fc.2.weight": (3, 128), f"{layer}.fc.2.bias": (3,)}
        shapes |= {f"{layer}.norm{n}.{kind}": (3,) for n in (1, 2) for kind in ("weight", "bias")}
    shapes |= {"decoder.weight": (1, 3), "decoder.bias": (1,)}
    assert {name: tuple(tensor.shape) for name, tensor in state.items()} == shapes
    assert sum(tensor.numel() for tensor in state.values()) == 17_851


def test_every_trained_parameter_has_a_gradient():
    module = encoder(causal=False, max_positions=7).train()
    module(values(), torch.ones(2, 7, dtype=torch.bool)).square().sum().backward()
    without = {name for name, p in module.named_parameters() if p.grad is None or not p.grad.any()}
    # softmax ignores the bias of the keys
    assert {name for name in without if not name.endswith("key.bias")} == {"decoder.weight", "decoder.bias"}
    assert not any(p.requires_grad for p in module.decoder.parameters())


@pytest.mark.parametrize("masked", [False, True])
def test_later_words_affect_earlier_features_only_if_bidirectional(masked):
    vad, mask = values(), torch.ones(2, 7, dtype=torch.bool) if masked else None
    causal, both_ways = encoder(causal=True), encoder(causal=False)
    for t in range(1, 7):
        changed = vad.clone()
        changed[:, t] = -changed[:, t] + 0.5
        assert torch.equal(causal(changed, mask)[:, :t], causal(vad, mask)[:, :t])
        assert ((both_ways(changed, mask) - both_ways(vad, mask))[:, :t].abs().amax(dim=-1) > 0).all()
        assert (causal(changed, mask)[:, t:] != causal(vad, mask)[:, t:]).any(dim=-1).all(), (
            "later features must change"
        )


def test_causal_features_of_a_growing_text_are_stable():
    module, vad = encoder(causal=True), values(length=12)
    whole = module(vad, None)
    for length in range(1, 13):
        torch.testing.assert_close(module(vad[:, :length], None), whole[:, :length], **EXACT)


@pytest.mark.parametrize("causal", [False, True])
def test_masked_padding_does_not_affect_features(causal):
    """On either side, features equal those of the text alone."""
    module, lengths = encoder(causal=causal), (2, 5, 7)
    texts = [values(1, length, seed=length)[0] for length in lengths]
    for side in ("left", "right"):
        padded, mask = torch.full((3, 9, 3), 0.7), torch.zeros(3, 9, dtype=torch.bool)
        for row, text in enumerate(texts):
            place = slice(9 - len(text), 9) if side == "left" else slice(0, len(text))
            padded[row, place], mask[row, place] = text, True
        features = module(padded, mask)
        assert torch.isfinite(features).all(), "padding attends at least to itself"
        for row, text in enumerate(texts):
            torch.testing.assert_close(features[row][mask[row]], module(text[None], None)[0], **EXACT)


def test_padding_in_front_attends_only_to_itself():
    """Attention to nothing would be NaN, or depend on the kernel."""
    module, vad = encoder(causal=True), values(1, 6)
    features = module(vad, torch.tensor([[0, 0, 0, 1, 1, 1]]).bool())
    for t in range(3):
        torch.testing.assert_close(features[:, t : t + 1], module(vad[:, t : t + 1], None), **EXACT)


def test_unmasked_padding_affects_features_and_positions():
    module, text = encoder(causal=False), values(1, 4)
    padded = torch.cat([text, torch.zeros(1, 3, 3)], dim=1)
    assert (module(padded, None)[:, :4] - module(text, None)).abs().max() > 1e-3
    shifted = torch.cat([torch.zeros(1, 3, 3), text], dim=1)
    assert (module(shifted, None)[:, 3:] - module(padded, None)[:, :4]).abs().max() > 1e-3


def test_dropout_only_in_training():
    module, vad = encoder(causal=True, dropout=0.5), values(length=20)
    assert torch.equal(module(vad, None), module(vad, None))
    module.train()
    assert not torch.equal(module(vad, None), module(vad, None))
    without = encoder(causal=True, dropout=0.0).train()
    assert torch.equal(without(vad, None), without(vad, None))


def outcomes(length: int, *, attended: bool, fed: bool) -> int:
    """Count the distinct features of one token under dropout, with constant values and inputs of the layer."""
    module = encoder(causal=False, layers=1, dropout=0.5).train()
    layer, constant = module.encoder["layers"][0], torch.tensor([1.0, -1.0, 0.5])
    with torch.no_grad():
        for linear, on in ((layer.self_attention["value"], attended), (layer.fc[2], fed)):
            linear.weight.zero_()
            linear.bias.copy_(constant * on)
        first = module(values(1, length).expand(1000, -1, -1), None)[:, 0]
    return len(first.unique(dim=0))


def test_dropout_applies_to_attention_weights_and_both_outputs():
    assert outcomes(1, attended=False, fed=False) == 1
    assert outcomes(1, attended=True, fed=False) == outcomes(1, attended=False, fed=True) == 2**3, "three values each"
    assert outcomes(20, attended=True, fed=False) > 2**3, "each of 20 weights"
