"""Classify the emotion of an explanation from its words.

The LSTM is that of ArtEmis (Achlioptas et al., 2021), except that padding is excluded from the maximum over time, so
the logits of a text do not depend on its batch. Axes: N texts, L words of the longest, C emotions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

PAD = 0  # row of the padding in every vocabulary


def word_mask(lengths: Tensor, width: int) -> Tensor:
    """(N, width) bool: True for the words of a text, False for padding."""
    return torch.arange(width, device=lengths.device) < lengths[:, None]


def max_over_words(features: Tensor, mask: Tensor) -> Tensor:
    """(N, L, D) features, (N, L) bool mask → maximum over the words (N, D)."""
    return features.masked_fill(~mask[..., None], -torch.inf).amax(dim=1)


class EmotionLSTM(nn.Module):
    """Words → MLP per word → LSTM → maximum over time → MLP → logits.

    Args:
        vocabulary: rows of the embedding; row 0 is the padding.
        classes: C.
        trained_embedding: False freezes the embedding (GloVe).
        zero_in_max: include a zero in the maximum over time, as padding did for ArtEmis's published weights.
    """

    def __init__(
        self,
        *,
        vocabulary: int,
        classes: int,
        embedding_dim: int = 100,
        word_dim: int = 256,
        hidden_dim: int = 256,
        head_dim: int = 100,
        dropout: float = 0.25,
        trained_embedding: bool = True,
        zero_in_max: bool = False,
    ) -> None:
        super().__init__()
        self.zero_in_max = zero_in_max
        self.embedding = nn.Embedding(vocabulary, embedding_dim, padding_idx=PAD)
        self.embedding.weight.requires_grad_(trained_embedding)
        hidden = (nn.Dropout(dropout), nn.Linear(embedding_dim, word_dim), nn.ReLU())
        self.words = nn.Sequential(*hidden, nn.Dropout(dropout), nn.Linear(word_dim, word_dim))
        self.rnn = nn.LSTM(word_dim, hidden_dim, batch_first=True)
        hidden = (nn.Linear(hidden_dim, head_dim), nn.BatchNorm1d(head_dim), nn.ReLU())
        self.head = nn.Sequential(*hidden, nn.Dropout(dropout), nn.Linear(head_dim, classes))

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """(N, L) int64 rows of the vocabulary, padded on the right, and (N,) lengths of at least 1 → (N, C) logits."""
        features, _ = self.rnn(self.words(self.embedding(tokens)))  # causal, so padding on the right has no effect
        pooled = max_over_words(features, word_mask(lengths, tokens.shape[1]))
        return self.head(pooled.clamp(min=0) if self.zero_in_max else pooled)


class EmotionTransformer(nn.Module):
    """Words and positions → transformer encoder → maximum over the words → logits.

    Args:
        vocabulary, classes, trained_embedding: as in EmotionLSTM.
        max_words: number of positions, the longest text that is accepted.
    """

    def __init__(
        self,
        *,
        vocabulary: int,
        classes: int,
        max_words: int,
        embedding_dim: int = 128,
        width: int = 128,
        depth: int = 2,
        heads: int = 4,
        feedforward_dim: int = 512,
        dropout: float = 0.25,
        trained_embedding: bool = True,
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, embedding_dim, padding_idx=PAD)
        self.embedding.weight.requires_grad_(trained_embedding)
        self.project = nn.Sequential(nn.Dropout(dropout), nn.Linear(embedding_dim, width))
        self.positions = nn.Parameter(0.02 * torch.randn(max_words, width))
        layer = nn.TransformerEncoderLayer(width, heads, feedforward_dim, dropout, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, depth, norm=nn.LayerNorm(width), enable_nested_tensor=False)
        self.head = nn.Linear(width, classes)

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """As EmotionLSTM.forward; L is at most max_words."""
        mask = word_mask(lengths, tokens.shape[1])
        words = self.project(self.embedding(tokens)) + self.positions[: tokens.shape[1]]
        return self.head(max_over_words(self.encoder(words, src_key_padding_mask=~mask), mask))


NETWORKS = {"lstm": EmotionLSTM, "transformer": EmotionTransformer}


def build_text_emotion(settings: Mapping[str, Any]) -> EmotionLSTM | EmotionTransformer:
    """settings: `name`, one of NETWORKS, and the keyword arguments of its constructor."""
    arguments = dict(settings)
    return NETWORKS[arguments.pop("name")](**arguments)
