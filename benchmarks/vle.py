"""Seconds of VLE's answers at 576 px next to the published way of computing them, and to ViLT and BLIP-VQA.

    python -m benchmarks.vle [--images 16] [--repeats 3] [--quick] [--no-others] [--no-memory]

Base sizes, random weights, fp32; questions of 9 to 12 tokens. The published way, re-built here in plain torch with the
same weights: each question with its own picture, one at a time; attention as matrix product, softmax, matrix product.
ViLT and BLIP-VQA are transformers' classes at the picture size of their published checkpoints (384 px); BLIP writes
its answer with a decoder, here five tokens of it. Memory is measured in a process for each way, of a batch of --images
pictures with a question each: the largest single tensor, and how much the peak grows.
"""

from __future__ import annotations

import argparse
import math
import subprocess
import sys
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import (
    BlipConfig,
    BlipForQuestionAnswering,
    PreTrainedModel,
    ViltConfig,
    ViltForQuestionAnswering,
)

from benchmarks.real_size import arguments, interleaved, print_provenance, print_table
from model.vle import VLEConfig, VLEForVQA, VLEModelOutput
from trainer.loop.tracker import peak_memory

ANSWERS, TOKENS, QUESTIONS, BLIP_TOKENS = 3129, 12, 4, 5
GOALS = {  # what is measured: name of the work, of the work that it is divided by, goal
    "one question, published way / ours": ("published, one question", "ours, one question", "≥ 1.3"),
    "four questions on one picture / four single ones": ("ours, four on one picture", "ours, four single", "≤ 0.6"),
    "four questions on one picture, published way / ours": (
        "published, four on one picture", "ours, four on one picture", "",
    ),
    "a batch of pictures, published way / ours": ("published, batch", "ours, batch", ""),
}  # fmt: skip


class Sizes(NamedTuple):
    """Sizes of VLE, and of the vision and text parts of the others."""

    pixels: int = 576
    pixels_of_others: int = 384
    width: int = 768
    heads: int = 12
    inner: int = 3072
    text_layers: int = 12
    vision_layers: int = 11
    fusion_layers: int = 6

    @property
    def layer(self) -> dict[str, int]:
        return {"hidden_size": self.width, "num_attention_heads": self.heads, "intermediate_size": self.inner}


QUICK = Sizes(pixels=96, pixels_of_others=64, width=64, heads=4, inner=128, text_layers=2, vision_layers=2,
              fusion_layers=2)  # fmt: skip


def build_vle(sizes: Sizes, device: torch.device) -> VLEForVQA:
    torch.manual_seed(0)
    config = VLEConfig(
        text_config={**sizes.layer, "num_hidden_layers": sizes.text_layers},
        vision_config={**sizes.layer, "num_hidden_layers": sizes.vision_layers, "image_size": sizes.pixels},
        **sizes.layer,
        num_hidden_layers=sizes.fusion_layers,
        id2label=[str(i) for i in range(ANSWERS)],
    )
    return VLEForVQA(config).eval().to(device)


def build_others(sizes: Sizes, device: torch.device) -> tuple[PreTrainedModel, PreTrainedModel]:
    """Return ViLT and BLIP-VQA of the same width, with as many layers as the text model."""
    torch.manual_seed(0)
    layer, pixels = {**sizes.layer, "num_hidden_layers": sizes.text_layers}, sizes.pixels_of_others
    vilt = ViltForQuestionAnswering(ViltConfig(**layer, image_size=pixels, num_labels=ANSWERS))
    blip = BlipForQuestionAnswering(
        BlipConfig(
            vision_config={**layer, "image_size": pixels},
            text_config={**layer, "encoder_hidden_size": sizes.width, "projection_dim": sizes.width},
        )
    )
    return vilt.eval().to(device), blip.eval().to(device)


def questions(count: int, device: torch.device) -> dict[str, Tensor]:
    """Return questions of 12, 11, 10, 9, 12, … tokens, padded."""
    ids = torch.randint(4, 1000, (count, TOKENS), generator=torch.Generator().manual_seed(1))
    mask = (torch.arange(TOKENS)[None] < TOKENS - torch.arange(count)[:, None] % 4).long()
    return {"input_ids": (ids * mask).to(device), "attention_mask": mask.to(device)}


def pictures(count: int, size: int, device: torch.device) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(2)).to(device)


def _eager(query: Tensor, key: Tensor, value: Tensor, heads: int, mask: Tensor | None = None) -> Tensor:
    """Attention as published: all scores, softmax, product. (B, L, D), (B, S, D), (B, S, D) → (B, L, D)"""
    query, key, value = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (query, key, value))
    scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
    if mask is not None:
        scores = scores + mask
    return (scores.softmax(dim=-1) @ value).transpose(1, 2).flatten(2)


def _published_image(model: VLEForVQA, pixels: Tensor) -> Tensor:
    tower = model.vle.vision_model.vision_model
    x = tower.pre_layrnorm(tower.embeddings(pixels))
    for layer in tower.encoder.layers:
        attention, inner = layer.self_attn, layer.layer_norm1(x)
        query, key, value = attention.q_proj(inner), attention.k_proj(inner), attention.v_proj(inner)
        x = x + attention.out_proj(_eager(query, key, value, attention.num_heads))
        x = x + layer.mlp(layer.layer_norm2(x))
    return tower.post_layernorm(x)


def _published_sublayer(block: nn.Module, x: Tensor, other: Tensor, mask: Tensor, heads: int) -> Tensor:
    projections = block.self
    mixed = _eager(projections.query(x), projections.key(other), projections.value(other), heads, mask)
    return block.output(mixed, x)


def published_logits(model: VLEForVQA, input_ids: Tensor, attention_mask: Tensor, pixel_values: Tensor) -> Tensor:
    """Return logits (B, answers), computed as published with the weights of `model`."""
    vle, heads = model.vle, model.config.num_attention_heads
    text = vle.text_projection_layer(vle.get_text_features(input_ids, attention_mask))
    image = vle.image_projection_layer(_published_image(model, pixel_values))
    image_mask = torch.ones(image.shape[:2], device=image.device)
    masks = [(1.0 - m[:, None, None, :].to(text.dtype)) * torch.finfo(text.dtype).min for m in
             (attention_mask, image_mask)]  # fmt: skip
    types = vle.token_type_embeddings.weight
    streams = [text + types[0], image + types[1]]
    for layers in zip(vle.cross_modal_text_layers, vle.cross_modal_image_layers, strict=True):
        before = streams
        streams = []
        for side, layer in enumerate(layers):
            x = _published_sublayer(layer.attention, before[side], before[side], masks[side], heads)
            x = _published_sublayer(layer.crossattention, x, before[1 - side], masks[1 - side], heads)
            streams.append(layer.output(layer.intermediate(x), x))
    poolers = vle.cross_modal_text_pooler, vle.cross_modal_image_pooler
    pooled = torch.cat([pooler(x) for pooler, x in zip(poolers, streams, strict=True)], dim=-1)
    return model.score(VLEModelOutput(pooler_output=pooled, text_embeds=streams[0], image_embeds=streams[1]))


def one_by_one(answer: Callable[..., Tensor], inputs: Mapping[str, Tensor]) -> Tensor:
    """Return the answers of a way that takes one question and its picture at a time; one picture serves for all."""
    count, pixels = len(inputs["input_ids"]), inputs["pixel_values"]
    rows = ({name: value[i : i + 1] for name, value in inputs.items() if name != "pixel_values"} for i in range(count))
    return torch.cat([answer(**row, pixel_values=pixels[i % len(pixels)][None]) for i, row in enumerate(rows)])


def vle_works(sizes: Sizes, batch: int, device: torch.device) -> dict[str, Callable[[], Tensor]]:
    model = build_vle(sizes, device)
    one = {**questions(1, device), "pixel_values": pictures(1, sizes.pixels, device)}
    four = {**questions(QUESTIONS, device), "pixel_values": one["pixel_values"]}
    many = {**questions(batch, device), "pixel_values": pictures(batch, sizes.pixels, device)}
    same = torch.zeros(QUESTIONS, dtype=torch.long, device=device)

    def ours(**inputs: Tensor) -> Tensor:
        return model(**inputs).logits

    def published(**inputs: Tensor) -> Tensor:
        return published_logits(model, **inputs)

    return {
        "published, one question": lambda: published(**one),
        "ours, one question": lambda: ours(**one),
        "published, four on one picture": lambda: one_by_one(published, four),
        "ours, four single": lambda: one_by_one(ours, four),
        "ours, four on one picture": lambda: ours(**four, image_index=same),
        "published, batch": lambda: one_by_one(published, many),
        "ours, batch": lambda: ours(**many),
    }


def other_works(sizes: Sizes, device: torch.device) -> dict[str, Callable[[], Tensor]]:
    vilt, blip = build_others(sizes, device)
    inputs = {**questions(1, device), "pixel_values": pictures(1, sizes.pixels_of_others, device)}
    length = {"max_new_tokens": BLIP_TOKENS, "min_new_tokens": BLIP_TOKENS, "do_sample": False}
    return {
        f"ViLT, one question, {sizes.pixels_of_others} px": lambda: vilt(**inputs).logits,
        f"BLIP-VQA, one question, {sizes.pixels_of_others} px": lambda: blip.generate(**inputs, **length),
    }


def check_equal(works: Mapping[str, Callable[[], Tensor]]) -> None:
    """Raise AssertionError if the ways do not give the same logits."""
    single = works["ours, four single"]()
    for name in ("published, four on one picture", "ours, four on one picture"):
        torch.testing.assert_close(works[name](), single, atol=1e-3, rtol=0)


class LargestTensor(TorchDispatchMode):
    """Note bytes of the largest tensor that an operation returns, composite ones taken apart."""

    largest = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        sizes = (leaf.numel() * leaf.element_size() for leaf in tree_leaves(result) if isinstance(leaf, Tensor))
        self.largest = max(self.largest, *sizes, 0)
        return result


def print_memory(way: str, sizes: Sizes, batch: int, device: torch.device) -> None:
    """Print bytes of the largest tensor, and by how much the peak grows."""
    model = build_vle(sizes, device)
    inputs = {**questions(batch, device), "pixel_values": pictures(batch, sizes.pixels, device)}
    before = peak_memory(device)
    with LargestTensor() as seen:
        published_logits(model, **inputs) if way == "published" else model(**inputs)
    print(seen.largest, peak_memory(device) - before)


def memory_of(way: str, options: argparse.Namespace) -> list[int]:
    """Return what print_memory prints, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.vle", "--alone", way, "--images", str(options.images)]
    command += ["--device", options.device, *(["--quick"] if options.quick else [])]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return [int(number) for number in done.stdout.split()]


def report(found: Mapping[str, float], memory: Mapping[str, list[int]], sizes: Sizes, batch: int) -> None:
    unit = found["ours, one question"]
    print_table(("work", "s", "× ours, one question"), ([name, value, value / unit] for name, value in found.items()))
    rows = ([name, found[above] / found[below], goal] for name, (above, below, goal) in GOALS.items())
    print_table(("ratio", "measured", "goal"), rows)
    tokens = (sizes.pixels // 16) ** 2 + 1
    matrix = batch * sizes.heads * tokens**2 * 4
    print(f"\nA full attention matrix of {batch} pictures with {tokens} tokens: {matrix / 1e9:.3f} GB")
    if memory:
        rows = ([way, largest / 1e9, grown / 1e9] for way, (largest, grown) in memory.items())
        print_table((f"batch of {batch}", "largest tensor, GB", "growth of the peak, GB"), rows)


@torch.no_grad()
def main() -> int:
    parser = arguments("vle", __doc__)
    parser.add_argument("--quick", action="store_true", help="small networks and pictures, to see that it runs")
    parser.add_argument("--others", action=argparse.BooleanOptionalAction, default=True, help="run ViLT and BLIP too")
    parser.add_argument("--memory", action=argparse.BooleanOptionalAction, default=True, help="measure peak memory")
    parser.add_argument("--alone", choices=["published", "ours"], help=argparse.SUPPRESS)
    parser.set_defaults(images=16)
    options = parser.parse_args()
    device, sizes = torch.device(options.device), QUICK if options.quick else Sizes()
    if options.alone:
        print_memory(options.alone, sizes, options.images, device)
        return 0
    memory = {way: memory_of(way, options) for way in ("published", "ours")} if options.memory else {}
    works = vle_works(sizes, options.images, device)
    check_equal(works)
    works |= other_works(sizes, device) if options.others else {}
    found = interleaved(works, options.repeats, device)
    print_provenance(options)
    report(found, memory, sizes, options.images)
    return 0


if __name__ == "__main__":
    sys.exit(main())
