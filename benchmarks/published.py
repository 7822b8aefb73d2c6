"""The published systems' generation loops as plain code, for benchmarks.generation to compare with.

Re-built after the two systems' code, with this project's weights and without its fast paths:

- SEVLM (arXiv 2403.11150): 25 greedy steps for a batch. Each step runs GPT-2 over the whole text again, recomputes keys
  and values of the cross-attention to 196 patches, and looks up and encodes the VAD of every token again. SEVLM's
  part-of-speech tagger and WordNet lemmatizer are left out, which makes it faster than it is.
- Perceiver-Resampler-XAttn-Captioning: one image at a time, greedy or beam 5 with Python lists of hypotheses. Each step
  runs GPT-2 over visual prefix and text again, and recomputes keys and values of the cross-attention to 64 latents.

Both compute logits of all positions and use the last; attention is matrix product, softmax, matrix product.
Axes: N texts or beams, S positions, D width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from model.blocks import ConditionedBlock, InnerCrossAttention
from model.captioner import Captioner
from model.gated_xattn import GatedCrossAttention
from model.sevlm import EMOTION_TOKENS, SevlmCaptioner

MASKED = -10000.0


@torch.no_grad()
def sevlm_greedy(
    captioner: SevlmCaptioner,
    patches: Tensor,
    prompt: Sequence[int],
    *,
    because: int,
    steps: int,
    pieces: Sequence[str],
    lexicon: Mapping[str, Sequence[float]],
) -> list[list[int]]:
    """patches (N, P, D) of the encoder; pieces: text of each token; lexicon: word → VAD."""
    texts = [list(prompt) for _ in range(len(patches))]
    segments = [[0] * len(prompt) for _ in range(len(patches))]
    transformer, device = captioner.language.lm.transformer, patches.device
    patches = patches.contiguous()
    for _ in range(steps):
        ids, segment = torch.tensor(texts, device=device), torch.tensor(segments, device=device)
        vad = torch.tensor(
            [[lexicon.get(pieces[token].lstrip(), (0.0, 0.0, 0.0)) for token in text] for text in texts], device=device
        )
        places = torch.arange(ids.shape[1], device=device)
        hidden = transformer.wte(ids) + transformer.wpe(places) + transformer.wte(captioner.segment_ids[segment])
        features = captioner.vad_encoder(vad, None)
        fused = captioner.fusion.linear(torch.cat([hidden, features.to(hidden.dtype)], dim=-1))
        hidden = torch.cat([hidden[:, :EMOTION_TOKENS], fused[:, EMOTION_TOKENS:]], dim=1)
        tokens = _logits(captioner, hidden, lambda block, h: _inner(block, h, patches)).argmax(dim=-1)
        for text, said, token in zip(texts, segments, tokens.tolist(), strict=True):
            text.append(token)
            said.append(int(said[-1] or token == because))
    return [text[len(prompt) :] for text in texts]


@torch.no_grad()
def perceiver_beam(
    captioner: Captioner, prefix: Tensor, latents: Tensor, prompt: Sequence[int], *, said: int, steps: int, width: int
) -> list[int]:
    """Return the tokens for one image, by beam search of this width (1: greedy), `steps` tokens in every hypothesis.

    Args:
        prefix: (1, T, D); latents: (1, Q, Dv); said: tokens of the prompt that belong to the explanation.
    """
    beams: list[tuple[float, list[int]]] = [(0.0, list(prompt))]
    for _ in range(steps):
        texts = [text for _, text in beams]
        rows = (prefix.expand(len(texts), -1, -1), latents.expand(len(texts), -1, -1))
        log_probs = _next(captioner, *rows, texts, len(prompt) - said).float().log_softmax(dim=-1)
        grown = []
        for (score, text), row in zip(beams, log_probs, strict=True):
            best = row.topk(width)
            grown += [
                (score + value, [*text, token])
                for value, token in zip(best.values.tolist(), best.indices.tolist(), strict=True)
            ]
        beams = sorted(grown, key=lambda beam: beam[0] / len(beam[1]), reverse=True)[:width]
    return beams[0][1][len(prompt) :]


def _next(captioner: Captioner, prefix: Tensor, latents: Tensor, texts: list[list[int]], emotion_tokens: int) -> Tensor:
    """Logits (N, V) after the texts, all of one length."""
    transformer = captioner.language.lm.transformer
    ids = torch.tensor(texts, device=prefix.device)
    words = transformer.wte(ids)
    if captioner.segments is not None:
        words = words + captioner.segments((torch.arange(ids.shape[1], device=ids.device) >= emotion_tokens).long())
    hidden = torch.cat([prefix.to(words.dtype), words], dim=1)
    hidden = hidden + transformer.wpe(torch.arange(hidden.shape[1], device=ids.device))
    return _logits(captioner, hidden, lambda block, h: _gated(block, h, latents))


def _logits(captioner: Captioner, hidden: Tensor, block: Callable[[ConditionedBlock, Tensor], Tensor]) -> Tensor:
    for conditioned in captioner.language.blocks:
        hidden = block(conditioned, hidden)
    return captioner.language.logits(captioner.language.lm.transformer.ln_f(hidden))[:, -1]


def _inner(conditioned: ConditionedBlock, hidden: Tensor, patches: Tensor) -> Tensor:
    """SEVLM's block: self-attention, cross-attention, MLP."""
    block = conditioned.lm_block
    hidden = _attended(block, hidden)
    cross: InnerCrossAttention = block.crossattention
    queries = cross.q_attn(block.ln_cross_attn(hidden))
    keys, values = cross.c_attn(patches).chunk(2, dim=-1)
    hidden = hidden + cross.c_proj(_attention(queries, keys, values, cross.heads))
    return hidden + block.mlp(block.ln_2(hidden))


def _gated(conditioned: ConditionedBlock, hidden: Tensor, latents: Tensor) -> Tensor:
    """The perceiver captioner's block: gated cross-attention, then GPT-2's own."""
    gated: GatedCrossAttention | None = conditioned.xattn_block
    if gated is not None:
        attention = gated.attn
        queries = attention.to_q(attention.layer_norm(hidden))
        keys, values = attention.to_kv(latents).chunk(2, dim=-1)
        seen = attention.to_out(_attention(queries, keys, values, attention.heads))
        hidden = hidden + gated.alpha_attn.tanh() * seen
        hidden = hidden + gated.alpha_ffw.tanh() * gated.ffw(hidden)
    block = conditioned.lm_block
    hidden = _attended(block, hidden)
    return hidden + block.mlp(block.ln_2(hidden))


def _attended(block: nn.Module, hidden: Tensor) -> Tensor:
    queries, keys, values = block.attn.c_attn(block.ln_1(hidden)).chunk(3, dim=-1)
    return hidden + block.attn.c_proj(_attention(queries, keys, values, block.attn.num_heads, causal=True))


def _attention(queries: Tensor, keys: Tensor, values: Tensor, heads: int, *, causal: bool = False) -> Tensor:
    """Three (N, S, h·d) → (N, S, h·d)."""
    queries, keys, values = (x.unflatten(2, (heads, -1)).transpose(1, 2) for x in (queries, keys, values))
    scores = queries @ keys.transpose(2, 3) / math.sqrt(queries.shape[-1])
    if causal:
        earlier = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        scores = torch.where(earlier, scores, torch.full_like(scores, MASKED))
    return (scores.softmax(dim=-1) @ values).transpose(1, 2).flatten(2)
