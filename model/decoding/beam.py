"""Beam search over anything that reads one token a row: hypotheses are compared by mean log-probability.

All bookkeeping is on tensors of the reader's device, which is asked only now and then whether the search is over.

Axes: B images, K beams, V vocabulary, T longest text; rows are B·K, the beams of an image side by side.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

NEVER = float("-inf")


@dataclass(frozen=True, slots=True)
class Written:
    """One written text: its tokens without <eos>, and the mean log-probability of its tokens, <eos> included."""

    tokens: list[int]
    log_prob: float


class TokenReader(Protocol):
    def start(self) -> Tensor:
        """Logits (B, V) of the first token."""

    def step(self, tokens: Tensor) -> Tensor:
        """Read one token a row; logits (B·K, V) of the next."""

    def reorder(self, rows: Tensor) -> None:
        """Row r goes on from row rows[r], of the same image."""

    def keep(self, images: Tensor) -> None:
        """Only these images go on, in this order."""


def check_every(device: torch.device) -> int:
    """Steps from one question whether texts have ended to the next: on an accelerator each makes the host wait."""
    return 1 if device.type == "cpu" else 8


def worth_dropping(going: int, of: int) -> bool:
    """Whether the rows that have ended cost more than moving the others: at a quarter of all."""
    return going <= 0.75 * of


class _Search:
    """Where the search stands, for the images that are not decided yet.

    paths (B, K, T) and scores (B, K) are those of the running beams, Σ log p; texts (B, K, T), lengths (B, K) and means
    (B, K), best first, those of the finished hypotheses, with a mean of −∞ where there is none.
    """

    def __init__(self, count: int, width: int, longest: int, *, eos_id: int, device: torch.device) -> None:
        self.width, self.eos_id = width, eos_id
        self.paths = torch.full((count, width, longest), eos_id, device=device)
        self.texts = self.paths.clone()
        self.lengths = torch.zeros(count, width, dtype=torch.long, device=device)
        self.scores = torch.full((count, width), NEVER, device=device)
        self.scores[:, 0] = 0.0  # all beams start alike: only the first counts
        self.means = torch.full((count, width), NEVER, device=device)
        self.decided = torch.zeros(count, dtype=torch.bool, device=device)
        self.images = torch.arange(count, device=device)
        self.first_row = self.images[:, None] * width

    def advance(self, scores: Tensor, beams: Tensor, tokens: Tensor, length: int) -> tuple[Tensor, Tensor]:
        """Takes 2·K candidates (B, 2·K), best first, as token number `length`; rows and tokens (B·K,) that go on."""
        ends = tokens == self.eos_id
        best = slice(None, self.width)  # a candidate of a lower rank that ends is lost
        finished = ends[:, best] & ~self.decided[:, None]
        means = torch.where(finished, scores[:, best] / length, NEVER)
        self._finish(_of(self.paths, beams[:, best]), torch.full_like(self.lengths, length - 1), means)
        going = ends.byte().sort(dim=1, stable=True).indices[:, best]  # at most K of them end
        self.scores, beams, tokens = (x.gather(1, going) for x in (scores, beams, tokens))
        self.paths = _of(self.paths, beams)
        self.paths[:, :, length - 1] = tokens
        # No running beam, at its present mean, can beat the worst finished one.
        full = self.means[:, -1] > NEVER
        self.decided |= full & (self.scores[:, 0] / length <= self.means[:, -1])
        return (self.first_row + beams).view(-1), tokens.view(-1)

    def _finish(self, texts: Tensor, lengths: Tensor, means: Tensor) -> None:
        """The best K of the finished ones and these; of equal ones the earlier."""
        means, order = torch.cat([self.means, means], dim=1).sort(dim=1, descending=True, stable=True)
        order = order[:, : self.width]
        self.means = means[:, : self.width]
        self.texts = _of(torch.cat([self.texts, texts], dim=1), order)
        self.lengths = torch.cat([self.lengths, lengths], dim=1).gather(1, order)

    def stop(self, length: int) -> None:
        """Where nothing is decided yet, the running beams are hypotheses of `length` tokens."""
        means = torch.where(self.decided[:, None], NEVER, self.scores / max(length, 1))
        self._finish(self.paths, torch.full_like(self.lengths, length), means)

    def drop(self, decided: list[bool], *, into: dict[int, Written]) -> Tensor:
        """Hands over the texts of the images that are decided, by the image's number; the places that go on."""
        ended, going = (
            torch.tensor([i for i, flag in enumerate(decided) if flag == which], device=self.decided.device)
            for which in (True, False)
        )
        into |= self.written(ended)
        for name in ("paths", "texts", "lengths", "scores", "means", "decided", "images"):
            setattr(self, name, getattr(self, name)[going])
        self.first_row = self.first_row[: len(going)]
        return going

    def written(self, places: Tensor) -> dict[int, Written]:
        """The best text of the images at these places, by the image's number."""
        columns = (self.images[places], self.texts[places, 0], self.lengths[places, 0], self.means[places, 0])
        found = zip(*(column.tolist() for column in columns), strict=True)
        return {image: Written(tokens[:length], mean) for image, tokens, length, mean in found}


def _of(paths: Tensor, beams: Tensor) -> Tensor:
    """(B, M, T) → those of `beams` (B, K), (B, K, T)."""
    return paths.gather(1, beams[..., None].expand(-1, -1, paths.shape[2]))


def beam_search(reader: TokenReader, *, eos_id: int, width: int, max_length: int) -> list[Written]:
    """The best text of each image, of at most max_length tokens; as transformers' generate with length_penalty=1."""
    logits = reader.start()
    search = _Search(len(logits), width, max_length, eos_id=eos_id, device=logits.device)
    texts: dict[int, Written] = {}
    candidates = _candidates(logits[:, None].expand(-1, width, -1), search.scores)
    for length in range(1, max_length + 1):
        rows, tokens = search.advance(*candidates, length)
        if length == max_length:
            break
        going = None
        if length % check_every(logits.device) == 0:
            decided = search.decided.tolist()
            if all(decided):
                break
            if worth_dropping(decided.count(False), len(decided)):
                going = search.drop(decided, into=texts)
        reader.reorder(rows)
        if going is not None:
            reader.keep(going)
            tokens = tokens.view(-1, width)[going].view(-1)
        logits = reader.step(tokens)
        candidates = _candidates(logits.view(-1, width, logits.shape[1]), search.scores)
    search.stop(length)
    texts |= search.written(torch.arange(len(search.images), device=logits.device))
    return [texts[image] for image in sorted(texts)]


def _candidates(logits: Tensor, scores: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The best 2·K ways on of each image, of which at most K end: Σ log p, beam, token, each (B, 2·K), best first.

    logits: (B, K, V); scores: (B, K) of the beams so far. The best of an image are among the best of its beams.
    """
    count = 2 * scores.shape[1]
    top, tokens = logits.topk(min(count, logits.shape[2]), dim=2)
    top = scores[..., None] + (top - logits.logsumexp(dim=2, keepdim=True))
    best, flat = top.flatten(1).topk(count, dim=1)
    return best, flat // top.shape[2], tokens.flatten(1).gather(1, flat)
