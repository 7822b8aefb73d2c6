"""Seconds per image of captions, next to the encoder's own, transformers' captioner and the published systems' loops.

    python -m benchmarks.generation [--images 16] [--repeats 3] [--precision fp32 bf16 int8] [--no-published]

ViT-B/16 with GPT-2 small or distilgpt2, every part on, random weights. All captions have 25 tokens, because <eos> is
out of reach. The published systems' loops are re-built in benchmarks/published.py and run with this project's weights.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import GPT2Config, VisionEncoderDecoderConfig, VisionEncoderDecoderModel, ViTConfig

from benchmarks.published import perceiver_beam, sevlm_greedy
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
    print_provenance,
    print_table,
)
from model.build import SpecialTokens
from model.captioner import Captioner
from model.decoding.generation import Decoding, generate
from model.decoding.packed import optimize_for_generation
from model.decoding.scoring import emotion_log_probs

LABELS = [[30184], [25030], [2695, 434], [14067], [8993], [16234], [3252], [25303], [1223, 2073]]  # emotions in GPT-2
SEVLM_BATCH = 8  # its time per image does not depend on it
ENCODER = "open_clip's encoder, fp32"
SEVLM = {
    "architecture": "sevlm",
    "vision": {"tokens": "patches"},
    "text": {"config": {"n_layer": 6}},
    "vad": {"fusion": "concat", "encoder": "bidirectional"},
    "contrastive": {"negatives": "auto"},
}


class Work(NamedTuple):
    images: int
    run: Callable[[], object]


def network(layers: int = 12) -> Captioner:
    """Return a captioner with GPT-2 small (12 layers) or distilgpt2 (6), its gates open."""
    captioner = build({"text": {"config": {"n_layer": layers}}}).eval()
    for name, parameter in captioner.named_parameters():
        if "alpha_" in name:  # zero at the start, which would hide the images
            nn.init.constant_(parameter, 0.5)
    return captioner


class Ours:
    """A captioner prepared as test and predict prepare it."""

    def __init__(self, captioner: Captioner, precision: str, device: torch.device) -> None:
        self.captioner = captioner.to(device)
        optimize_for_generation(self.captioner, bf16=precision == "bf16", int8=precision == "int8")

    def look(self, frames: Tensor):
        return self.captioner.look(frames, torch.ones(frames.shape[:2], dtype=torch.bool, device=frames.device))

    def write(self, visual, decoding: Decoding) -> list[list[int]]:
        count = len(visual.prefix)
        written = generate(
            self.captioner, visual, [PROMPT] * count, explanation_tokens=[1] * count, eos_id=-1, vad=NO_LEXICON,
            decoding=decoding,
        )  # fmt: skip
        return [text.tokens for text in written]

    def end_to_end(self, frames: Tensor, decoding: Decoding) -> list[list[int]]:
        """Score the nine emotions, then write the explanation."""
        visual = self.look(frames)
        emotion_log_probs(self.captioner, visual, prompt=PROMPT[:4], labels=LABELS, vad=NO_LEXICON)
        return self.write(visual, decoding)


def own_works(name: str, network: Ours, frames: Tensor) -> Iterator[tuple[str, Work]]:
    images, visual = len(frames), network.look(frames)
    yield f"encoder, {name}", Work(images, lambda: network.captioner.vision(frames))
    for label, decoding in (("greedy", GREEDY), ("beam 5", BEAM)):
        yield f"decode, {label}, {name}", Work(images, lambda d=decoding: network.write(visual, d))
        yield f"end to end, {label}, {name}", Work(images, lambda d=decoding: network.end_to_end(frames, d))


def published_works(plain: Captioner, frames: Tensor) -> Iterator[tuple[str, Work]]:
    """Yield the published loops: the perceiver captioner's for one image, SEVLM's for SEVLM_BATCH."""
    mask = torch.ones(1, 1, dtype=torch.bool, device=frames.device)
    tokens = plain.vision(frames[:1])
    seen = plain.mapper(tokens, mask), plain.resampler(tokens, mask)
    for label, width in (("greedy", 1), ("beam 5", 5)):
        run = partial(perceiver_beam, plain, *seen, PROMPT, said=1, steps=NEW_TOKENS, width=width)
        yield f"published perceiver captioner, decode, {label}", Work(1, run)
    sevlm = build(SEVLM, special=SpecialTokens(VOCABULARY, (VOCABULARY + 2, VOCABULARY + 3))).eval().to(frames.device)
    pieces = [f" w{i}" for i in range(VOCABULARY + 4)]
    lexicon = {piece.strip(): (0.1, 0.2, 0.3) for piece in pieces[::3]}
    few = frames[:SEVLM_BATCH]

    def loop() -> list[list[int]]:
        patches = sevlm.vision(few)[:, 0]
        return sevlm_greedy(
            sevlm, patches, PROMPT[:4], because=780, steps=NEW_TOKENS, pieces=pieces, lexicon=lexicon
        )  # fmt: skip

    yield "published SEVLM (distilgpt2), end to end, greedy", Work(len(few), loop)


def library_works(frames: Tensor) -> Iterator[tuple[str, Work]]:
    """Yield transformers' own captioner of these sizes: ViT-B/16 and GPT-2 with plain cross-attention."""
    config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(ViTConfig(), GPT2Config())
    captioner = VisionEncoderDecoderModel(config).eval().to(frames.device)
    options = {"min_new_tokens": NEW_TOKENS, "max_new_tokens": NEW_TOKENS, "do_sample": False}
    options |= {"decoder_start_token_id": VOCABULARY - 1, "pad_token_id": VOCABULARY - 1}
    for label, beams in (("greedy", 1), ("beam 5", 5)):
        run = partial(captioner.generate, pixel_values=frames[:, 0], num_beams=beams, **options)
        yield f"transformers' ViT-GPT2 captioner, end to end, {label}", Work(len(frames), run)


def all_works(options: argparse.Namespace, device: torch.device) -> dict[str, Work]:
    generator = torch.Generator().manual_seed(1)
    frames = torch.randn(options.images, 1, 3, 224, 224, generator=generator).to(device)
    plain = network().to(device)
    works = {ENCODER: Work(options.images, lambda: plain.vision(frames))}
    for precision in options.precision:
        works |= own_works(f"GPT-2 small, {precision}", Ours(network(), precision, device), frames)
    works |= own_works("distilgpt2, fp32", Ours(network(6), "fp32", device), frames)
    works |= library_works(frames)
    if options.published:
        works |= published_works(plain, frames)
    return works


@torch.no_grad()
def main() -> int:
    parser = arguments("generation", __doc__)
    parser.add_argument(
        "--precision", nargs="+", choices=["fp32", "bf16", "int8"], default=["fp32"], help="(%(default)s)"
    )
    parser.add_argument(
        "--published", action=argparse.BooleanOptionalAction, default=True, help="run their loops too (%(default)s)"
    )
    parser.set_defaults(images=16)
    options = parser.parse_args()
    device = torch.device(options.device)
    works = all_works(options, device)
    found = interleaved({name: work.run for name, work in works.items()}, options.repeats, device)
    per_image = {name: value / works[name].images for name, value in found.items()}
    print_provenance(options)
    rows = ([name, value, value / per_image[ENCODER]] for name, value in per_image.items())
    print_table(("work", "s per image", "× open_clip's encoder"), rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
