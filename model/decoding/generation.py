"""Batched text generation: greedy, nucleus (Holtzman et al., 2020) and beam search.

transformers' `generate` supports neither the VAD of the words nor the visual prefix. For a plain GPT-2 the tokens are
the same, which the tests check. Axes: N texts, V vocabulary.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from common.errors import UserError
from model.captioner import Captioner, Visual
from model.decoding.beam import GeneratedText, beam_search, check_every, worth_dropping
from model.decoding.reader import GuidedReader, Reader, WordVad, prompt_text
from model.decoding.transformers_reader import cached_reader

USUAL_LENGTH = 32  # initial capacity of the cache, in tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoding:
    """Decoding settings: see trainer.test in config.yaml."""

    strategy: str = "greedy"
    max_length: int = 100  # new tokens
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int | None = None
    beam_width: int = 1
    guidance: float = 0.0  # against the network without the picture; 0 = none
    seed: int = 0
    use_cache: bool = True  # False recomputes everything at each token: slow, for reference

    @property
    def width(self) -> int:
        """Rows per text."""
        return self.beam_width if self.strategy == "beam" else 1


@torch.no_grad()
def generate(
    captioner: Captioner,
    visual: Visual,
    prompts: Sequence[Sequence[int]],
    *,
    explanation_tokens: Sequence[int],
    eos_id: int,
    vad: WordVad,
    decoding: Decoding,
    keys: Sequence[str] | None = None,
    switch: int | None = None,
) -> list[GeneratedText]:
    """Continue every prompt until <eos> or `decoding.max_length` new tokens.

    Args:
        visual: one row per prompt.
        prompts: token ids, of any lengths.
        explanation_tokens: see prompt_text.
        keys: a name per row; name and seed determine its random numbers (nucleus), independently of the batch.
        switch: token that begins the explanation if the prompt has not reached it.

    Raises:
        UserError: prompt and text together exceed the positions of the language model, or an unknown strategy.
    """
    if not prompts:
        return []
    needed = visual.prefix.shape[1] + max(map(len, prompts)) + decoding.max_length
    if needed > captioner.language.max_positions:
        raise UserError(
            f"trainer.test.max_length={decoding.max_length} needs {needed} positions, but this language model has "
            f"{captioner.language.max_positions}: lower it by {needed - captioner.language.max_positions}"
        )
    device = visual.prefix.device
    prompt = prompt_text(prompts, explanation_tokens, vad, device)
    own = {"width": decoding.width, "switch": switch}
    kind = Reader
    if decoding.use_cache and captioner.causal:
        kind, own["room"] = cached_reader(captioner), min(decoding.max_length, USUAL_LENGTH)
    views = [visual, visual.without_picture()] if decoding.guidance else [visual]
    readers = [kind(captioner, view, prompt, vad.start(prompts, device), **own) for view in views]
    reader = GuidedReader(*readers, guidance=decoding.guidance) if decoding.guidance else readers[0]
    if decoding.strategy == "beam":
        return beam_search(reader, eos_id=eos_id, width=decoding.width, max_length=decoding.max_length)
    if decoding.strategy == "greedy":
        return _one_path(reader, eos_id, decoding, None)
    if decoding.strategy == "nucleus":
        sampler = _Nucleus(decoding, keys or [str(i) for i in range(len(prompts))], device)
        return _one_path(reader, eos_id, decoding, sampler)
    raise UserError(f"trainer.test.decoding_strategy={decoding.strategy!r} is not one of greedy, nucleus, beam")


def _one_path(
    reader: Reader | GuidedReader, eos_id: int, decoding: Decoding, sampler: _Nucleus | None
) -> list[GeneratedText]:
    """Generate one token per row and step; ended rows are removed once that saves time."""
    logits = reader.start()
    count, device = len(logits), logits.device
    tokens = torch.full((count, decoding.max_length), eos_id, device=device)
    total = logits.new_zeros(count)
    rows = torch.arange(count, device=device)  # not removed yet
    ended = torch.zeros(count, dtype=torch.bool, device=device)
    for step in range(decoding.max_length):
        token = logits.argmax(dim=-1) if sampler is None else sampler(logits, step)
        token = token.masked_fill(ended, eos_id)
        log_prob = logits.gather(1, token[:, None]).squeeze(1) - logits.logsumexp(dim=1)
        total[rows] += log_prob.masked_fill(ended, 0.0)
        tokens[rows, step] = token
        ended = ended | (token == eos_id)
        if step + 1 == decoding.max_length:
            break
        if (step + 1) % check_every(device) == 0:
            going = int(ended.logical_not().sum())
            if not going:
                break
            if worth_dropping(going, len(rows)):
                kept = ended.logical_not().nonzero().squeeze(1)
                reader.keep(kept)
                if sampler is not None:
                    sampler.draws = sampler.draws[kept]
                rows, token, ended = rows[kept], token[kept], ended[kept]
        logits = reader.step(token)
    return [_written(row, eos_id, score) for row, score in zip(tokens.tolist(), total.tolist(), strict=True)]


def _written(row: list[int], eos_id: int, total: float) -> GeneratedText:
    text = row[: row.index(eos_id)] if eos_id in row else row
    return GeneratedText(text, total / min(len(text) + 1, len(row)))


class _Nucleus:
    """Sample from the nucleus by inverse transform; the random number depends only on seed, row key and step."""

    def __init__(self, decoding: Decoding, keys: Sequence[str], device: torch.device) -> None:
        self.warpers = [TemperatureLogitsWarper(float(decoding.temperature))]
        if decoding.top_k:
            self.warpers.append(TopKLogitsWarper(int(decoding.top_k)))
        if decoding.top_p < 1.0:
            self.warpers.append(TopPLogitsWarper(float(decoding.top_p)))
        draws = []
        for key in keys:
            seed = int.from_bytes(hashlib.blake2b(f"{decoding.seed}/{key}".encode(), digest_size=7).digest(), "big")
            draws.append(torch.rand(decoding.max_length, generator=torch.Generator().manual_seed(seed)))
        self.draws = torch.stack(draws).to(device)

    def __call__(self, logits: Tensor, step: int) -> Tensor:
        for warper in self.warpers:
            logits = warper(None, logits)
        cumulative = logits.softmax(dim=-1).cumsum(dim=-1)
        drawn = self.draws[:, step, None] * cumulative[:, -1:]
        return torch.searchsorted(cumulative, drawn, right=True).squeeze(1).clamp(max=logits.shape[1] - 1)
