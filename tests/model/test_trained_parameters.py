"""Exactly the parameters that should be trained get gradients, in every variant of the network."""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Collection, Mapping

import pytest
import torch
from torch import Tensor

from data.collate import collate
from data.loaders import CaptionDataset
from data.schema import Batch
from model.captioner import Captioner
from model.losses import loss_counts, loss_sums
from tests.helpers.sevlm_parts import make_pieces, make_sevlm, make_sevlm_template
from tests.helpers.tiny import make_aligner, make_captioner, make_samples

Variant = Mapping[str, object]
BOTH = (False, True)
CHOICES = {
    "architecture": ("emoscribe", "sevlm"),
    "emotion_target": ("label", "histogram"),
    "enable_mapper": BOTH,
    "enable_resampler_xattn": BOTH,
    "vision__trainable": BOTH,
    "text__trainable": BOTH,
    "vad__fusion": ("gated", "concat", "off"),
    "vad__encoder": ("none", "causal", "bidirectional"),
    "vad__sentence": BOTH,
    "contrastive__enabled": BOTH,
}
GATES = ("alpha_attn", "alpha_ffw", "fusion.gate")
# Softmax ignores a constant added to all scores, so gradients of these biases are only rounding errors: those of the
# VAD encoder's keys and of the contrastive head's score. (The bias of GPT-2's keys is part of a longer vector.)
NO_GRADIENT = re.compile(r"\.self_attention\.key\.bias$|^contrastive\.pred\.4\.bias$")


def covering(choices: Mapping[str, tuple], seed: int = 0) -> list[Variant]:
    """Return random variants that cover all combinations of choices of any three keys."""
    rng = random.Random(seed)
    left = set()
    for keys in itertools.combinations(choices, 3):
        left |= set(itertools.product(*([(key, value) for value in choices[key]] for key in keys)))
    variants = []
    while left:
        drawn = [{key: rng.choice(values) for key, values in choices.items()} for _ in range(50)]
        found = [set(itertools.combinations(variant.items(), 3)) & left for variant in drawn]
        best = max(range(len(drawn)), key=lambda i: len(found[i]))
        if found[best]:
            variants.append(drawn[best])
            left -= found[best]
    return variants


VARIANTS = covering(CHOICES)


@pytest.fixture(scope="module")
def sevlm_template(tmp_path_factory):
    return make_sevlm_template(tmp_path_factory.mktemp("sevlm"))


@pytest.fixture(scope="module")
def batches(tmp_path_factory, template, sevlm_template) -> dict[str, Batch]:
    """Training batches of three images with two texts each, by architecture."""
    samples = make_samples(tmp_path_factory.mktemp("pictures"), 3)
    parts = {
        "emoscribe": (template, make_aligner(template)),
        "sevlm": (sevlm_template, make_pieces(sevlm_template)),
    }
    batches = {}
    for name, (sentence, aligner) in parts.items():
        dataset = CaptionDataset(
            samples,
            preprocess=make_captioner(template).vision.preprocess,
            template=sentence,
            aligner=aligner,
            texts_per_image=2,
            seed=0,
            max_frames=1,
        )
        batches[name] = collate([dataset[0, i] for i in range(3)])
        assert len(batches[name].input_ids) == 6 and batches[name].vad_target.any()
    return batches


@pytest.fixture
def make(template, sevlm_template):
    """Build a network of a variant in its initial state, with gates at zero."""

    def build(variant: Variant) -> Captioner:
        changes = {key: value for key, value in variant.items() if key != "architecture"}
        if variant.get("architecture") == "sevlm":
            return make_sevlm(sevlm_template, contrastive__depth=2, **changes)
        return make_captioner(template, **changes)

    return build


def open_up(captioner: Captioner, leave: Collection[str] = ()) -> Captioner:
    """Open all gates, and move fusion and segments away from identity and zero.

    leave: names of parameters to keep.
    """
    generator = torch.Generator().manual_seed(1)
    for name, parameter in captioner.named_parameters():
        if name.endswith(GATES) and name not in leave:
            torch.nn.init.constant_(parameter, 0.7)
        elif name.startswith(("fusion.linear.", "segments.")) and name not in leave:
            parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)
    return captioner


@pytest.fixture
def total(batches, template, sevlm_template):
    """The weighted loss of a training step."""

    def weighted(captioner: Captioner, variant: Variant) -> Tensor:
        name = variant.get("architecture", "emoscribe")
        labels = (sevlm_template if name == "sevlm" else template).label_ids
        shares = variant.get("emotion_target") == "histogram"
        batch = batches[name]
        first = torch.tensor([ids[0] for ids in labels]) if shares else None
        sums, counts = loss_sums(captioner(batch), batch, emotion_tokens=first), loss_counts(batch)
        assert all(counts[loss] > 0 for loss in sums)
        return sum(weight * sums[loss] / counts[loss] for loss, weight in WEIGHTS.items() if loss in sums)

    return weighted


WEIGHTS = {"caption": 1.0, "emotion": 0.5, "vad": 2.0, "vad_sentence": 0.7, "contrastive": 1.5}


def trained(captioner: Captioner) -> set[str]:
    return {name for name, p in captioner.named_parameters() if p.requires_grad and not NO_GRADIENT.search(name)}


def with_gradient(captioner: Captioner) -> set[str]:
    """Names of the parameters whose gradient is not zero everywhere."""
    names = {name for name, p in captioner.named_parameters() if p.grad is not None and p.grad.any()}
    return {name for name in names if not NO_GRADIENT.search(name)}


def described(variant: Variant) -> str:
    return "-".join(
        (key.split("__")[-2 if key.endswith(("enabled", "trainable")) else -1] if value is True else str(value))
        for key, value in variant.items()
        if value is not False
    )


def should_train(name: str, variant: Variant) -> bool:
    """Decide by the name alone, independently of requires_grad."""
    if name.startswith("vision."):
        # The final norm is applied to the tokens only with tokens=patches, as in SEVLM.
        behind = "ln_post" in name and variant.get("architecture") != "sevlm"
        return bool(variant.get("vision__trainable")) and not behind
    if name.startswith("language."):
        own = "xattn_block" not in name and "crossattention" not in name and "ln_cross_attn" not in name
        return not own or bool(variant.get("text__trainable"))
    return not name.startswith("vad_encoder.decoder.")


@pytest.mark.parametrize("variant", VARIANTS, ids=described)
def test_exactly_the_trained_parameters_have_gradients(make, total, variant):
    captioner = open_up(make(variant)).train()
    expected = {name for name, _ in captioner.named_parameters() if should_train(name, variant)}
    total(captioner, variant).backward()
    assert {name for name, p in captioner.named_parameters() if p.requires_grad} == expected
    assert with_gradient(captioner) == trained(captioner)
    for name, parameter in captioner.named_parameters():
        assert (parameter.grad is None) == (name not in expected), f"{name}: training on several devices would stall"
        if NO_GRADIENT.search(name):
            weight = captioner.get_parameter(name.replace(".bias", ".weight"))
            assert parameter.grad.abs().max() < 1e-3 * weight.grad.abs().max(), name


def test_variants_cover_all_triples_of_choices():
    for keys in itertools.combinations(CHOICES, 3):
        chosen = {tuple(variant[key] for key in keys) for variant in VARIANTS}
        assert chosen == set(itertools.product(*(CHOICES[key] for key in keys)))


@pytest.mark.parametrize("variant", VARIANTS, ids=described)
def test_dropout_is_active_exactly_in_trained_parts(make, variant):
    captioner = make(variant).train()
    for name, module in captioner.named_modules():
        own = [p.requires_grad for p in module.parameters(recurse=False)]
        if any(own):
            assert module.training, name
        elif isinstance(module, torch.nn.Dropout) and name.startswith("language."):
            assert module.training == (should_train(name, variant)), name
    assert captioner.vision.training == variant["vision__trainable"]
    assert not any(module.training for module in captioner.eval().modules())


# --- gates ------------------------------------------------------------------------------------------------------------

BEHIND_GATES = re.compile(
    r"^resampler\.|xattn_block\.(attn|ffw)\."  # tanh(0) of the cross-attention
    r"|^fusion\.embed\."  # tanh(0) of the gated fusion
    r"|^vad_encoder\."  # that gate, or the columns of the linear layer, which start at zero
)


@pytest.mark.parametrize("variant", VARIANTS, ids=described)
def test_gradients_reach_parts_behind_gates_after_one_step(make, total, variant):
    """Initially only parameters that are not behind a gate have gradients; after one step all have."""
    captioner = make(variant).train()
    optimizer = torch.optim.AdamW(captioner.parameters(), lr=1e-2, betas=(0.9, 0.98), weight_decay=0.0)
    start = {name: p.detach().clone() for name, p in captioner.named_parameters()}
    expected = trained(captioner)
    for names in ({name for name in expected if not BEHIND_GATES.search(name)}, expected):
        optimizer.zero_grad()
        total(captioner, variant).backward()
        assert with_gradient(captioner) == names
        optimizer.step()
    moved = {name for name, p in captioner.named_parameters() if not torch.equal(p, start[name])}
    assert {name for name in moved if not NO_GRADIENT.search(name)} == expected


# By part: the variant with it, and the variant without it.
PARTS = {
    "gated": ({"vad__fusion": "gated"}, {"vad__fusion": "off"}),
    "gated-encoder": ({"vad__fusion": "gated", "vad__encoder": "causal"}, {"vad__fusion": "off"}),
    "concat": ({"vad__fusion": "concat"}, {"vad__fusion": "off"}),
    "concat-encoder": ({"vad__fusion": "concat", "vad__encoder": "bidirectional"}, {"vad__fusion": "off"}),
    "sevlm": ({"architecture": "sevlm"}, {"architecture": "sevlm", "vad__fusion": "off"}),
    "cross-attention": ({}, {"enable_resampler_xattn": False}),
    "segments": ({"text__segments": True}, {"text__segments": False}),
}


@torch.no_grad()
@pytest.mark.parametrize("part", PARTS)
def test_part_with_a_gate_at_zero_equals_no_part(make, batches, part):
    variant, without = PARTS[part]
    batch = batches[variant.get("architecture", "emoscribe")]
    captioner, bare = make(variant), make(without)
    state = captioner.state_dict()
    bare.load_state_dict({name: state[name] for name in bare.state_dict()})
    assert len(bare.state_dict()) < len(state)
    closed, expected, opened = captioner(batch), bare(batch), open_up(captioner, leave=bare.state_dict())(batch)
    for name in ("hidden", "logits", "vad"):
        assert torch.equal(getattr(closed, name), getattr(expected, name)), name
        assert not torch.allclose(getattr(opened, name), getattr(closed, name), rtol=0, atol=1e-2), name


@torch.no_grad()
def test_heads_change_no_other_outputs(make, batches):
    heads = {"vad__sentence": True, "contrastive__enabled": True}
    captioner, bare = open_up(make(heads)), make(dict.fromkeys(heads, False))
    state = captioner.state_dict()
    bare.load_state_dict({name: state[name] for name in bare.state_dict()})
    full, less = captioner(batches["emoscribe"]), bare(batches["emoscribe"])
    assert torch.equal(full.hidden, less.hidden) and torch.equal(full.logits, less.logits)
    assert full.vad_sentence is not None and full.contrastive is not None
    assert less.vad_sentence is None and less.contrastive is None
