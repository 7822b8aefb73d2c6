"""A training step and captions with SmolLM2-135M, next to GPT-2 small and to transformers' own generate.

    python -m benchmarks.language [--images 16] [--repeats 3]

Random weights, every part on, ViT-B/16's tokens as the feature cache delivers them; gated cross-attention in front of
every third block (SmolLM2 has 30) or, for GPT-2, of every block. Two texts of 30 tokens to an image; captions have 25
new tokens. `generate` continues as many tokens as prompt and visual prefix have, without pictures.
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import nn

from benchmarks.real_size import (
    BEAM,
    GREEDY,
    NEW_TOKENS,
    NO_LEXICON,
    PROMPT,
    VOCABULARY,
    arguments,
    build,
    interleaved,
    make_batch,
    make_optimizer,
    print_provenance,
    print_table,
    training_step,
    with_tokens,
)
from data.schema import Batch
from model.captioner import Captioner
from model.decoding.generation import Decoding, generate
from model.decoding.packed import optimize_for_generation
from model.weights.causal_lm import build_causal_lm

SMOLLM2 = {"model_type": "llama", "hidden_size": 576, "num_hidden_layers": 30, "num_attention_heads": 9}
SMOLLM2 |= {"num_key_value_heads": 3, "intermediate_size": 1536, "max_position_embeddings": 8192}
SMOLLM2 |= {"tie_word_embeddings": True}
MODELS = {"GPT-2 small": ({}, 1), "SmolLM2-135M": (SMOLLM2, 3)}
DECODINGS = {"greedy": GREEDY, "beam 5": BEAM}
PLAIN = "generate of the plain SmolLM2-135M"


def network(config: dict, freq: int) -> Captioner:
    captioner = build({"text": {"config": config, "xattn": {"freq": freq}}})
    for name, parameter in captioner.named_parameters():
        if name.endswith("to_out.weight"):
            nn.init.normal_(parameter, std=0.02)  # zero at the start
    return captioner


def works(options: argparse.Namespace, device: torch.device) -> Iterator[tuple[str, Callable[[], object]]]:
    for name, (config, freq) in MODELS.items():
        captioner = network(config, freq).to(device)
        batch = with_tokens(captioner, make_batch(options.images, device))
        step = partial(training_step, captioner, batch, make_optimizer(captioner, device))
        yield f"training step, {name}", torch.enable_grad()(step)
        ready = copy.deepcopy(captioner)
        optimize_for_generation(ready, bf16=False)
        for label, decoding in DECODINGS.items():
            yield f"captions, {label}, {name}", partial(write, copy.deepcopy(captioner), batch, decoding)
            yield f"captions, {label}, {name}, packed weights as in predict", partial(write, ready, batch, decoding)
    lm = build_causal_lm(pretrained_name=None, config=SMOLLM2, vocab_size=VOCABULARY, eos_id=0).eval().to(device)
    ids = torch.tensor([[*PROMPT[:1], *PROMPT]] * options.images, device=device)
    settings = {"attention_mask": torch.ones_like(ids), "do_sample": False, "pad_token_id": 0}
    settings |= {"max_new_tokens": NEW_TOKENS, "min_new_tokens": NEW_TOKENS}
    for label, decoding in DECODINGS.items():
        yield f"captions, {label}, {PLAIN}", partial(lm.generate, ids, num_beams=decoding.beam_width, **settings)


def write(captioner: Captioner, batch: Batch, decoding: Decoding) -> None:
    captioner.eval()
    visual, count = captioner.look(batch.frames, batch.frame_mask, batch.tokens), len(batch.ids)
    generate(
        captioner, visual, [PROMPT] * count, explanation_tokens=[1] * count, eos_id=-1, vad=NO_LEXICON,
        decoding=decoding,
    )  # fmt: skip


@torch.no_grad()
def main() -> int:
    parser = arguments("language", __doc__)
    parser.set_defaults(images=16)
    options = parser.parse_args()
    device = torch.device(options.device)
    found = interleaved(dict(works(options, device)), options.repeats, device)
    print_provenance(options)
    base = {name: f"captions, {label}, {PLAIN}" for name in found for label in DECODINGS if f", {label}," in name}
    of = {name: value / found[base.get(name, "training step, GPT-2 small")] for name, value in found.items()}
    rows = ([name, value / options.images, of[name]] for name, value in found.items())
    print_table(("work", "s per image", "× GPT-2 small's step, or × generate"), rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
