"""Draw the shapes of a subject on a picture.

A subject is drawn in its own square, with x to the right and y down, both from -0.5 to 0.5. The easel places, rotates
and scales the square, so that one drawing works in every composition.
"""

from __future__ import annotations

from math import cos, pi, sin
from random import Random

from PIL import Image, ImageDraw

Color = tuple[int, int, int]
Placement = tuple[float, float, float, float]  # x, y, scale, angle


class Easel:
    """Draws the shapes of a subject on `image`.

    Args:
        tints: colors of the sky, the sky at the horizon, the ground, and the subject's main, accent, dark and light.
        place: x and y of the center and width, in shares of the image, and angle in radians.
    """

    def __init__(self, image: Image.Image, tints: list[Color], r: Random, place: Placement, *, flip: bool) -> None:
        x, y, scale, angle = place
        self.draw, self.r = ImageDraw.Draw(image), r
        self.sky, self.low, self.ground, self.main, self.accent, self.dark, self.light = tints
        self._scale = scale * image.width
        self._x, self._y = x * image.width, y * image.height
        self._cos, self._sin, self._flip = cos(angle), sin(angle), -1.0 if flip else 1.0

    def poly(self, points: list[tuple[float, float]], fill: Color) -> None:
        self.draw.polygon([self._to_pixels(*p) for p in points], fill=fill)

    def oval(self, x: float, y: float, rx: float, ry: float, fill: Color, *, turn: float = 0.0) -> None:
        """Draw a filled ellipse around (x, y), rotated by `turn` radians."""
        c, s = cos(turn), sin(turn)
        ring = [(rx * cos(a * pi / 10), ry * sin(a * pi / 10)) for a in range(20)]
        self.poly([(x + u * c - v * s, y + u * s + v * c) for u, v in ring], fill)

    def line(self, points: list[tuple[float, float]], fill: Color, width: float) -> None:
        pixels = max(1, round(width * self._scale))
        self.draw.line([self._to_pixels(*p) for p in points], fill=fill, width=pixels, joint="curve")

    def mix(self, a: Color, b: Color, share: float) -> Color:
        """Return the color between `a` (share 0) and `b` (share 1)."""
        return tuple(round(p + (q - p) * share) for p, q in zip(a, b, strict=True))

    def _to_pixels(self, x: float, y: float) -> tuple[float, float]:
        x *= self._flip
        return (
            self._x + (x * self._cos - y * self._sin) * self._scale,
            self._y + (x * self._sin + y * self._cos) * self._scale,
        )
