"""Batched text generation: greedy, nucleus (Holtzman et al., 2020) and beam search, over transformers' KV cache.

transformers' own `generate` embeds tokens by itself, so the VAD of the words and the visual prefix cannot enter it;
for a plain GPT-2 this loop gives the same tokens, which the tests check.
Axes: N texts, L prompt tokens, V vocabulary, K beams.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from transformers import Cache, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from errors import UserError
from model.beam import Written, beam_search
from model.captioner import Captioner, Text, Visual


class WordVad(Protocol):
    """VAD of words from their tokens, a function of what stands to the left only."""

    def align(self, input_ids: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
        """(L,) ids → vad (L, 3), known (L,) bool, target (L,) bool."""

    def start(self, prompts: Sequence[Sequence[int]], device: torch.device) -> WordState:
        """N rows that stand at the end of their prompts."""


class WordState(Protocol):
    """Where N growing texts stand; gives, at each token, what `align` gives of the whole text there."""

    def step(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """(N,) ids, one more for every row → vad (N, 3) and known (N,) there, on the device of the state."""

    def reorder(self, rows: Tensor) -> None:
        """Row r goes on from row rows[r]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoding:
    """How to write: see trainer.test in config.yaml."""

    strategy: str = "greedy"
    max_length: int = 100  # new tokens
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int | None = None
    beam_width: int = 1
    seed: int = 0
    use_cache: bool = True  # False recomputes everything at each token: the slow reference


def prompt_text(
    prompts: Sequence[Sequence[int]], explanation_tokens: Sequence[int], vad: WordVad, device: torch.device
) -> Text:
    """Prompts of any lengths as one batch, padded on the left so that all go on at the same column.

    Args:
        explanation_tokens: how many tokens at the end of each prompt belong to the explanation segment.
    """
    count, width = len(prompts), max(map(len, prompts))
    input_ids, segment = torch.zeros(2, count, width, dtype=torch.long)
    known, mask = torch.zeros(2, count, width, dtype=torch.bool)
    values = torch.zeros(count, width, 3)
    for i, (prompt, said) in enumerate(zip(prompts, explanation_tokens, strict=True)):
        start = width - len(prompt)
        input_ids[i, start:] = torch.tensor(prompt)
        segment[i, width - said :] = 1
        values[i, start:], known[i, start:], _ = vad.align(prompt)
        mask[i, start:] = True
    return Text(*(tensor.to(device) for tensor in (input_ids, segment, values, known, mask)))


class Reader:
    """Reads one more token for every row at a time; gives the next token's log-probabilities (N, V).

    Args:
        switch: a token that begins the explanation segment in a row whose prompt has not reached it; None = the segment
            stays that of the prompt's last token.
        use_cache: what was read is kept; a captioner that is not causal reads everything anew in any case.
    """

    def __init__(
        self,
        captioner: Captioner,
        visual: Visual,
        prompt: Text,
        words: WordState,
        *,
        switch: int | None = None,
        use_cache: bool = True,
    ) -> None:
        self.captioner, self.visual, self.words = captioner, visual, words
        self.switch = switch
        self.cache: Cache | None = captioner.language.new_cache() if use_cache and captioner.causal else None
        self.text = prompt  # with a cache: the tokens to read now; without: all of them
        self.segment = prompt.segment[:, -1]

    def start(self) -> Tensor:
        return self._log_probs()

    def step(self, tokens: Tensor) -> Tensor:
        """tokens (N,)."""
        vad, known = self.words.step(tokens)
        if self.switch is not None:
            self.segment = torch.where(tokens == self.switch, 1, self.segment)
        new, segment = tokens[:, None], self.segment[:, None]
        so_far, seen = self.text, self.text.attention_mask
        self.text = Text(
            new if self.cache is not None else torch.cat([so_far.input_ids, new], dim=1),
            segment if self.cache is not None else torch.cat([so_far.segment, segment], dim=1),
            torch.cat([so_far.vad, vad[:, None]], dim=1),
            torch.cat([so_far.vad_known, known[:, None]], dim=1),
            torch.cat([seen, seen.new_ones(len(tokens), 1)], dim=1),
        )
        return self._log_probs()

    def reorder(self, rows: Tensor) -> None:
        """Rows go on from other rows of the same image (beam search); the visual side is the same for both."""
        self.words.reorder(rows)
        self.segment = self.segment[rows]
        self.text = self.text.rows(rows)
        if self.cache is not None:
            self.cache.reorder_cache(rows)

    def _log_probs(self) -> Tensor:
        hidden = self.captioner.read(self.visual, self.text, self.cache)
        return self.captioner.language.logits(hidden[:, -1]).float().log_softmax(dim=-1)


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
) -> list[Written]:
    """Continue every prompt until <eos> or `decoding.max_length` new tokens.

    Args:
        visual: one row per prompt.
        prompts: token ids, of any lengths.
        explanation_tokens: see prompt_text.
        keys: a name for each row; with the seed it decides the row's random numbers (nucleus), whatever the batch.
        switch: the token that begins the explanation where the prompt has not reached it.

    Raises:
        UserError: prompt and text together exceed the positions of GPT-2, or an unknown strategy.
    """
    if not prompts:
        return []
    needed = visual.prefix.shape[1] + max(map(len, prompts)) + decoding.max_length
    if needed > captioner.language.max_positions:
        raise UserError(
            f"trainer.test.max_length={decoding.max_length} needs {needed} positions, but this GPT-2 has "
            f"{captioner.language.max_positions}: lower it by {needed - captioner.language.max_positions}"
        )
    device = visual.prefix.device
    width = decoding.beam_width if decoding.strategy == "beam" else 1
    if width > 1:  # a row for every beam
        visual = visual.rows(torch.arange(len(prompts), device=device).repeat_interleave(width))
        prompts = [prompt for prompt in prompts for _ in range(width)]
        explanation_tokens = [said for said in explanation_tokens for _ in range(width)]
    prompt = prompt_text(prompts, explanation_tokens, vad, device)
    words = vad.start(prompts, device)
    reader = Reader(captioner, visual, prompt, words, switch=switch, use_cache=decoding.use_cache)
    if decoding.strategy == "beam":
        return beam_search(reader, eos_id=eos_id, width=width, max_length=decoding.max_length)
    if decoding.strategy == "greedy":
        return _one_path(reader, eos_id, decoding, lambda log_probs, step: log_probs.argmax(dim=-1))
    if decoding.strategy == "nucleus":
        sampler = _Nucleus(decoding, keys or [str(i) for i in range(len(prompts))], device)
        return _one_path(reader, eos_id, decoding, sampler)
    raise UserError(f"trainer.test.decoding_strategy={decoding.strategy!r} is not one of greedy, nucleus, beam")


def _one_path(reader: Reader, eos_id: int, decoding: Decoding, choose) -> list[Written]:
    log_probs = reader.start()
    rows = len(log_probs)
    tokens: list[Tensor] = []
    total = log_probs.new_zeros(rows)
    ended = torch.zeros(rows, dtype=torch.bool, device=log_probs.device)
    for step in range(decoding.max_length):
        token = choose(log_probs, step).masked_fill(ended, eos_id)
        total += log_probs.gather(1, token[:, None]).squeeze(1).masked_fill(ended, 0.0)
        tokens.append(token)
        ended = ended | (token == eos_id)
        if step + 1 == decoding.max_length or bool(ended.all()):
            break
        log_probs = reader.step(token)
    return [
        _written(row, eos_id, score) for row, score in zip(torch.stack(tokens, 1).tolist(), total.tolist(), strict=True)
    ]


def _written(row: list[int], eos_id: int, total: float) -> Written:
    text = row[: row.index(eos_id)] if eos_id in row else row
    return Written(text, total / min(len(text) + 1, len(row)))


class _Nucleus:
    """Draws from the nucleus by inverting its cumulative distribution; row r of step s always gets the same number."""

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

    def __call__(self, log_probs: Tensor, step: int) -> Tensor:
        for warper in self.warpers:
            log_probs = warper(None, log_probs)
        cumulative = log_probs.softmax(dim=-1).cumsum(dim=-1)
        drawn = self.draws[:, step, None] * cumulative[:, -1:]
        return torch.searchsorted(cumulative, drawn, right=True).squeeze(1).clamp(max=log_probs.shape[1] - 1)
