"""Draws shapes of a subject's own square on a picture.

In that square x goes to the right and y down, both from -0.5 to 0.5. The easel places, turns and scales it, so one
drawing of a boat serves every composition.
"""

from __future__ import annotations

from math import cos, pi, sin
from random import Random

from PIL import Image, ImageDraw

Colour = tuple[int, int, int]


class Easel:
    """Draws a subject's shapes on the picture; `main`, `accent`, `dark`, `light`, `ground` are its colours."""

    def __init__(
        self,
        image: Image.Image,
        tints: list[Colour],
        r: Random,
        *,
        at: tuple[float, float],
        scale: float,
        angle: float,
        flip: bool,
    ):
        self.draw, self.r = ImageDraw.Draw(image), r
        self.sky, self.low, self.ground, self.main, self.accent, self.dark, self.light = tints
        self._scale = scale * image.width
        self._x, self._y = at[0] * image.width, at[1] * image.height
        self._cos, self._sin, self._flip = cos(angle), sin(angle), -1.0 if flip else 1.0

    def poly(self, points: list[tuple[float, float]], fill: Colour) -> None:
        self.draw.polygon([self._to_pixels(*p) for p in points], fill=fill)

    def oval(self, x: float, y: float, rx: float, ry: float, fill: Colour, *, turn: float = 0.0) -> None:
        """A filled ellipse around (x, y), turned by `turn` radians."""
        c, s = cos(turn), sin(turn)
        ring = [(rx * cos(a * pi / 10), ry * sin(a * pi / 10)) for a in range(20)]
        self.poly([(x + u * c - v * s, y + u * s + v * c) for u, v in ring], fill)

    def line(self, points: list[tuple[float, float]], fill: Colour, width: float) -> None:
        pixels = max(1, round(width * self._scale))
        self.draw.line([self._to_pixels(*p) for p in points], fill=fill, width=pixels, joint="curve")

    def mix(self, a: Colour, b: Colour, share: float) -> Colour:
        """Colour between `a` (share 0) and `b` (share 1)."""
        return tuple(round(p + (q - p) * share) for p, q in zip(a, b, strict=True))

    def _to_pixels(self, x: float, y: float) -> tuple[float, float]:
        x *= self._flip
        return (
            self._x + (x * self._cos - y * self._sin) * self._scale,
            self._y + (x * self._sin + y * self._cos) * self._scale,
        )
