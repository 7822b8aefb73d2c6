"""Perceiver-Resampler-XAttn-Captioning from its formulas alone.

The text side, from the vision encoder's tokens on, in plain torch on a raw state dict with the published names; it uses
neither this project's modules nor transformers. No dropout; GPT-2's heads have a width of 64.

Axes: B pictures of one text each, T frames, P tokens of a frame, Q latents, L tokens of a text, D width, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

State = dict[str, Tensor]
GPT2 = "text_generator.lm.transformer"


def layer_norm(x: Tensor, state: State, name: str) -> Tensor:
    centred = x - x.mean(dim=-1, keepdim=True)
    scale = (centred.square().mean(dim=-1, keepdim=True) + 1e-5).sqrt()
    return centred / scale * state[f"{name}.weight"] + state[f"{name}.bias"]


def linear(x: Tensor, state: State, name: str) -> Tensor:
    out = x @ state[f"{name}.weight"].T
    return out + state[f"{name}.bias"] if f"{name}.bias" in state else out


def conv1d(x: Tensor, state: State, name: str) -> Tensor:
    return x @ state[f"{name}.weight"] + state[f"{name}.bias"]


ACTIVATIONS = {
    "gelu": lambda x: 0.5 * x * (1 + torch.erf(x / math.sqrt(2))),
    "relu": lambda x: x.clamp(min=0),
    "sqrelu": lambda x: x.clamp(min=0).square(),
}


def gelu_new(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def attend(queries: Tensor, keys: Tensor, values: Tensor, *, heads: int, causal: bool = False) -> Tensor:
    """(B, L, h·d), twice (B, K, h·d) → (B, L, h·d)."""
    queries, keys, values = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (queries, keys, values))
    scores = queries @ keys.transpose(-1, -2) / math.sqrt(queries.shape[-1])
    if causal:
        scores = scores.masked_fill(torch.ones(scores.shape[-2:]).triu(1).bool(), -math.inf)
    return (scores.softmax(dim=-1) @ values).transpose(1, 2).flatten(2)


def feed_forward(x: Tensor, state: State, name: str, activation: str) -> Tensor:
    return linear(
        ACTIVATIONS[activation](linear(layer_norm(x, state, f"{name}.0"), state, f"{name}.1")), state, f"{name}.3"
    )


def prefix(state: State, tokens: Tensor, config: Mapping[str, Any]) -> Tensor:
    """tokens (B, T, P, D) → one vector for each frame (B, T, D)."""
    mean = tokens.mean(dim=2)
    if not config["enable_mapper"]:
        return mean
    if config["mapper"]["mapper_type"] == "mlp":
        return linear(linear(mean, state, "mapper._mapper.0").tanh(), state, "mapper._mapper.2")
    x = mean
    for i in range(config["mapper"]["depth"]):
        at = f"mapper._mapper.layers.{i}"
        mixed = x @ state[f"{at}.self_attn.in_proj_weight"].T + state[f"{at}.self_attn.in_proj_bias"]
        seen = attend(*mixed.chunk(3, dim=-1), heads=config["mapper"]["heads"])
        x = layer_norm(x + linear(seen, state, f"{at}.self_attn.out_proj"), state, f"{at}.norm1")
        inner = linear(x, state, f"{at}.linear1").clamp(min=0)
        x = layer_norm(x + linear(inner, state, f"{at}.linear2"), state, f"{at}.norm2")
    return x


def latents(state: State, tokens: Tensor, config: Mapping[str, Any]) -> Tensor:
    """tokens (B, T, P, D) → (B, Q, D)."""
    settings = config["resampler"]
    media = (tokens + state["resampler.time_pos_emb"][: tokens.shape[1]]).flatten(1, 2)
    x = state["resampler.latents"].expand(len(tokens), -1, -1)
    for i in range(settings["depth"]):
        at = f"resampler.layers.{i}.0"
        normed = layer_norm(x, state, f"{at}.norm_latents")
        context = torch.cat([layer_norm(media, state, f"{at}.norm_media"), normed], dim=1)
        keys, values = linear(context, state, f"{at}.to_k"), linear(context, state, f"{at}.to_v")
        seen = attend(linear(normed, state, f"{at}.to_q"), keys, values, heads=settings["heads"])
        x = x + linear(seen, state, f"{at}.to_out")
        x = x + feed_forward(x, state, f"resampler.layers.{i}.1", settings["activation"])
    return layer_norm(x, state, "resampler.norm")


def gated_cross_attention(y: Tensor, visual: Tensor, state: State, name: str, settings: Mapping[str, Any]) -> Tensor:
    queries = linear(layer_norm(y, state, f"{name}.attn.layer_norm"), state, f"{name}.attn.to_q")
    keys, values = linear(visual, state, f"{name}.attn.to_kv").chunk(2, dim=-1)
    seen = linear(attend(queries, keys, values, heads=settings["heads"]), state, f"{name}.attn.to_out")
    y = y + state[f"{name}.alpha_attn"].tanh() * seen
    return y + state[f"{name}.alpha_ffw"].tanh() * feed_forward(y, state, f"{name}.ffw", settings["activation"])


def gpt2_block(x: Tensor, state: State, name: str, heads: int) -> Tensor:
    mixed = conv1d(layer_norm(x, state, f"{name}.ln_1"), state, f"{name}.attn.c_attn").chunk(3, dim=-1)
    x = x + conv1d(attend(*mixed, heads=heads, causal=True), state, f"{name}.attn.c_proj")
    inner = gelu_new(conv1d(layer_norm(x, state, f"{name}.ln_2"), state, f"{name}.mlp.c_fc"))
    return x + conv1d(inner, state, f"{name}.mlp.c_proj")


def logits(state: State, tokens: Tensor, ids: Tensor, config: Mapping[str, Any]) -> Tensor:
    """tokens (B, T, P, D), ids (B, L) → logits (B, L, V) of the token after each."""
    words = state[f"{GPT2}.wte.weight"]
    frames = prefix(state, tokens, config)
    x = torch.cat([frames, words[ids]], dim=1)
    x = x + state[f"{GPT2}.wpe.weight"][: x.shape[1]]
    bridged = config["enable_resampler_xattn"]
    visual = latents(state, tokens, config) if bridged else None
    xattn, i = config["text"]["xattn"], 0
    while any(name.startswith(f"{GPT2}.h.{i}.") for name in state):
        at = f"{GPT2}.h.{i}"
        if bridged and i % xattn["freq"] == 0:
            x = gated_cross_attention(x, visual, state, f"{at}.xattn_block", xattn)
            at = f"{at}.lm_block"
        x = gpt2_block(x, state, at, heads=x.shape[-1] // 64)
        i += 1
    return (layer_norm(x, state, f"{GPT2}.ln_f") @ words.T)[:, frames.shape[1] :]


def caption_loss(scores: Tensor, ids: Tensor, lengths: list[int]) -> Tensor:
    """Mean cross-entropy of all tokens of the texts except the first, without padding.

    The original, by mistake, also excluded every token of id 0, which is "!" in GPT-2, and included the first token.
    """
    losses = []
    for row, length in enumerate(lengths):
        log_p = scores[row, : length - 1].log_softmax(dim=-1)
        losses.append(-log_p[torch.arange(length - 1), ids[row, 1:length]])
    return torch.cat(losses).mean()
