"""Beam search; hypotheses are compared by mean log-probability.

All state is in tensors on the reader's device; the host synchronizes only every few steps to see whether texts ended.

Axes: B images, K beams, V vocabulary, T longest text; there are B·K rows, the beams of an image next to each other.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from model.decoding.reader import GuidedReader, Reader

NEVER = float("-inf")


@dataclass(frozen=True, slots=True)
class GeneratedText:
    """A generated text: its tokens without <eos>, and the mean log-probability of its tokens including <eos>."""

    tokens: list[int]
    log_prob: float


def check_every(device: torch.device) -> int:
    """Return the number of steps between checks whether texts ended; on an accelerator a check blocks the host."""
    return 1 if device.type == "cpu" else 8


def worth_dropping(going: int, of: int) -> bool:
    """Return whether removing the ended rows saves more than moving the others costs: at a quarter of all."""
    return going <= 0.75 * of


class _Search:
    """State of the search for the images that are not decided yet.

    paths (B, K, T) and scores Σ log p (B, K) belong to the running beams; texts (B, K, T), lengths (B, K) and means
    (B, K), best first, to the finished hypotheses, with a mean of −∞ for a missing one.
    """

    def __init__(self, count: int, width: int, longest: int, *, eos_id: int, device: torch.device) -> None:
        self.width, self.eos_id = width, eos_id
        self.paths = torch.full((count, width, longest), eos_id, device=device)
        self.texts = self.paths.clone()
        self.lengths = torch.zeros(count, width, dtype=torch.long, device=device)
        self.scores = torch.full((count, width), NEVER, device=device)
        self.scores[:, 0] = 0.0  # all beams start equal, so only the first counts
        self.means = torch.full((count, width), NEVER, device=device)
        self.decided = torch.zeros(count, dtype=torch.bool, device=device)
        self.images = torch.arange(count, device=device)
        self.first_row = self.images[:, None] * width

    def advance(self, scores: Tensor, beams: Tensor, tokens: Tensor, length: int) -> tuple[Tensor, Tensor]:
        """Add candidates (B, 2·K), best first, as token number `length`; return rows and tokens (B·K,) to continue."""
        ends = tokens == self.eos_id
        best = slice(None, self.width)  # ending candidates of a lower rank are discarded
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
        """Keep the best K of the finished hypotheses and these; of equal ones the earlier."""
        means, order = torch.cat([self.means, means], dim=1).sort(dim=1, descending=True, stable=True)
        order = order[:, : self.width]
        self.means = means[:, : self.width]
        self.texts = _of(torch.cat([self.texts, texts], dim=1), order)
        self.lengths = torch.cat([self.lengths, lengths], dim=1).gather(1, order)

    def stop(self, length: int) -> None:
        """Finish the running beams of undecided images as hypotheses of `length` tokens."""
        means = torch.where(self.decided[:, None], NEVER, self.scores / max(length, 1))
        self._finish(self.paths, torch.full_like(self.lengths, length), means)

    def drop(self, decided: list[bool], *, into: dict[int, GeneratedText]) -> Tensor:
        """Move the texts of decided images into `into`, by image index; return the indices of the remaining rows."""
        ended, going = (
            torch.tensor([i for i, flag in enumerate(decided) if flag == which], device=self.decided.device)
            for which in (True, False)
        )
        into |= self.written(ended)
        for name in ("paths", "texts", "lengths", "scores", "means", "decided", "images"):
            setattr(self, name, getattr(self, name)[going])
        self.first_row = self.first_row[: len(going)]
        return going

    def written(self, rows: Tensor) -> dict[int, GeneratedText]:
        """Return the best text of these rows, by image index."""
        columns = (self.images[rows], self.texts[rows, 0], self.lengths[rows, 0], self.means[rows, 0])
        found = zip(*(column.tolist() for column in columns), strict=True)
        return {image: GeneratedText(tokens[:length], mean) for image, tokens, length, mean in found}


def _of(paths: Tensor, beams: Tensor) -> Tensor:
    """Select `beams` (B, K) of (B, M, T) → (B, K, T)."""
    return paths.gather(1, beams[..., None].expand(-1, -1, paths.shape[2]))


def beam_search(reader: Reader | GuidedReader, *, eos_id: int, width: int, max_length: int) -> list[GeneratedText]:
    """Return each image's best text of at most max_length tokens, as transformers' generate with length_penalty=1."""
    logits = reader.start()
    search = _Search(len(logits), width, max_length, eos_id=eos_id, device=logits.device)
    texts: dict[int, GeneratedText] = {}
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
    """Return each image's best 2·K continuations, at most K of which end: Σ log p, beam, token, each (B, 2·K).

    logits: (B, K, V); scores: (B, K) of the beams so far.
    """
    count = 2 * scores.shape[1]
    top, tokens = logits.topk(min(count, logits.shape[2]), dim=2)
    top = scores[..., None] + (top - logits.logsumexp(dim=2, keepdim=True))
    best, flat = top.flatten(1).topk(count, dim=1)
    return best, flat // top.shape[2], tokens.flatten(1).gather(1, flat)
