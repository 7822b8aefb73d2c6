"""Next-token loss computed in chunks: the logits over 50,257 words would be the largest tensor of the training.

Axes: M supervised positions, D width of GPT-2, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

LOGITS_AT_ONCE = 1 << 24  # 64 MB in float32


class NextWord:
    """Lazy logits of M positions: states `hidden` (M, D), weights `words` (V, D) and bias (V,) of an output layer.

    A bias is not trained.

    Not a dataclass: FSDP would put a hook on every tensor in it at each forward pass, and `words` may be a parameter.
    """

    def __init__(self, hidden: Tensor, words: Tensor, bias: Tensor | None = None) -> None:
        device = hidden.device.type
        if torch.is_autocast_enabled(device):  # cast now, since the loss may be computed outside of autocast
            hidden, words = (tensor.to(torch.get_autocast_dtype(device)) for tensor in (hidden, words))
        self.hidden, self.words, self.bias = hidden, words, None if bias is None else bias.detach()

    def logits(self, rows: Tensor | slice = slice(None)) -> Tensor:
        """(M, V), or those of some rows, in float32 (float64 for a float64 network)."""
        return _logits(self.hidden[rows], self.words, self.bias)

    def losses(self, targets: Tensor) -> Tensor:
        """(M,) float32, −log p(target): F.cross_entropy(logits(), targets, reduction="none").

        If the output layer is frozen, gradients are computed together with the losses, and the logits only once;
        otherwise the backward pass computes the logits again.
        """
        return _Losses.apply(self.hidden, self.words, self.bias, targets)


class _Losses(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden: Tensor, words: Tensor, bias: Tensor | None, targets: Tensor) -> Tensor:
        losses = torch.empty(len(hidden), device=hidden.device)
        ready = torch.empty_like(hidden, dtype=torch.float32) if ctx.needs_input_grad[:2] == (True, False) else None
        for rows in _chunks(len(hidden), len(words)):
            logits = _logits(hidden[rows], words, bias)
            losses[rows] = F.cross_entropy(logits, targets[rows], reduction="none")
            if ready is not None:
                ready[rows] = (_gradient(logits, targets[rows]).to(words.dtype) @ words).float()
        ctx.save_for_backward(ready) if ready is not None else ctx.save_for_backward(hidden, words, targets)
        ctx.dtype, ctx.bias = hidden.dtype, bias
        return losses

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        if len(ctx.saved_tensors) == 1:
            return (ctx.saved_tensors[0] * grad[:, None]).to(ctx.dtype), None, None, None
        (hidden, words, targets), bias = ctx.saved_tensors, ctx.bias
        to_hidden = torch.empty_like(hidden)
        to_words = torch.zeros_like(words, dtype=torch.float32)
        for rows in _chunks(len(hidden), len(words)):
            logits = _logits(hidden[rows], words, bias)
            to_logits = (_gradient(logits, targets[rows]) * grad[rows, None]).to(words.dtype)
            to_hidden[rows] = to_logits @ words
            to_words += (to_logits.T @ hidden[rows]).float()
        return to_hidden, to_words.to(words.dtype), None, None


def _logits(hidden: Tensor, words: Tensor, bias: Tensor | None) -> Tensor:
    logits = hidden @ words.T
    logits = logits if bias is None else logits + bias
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits


def _chunks(positions: int, vocabulary: int) -> Iterator[slice]:
    size = max(LOGITS_AT_ONCE // vocabulary, 1)
    return (slice(start, start + size) for start in range(0, positions, size))


def _gradient(logits: Tensor, targets: Tensor) -> Tensor:
    """Gradient of each position's loss with respect to its logits: softmax − one-hot."""
    shares = logits.softmax(dim=-1)
    shares[torch.arange(len(targets), device=targets.device), targets] -= 1.0
    return shares
