"""Beam search over anything that reads one token a row: hypotheses are compared by mean log-probability.

Axes: B images, K beams, V vocabulary; rows are B·K, the beams of an image side by side.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Written:
    """One written text: its tokens without <eos>, and the mean log-probability of its tokens, <eos> included."""

    tokens: list[int]
    log_prob: float


class TokenReader(Protocol):
    def start(self) -> Tensor:
        """Log-probabilities (B·K, V) of the first token."""

    def step(self, tokens: Tensor) -> Tensor:
        """Read one token a row; log-probabilities (B·K, V) of the next."""

    def reorder(self, rows: Tensor) -> None:
        """Row r goes on from row rows[r], of the same image."""


@dataclass(slots=True)
class _Image:
    """The search for one image; it stands still once decided, so its text does not depend on the rest of the batch."""

    width: int
    paths: list[list[int]]  # tokens of the running beams
    finished: list[Written] = field(default_factory=list)  # best first, at most `width`
    decided: bool = False

    def advance(self, beams: list[int], tokens: list[int], scores: list[float], eos_id: int) -> list[int]:
        """Take 2·K candidates, best first; the ranks of the K that go on."""
        going: list[int] = []
        paths = []
        for rank, (beam, token, score) in enumerate(zip(beams, tokens, scores, strict=True)):
            if token == eos_id:
                if rank < self.width and not self.decided:
                    self._finish(Written(self.paths[beam], score / (len(self.paths[beam]) + 1)))
            elif len(going) < self.width:
                going.append(rank)
                paths.append([*self.paths[beam], token])
        self.paths = paths
        return going

    def _finish(self, hypothesis: Written) -> None:
        self.finished.append(hypothesis)
        self.finished.sort(key=lambda h: h.log_prob, reverse=True)
        del self.finished[self.width :]

    def decide(self, best_running: float, length: int) -> bool:
        """Whether no running beam, at its present mean, can beat the worst finished one."""
        full = len(self.finished) == self.width
        self.decided = self.decided or (full and best_running / length <= self.finished[-1].log_prob)
        return self.decided

    def best(self, running: list[float]) -> Written:
        if not self.decided:
            for path, score in zip(self.paths, running, strict=True):
                self._finish(Written(path, score / max(len(path), 1)))
        return self.finished[0]


def beam_search(reader: TokenReader, *, eos_id: int, width: int, max_length: int) -> list[Written]:
    """The best text of each image, of at most max_length tokens; as transformers' generate with length_penalty=1."""
    log_probs = reader.start()
    vocabulary, count = log_probs.shape[1], len(log_probs) // width
    images = [_Image(width, [[] for _ in range(width)]) for _ in range(count)]
    first_row = torch.arange(count, device=log_probs.device)[:, None] * width
    running = log_probs.new_full((count, width), float("-inf"))
    running[:, 0] = 0.0  # all beams start alike: only the first counts

    for length in range(1, max_length + 1):
        candidates = (running.view(-1, 1) + log_probs).view(count, width * vocabulary)
        scores, flat = candidates.topk(2 * width, dim=1)  # at most `width` of them end
        beams, tokens = flat // vocabulary, flat % vocabulary
        rows = zip(images, beams.tolist(), tokens.tolist(), scores.tolist(), strict=True)
        going = torch.tensor([image.advance(b, t, s, eos_id) for image, b, t, s in rows], device=flat.device)
        running, beams, tokens = (x.gather(1, going) for x in (scores, beams, tokens))
        decided = [image.decide(best, length) for image, best in zip(images, running[:, 0].tolist(), strict=True)]
        if length == max_length or all(decided):
            break
        reader.reorder((first_row + beams).view(-1))
        log_probs = reader.step(tokens.view(-1))
    return [image.best(scores) for image, scores in zip(images, running.tolist(), strict=True)]
