"""Results of the Python interface; notebooks show them as pictures with bars or maps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from common.html import percent, render
from data.emotion_colors import colors_of
from data.emotions import labels_of
from trainer.prediction.rows import Vad
from trainer.report.attention import Box
from trainer.report.cards import heat_map
from trainer.report.predictions_table import max_share
from trainer.report.thumbnails import thumbnail_of

TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class Explanation:
    """Why a picture evokes an emotion.

    Args:
        text: the explanation; None for a network that was trained on emotions only.
        others: further explanations of the same emotion, if more than one was requested.
        row: all that predictions.json has about the picture.
    """

    text: str | None
    others: tuple[str, ...]
    row: Mapping[str, Any] = field(repr=False)
    picture: Image.Image = field(repr=False)

    @property
    def emotion(self) -> str | None:
        """The likeliest emotion, or the one that was requested; None for a network without emotions."""
        return self.row["emotion"]

    @property
    def emotions(self) -> dict[str, float]:
        """The probability of each emotion; empty for a network without emotions."""
        shares = self.row["emotion_distribution"]
        return {} if shares is None else dict(zip(labels_of(self.row), shares, strict=True))

    @property
    def vad(self) -> Vad | None:
        """Valence, arousal and dominance of the explanation, in −1..1, as predicted before its first word."""
        return tuple(self.row["vad"]) if self.row.get("vad") else None

    @property
    def unfamiliar(self) -> bool:
        """Whether the picture is unlike those of the training, so that the rest is a guess."""
        return bool(self.row.get("unfamiliar"))

    def __str__(self) -> str:
        named = "" if self.emotion is None else f"{self.emotion} ({percent(max_share(self.row))} %)"
        return ": ".join(filter(None, (named, self.text)))

    def _repr_html_(self) -> str:
        order = sorted(self.emotions.items(), key=lambda pair: -pair[1])
        return render(
            TEMPLATES / "explanation.html.j2",
            picture=thumbnail_of(self.picture.copy()),
            result=self,
            bars=order,
            colors=colors_of(labels_of(self.row)),
        )


@dataclass(frozen=True)
class WordMaps:
    """Which parts of a picture make the words of a text likelier, see model.attention_maps.

    Args:
        words: of the text, in order.
        maps: (words, rows, columns), each of sum 1, or zeros for a word that no part makes likelier.
        whole: (rows, columns), of all words together.
        box: left, top, width and height of the part of the picture that the maps cover, as shares of the picture.
    """

    text: str
    words: tuple[str, ...]
    maps: np.ndarray = field(repr=False)
    whole: np.ndarray = field(repr=False)
    box: Box
    picture: Image.Image = field(repr=False)

    def _repr_html_(self) -> str:
        shown = [("all words", self.whole), *zip(self.words, self.maps, strict=True)]
        return render(
            TEMPLATES / "word_maps.html.j2",
            picture=thumbnail_of(self.picture.copy()),
            box=[100 * share for share in self.box],
            maps=[(word, heat_map(grid)) for word, grid in shown],
        )
