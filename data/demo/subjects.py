"""The subjects of the demo pictures, each drawn in its own square (see data/demo/easel.py)."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from math import cos, pi, sin

from data.demo.easel import Easel

SUBJECTS: dict[str, Callable[[Easel], None]] = {}
OWN_COLORS: dict[str, tuple[str, str]] = {}  # main and accent, mixed with those of the palette
FLOATING: set[str] = set()  # subjects that do not stand on the ground


def _subject(main: str, accent: str, *, floats: bool = False) -> Callable[[Callable], Callable]:
    """Register a drawing and its colors under the name of its function."""

    def register(draw: Callable[[Easel], None]) -> Callable[[Easel], None]:
        name = draw.__name__.strip("_")
        SUBJECTS[name], OWN_COLORS[name] = draw, (main, accent)
        FLOATING.update([name] if floats else [])
        return draw

    return register


@_subject("ffffff", "e8503a")
def _boat(e: Easel) -> None:
    e.line([(0.0, 0.25), (0.0, -0.46)], e.dark, 0.03)
    e.poly([(0.03, -0.45), (0.03, 0.16), (0.36, 0.16)], e.main)
    e.poly([(-0.03, -0.36), (-0.03, 0.16), (-0.27, 0.16)], e.accent)
    e.poly([(-0.46, 0.22), (0.48, 0.22), (0.3, 0.42), (-0.3, 0.42)], e.dark)
    e.line([(-0.42, 0.26), (0.43, 0.26)], e.light, 0.025)
    for _ in range(6):
        x, y = e.r.uniform(-0.35, 0.3), e.r.uniform(0.44, 0.6)
        e.line([(x, y), (x + 0.14, y)], e.mix(e.light, e.ground, 0.5), 0.02)


@_subject("dfe8f4", "5a7aa8")
def _mountain(e: Easel) -> None:
    peaks = [(-0.3, 0.62, -0.1), (0.32, 0.55, -0.02), (0.0, 0.8, -0.48)]
    for x, spread, top in peaks:
        top += e.r.uniform(-0.04, 0.04)
        body = e.mix(e.dark, e.sky, 0.35 if x else 0.12)
        half = spread / 2
        e.poly([(x - half, 0.5), (x - 0.02, top), (x + half, 0.5)], body)
        e.poly([(x - 0.02, top), (x + half, 0.5), (x + half * 0.2, 0.5), (x + 0.04, 0.1)], e.mix(body, e.dark, 0.5))
        cap = top + (0.5 - top) * 0.32
        e.poly([(x - half * 0.33, cap), (x - 0.02, top), (x + half * 0.33, cap), (x + 0.05, cap - 0.06)], e.light)
        e.poly([(x - half * 0.33, cap), (x + 0.02, cap - 0.05), (x - 0.04, cap + 0.06)], e.light)


@_subject("ffe24a", "ffb52e", floats=True)
def _sun(e: Easel) -> None:
    for radius, share in ((0.5, 0.25), (0.42, 0.5), (0.35, 0.75)):
        e.oval(0, 0, radius, radius, e.mix(e.low, e.accent, share))
    e.oval(0, 0, 0.28, 0.28, e.mix(e.main, e.light, 0.4))
    e.oval(-0.06, -0.06, 0.16, 0.16, e.light)
    for i in range(5):
        half = e.r.uniform(0.08, 0.2)
        e.line([(-half, 0.56 + i * 0.07), (half, 0.56 + i * 0.07)], e.mix(e.light, e.accent, 0.3), 0.025)


@_subject("f2e3c6", "c8452f")
def _cottage(e: Easel) -> None:
    e.poly([(0.2, -0.4), (0.3, -0.4), (0.3, -0.05), (0.2, -0.05)], e.dark)
    e.poly([(-0.36, 0.0), (0.36, 0.0), (0.36, 0.46), (-0.36, 0.46)], e.main)
    e.poly([(-0.46, 0.03), (0.46, 0.03), (0.26, -0.32), (-0.26, -0.32)], e.accent)
    e.poly([(-0.08, 0.2), (0.08, 0.2), (0.08, 0.46), (-0.08, 0.46)], e.dark)
    for x in (-0.23, 0.23):
        e.poly([(x - 0.07, 0.13), (x + 0.07, 0.13), (x + 0.07, 0.27), (x - 0.07, 0.27)], e.dark)
        e.poly([(x - 0.05, 0.15), (x + 0.05, 0.15), (x + 0.05, 0.25), (x - 0.05, 0.25)], e.mix(e.low, e.light, 0.5))
    for i in range(3):
        e.oval(0.27 + i * 0.06, -0.46 - i * 0.08, 0.05 + i * 0.015, 0.04, e.mix(e.sky, e.light, 0.6))


@_subject("ffffff", "e83f8f")
def _flowers(e: Easel) -> None:
    heads = [(-0.34, -0.1), (0.33, -0.14), (-0.14, -0.34), (0.14, -0.3), (0.0, -0.02), (-0.22, 0.14), (0.24, 0.12)]
    petals = (e.accent, e.main, e.mix(e.accent, e.light, 0.5))
    for i, (x, y) in enumerate(heads):
        x, y = x + e.r.uniform(-0.04, 0.04), y + e.r.uniform(-0.05, 0.05)
        e.line([(x * 0.4, 0.5), (x * 0.8, y * 0.4 + 0.2), (x, y)], e.dark, 0.025)
        for k in range(5):
            a = k * 2 * pi / 5 + i
            e.oval(x + 0.085 * cos(a), y + 0.085 * sin(a), 0.062, 0.062, petals[i % 3])
        e.oval(x, y, 0.05, 0.05, e.dark if i % 3 == 1 else e.light)


@_subject("f0304a", "2f7df0", floats=True)
def _balloons(e: Easel) -> None:
    spots = [(-0.3, -0.2), (0.3, -0.22), (0.0, -0.36), (-0.14, 0.0), (0.17, 0.02)]
    fills = (e.main, e.accent, e.dark, e.light, e.mix(e.main, e.accent, 0.5))
    first = e.r.randrange(5)
    for i, (x, y) in enumerate(spots):
        x, y, fill = x + e.r.uniform(-0.05, 0.05), y + e.r.uniform(-0.05, 0.05), fills[(i + first) % 5]
        e.line([(x, y + 0.14), (x * 0.4, 0.32), (0.0, 0.5)], e.mix(e.dark, e.light, 0.3), 0.012)
        e.poly([(x, y + 0.13), (x - 0.035, y + 0.19), (x + 0.035, y + 0.19)], fill)
        e.oval(x, y, 0.125, 0.155, fill)
        e.oval(x - 0.045, y - 0.06, 0.03, 0.045, e.mix(fill, (255, 255, 255), 0.75))


@_subject("f0952f", "ffb0b8")
def _cat(e: Easel) -> None:
    fur, stripe = e.main, e.dark
    e.line([(0.2, 0.42), (0.42, 0.36), (0.44, 0.08), (0.34, -0.06)], fur, 0.08)
    e.oval(0.0, 0.27, 0.27, 0.24, fur)
    for x in (-0.11, 0.11):
        e.oval(x, 0.46, 0.09, 0.06, e.mix(fur, e.light, 0.4))
    for side in (-1, 1):
        e.poly([(side * 0.27, -0.1), (side * 0.26, -0.46), (side * 0.06, -0.28)], fur)
        e.poly([(side * 0.22, -0.17), (side * 0.22, -0.37), (side * 0.11, -0.27)], e.accent)
    e.oval(0.0, -0.12, 0.29, 0.23, fur)
    for side in (-1, 1):
        e.oval(side * 0.12, -0.15, 0.075, 0.085, (255, 255, 250))
        e.oval(side * 0.10, -0.14, 0.035, 0.06, (16, 14, 18))
        for dy in (-0.02, 0.05):
            e.line([(side * 0.1, -0.03), (side * 0.44, -0.05 + dy * 1.6)], stripe, 0.014)
    e.poly([(-0.04, -0.06), (0.04, -0.06), (0.0, -0.01)], e.accent)
    e.line([(-0.12, 0.0), (-0.06, 0.05), (0.0, 0.0), (0.06, 0.05), (0.12, 0.0)], stripe, 0.022)


@_subject("ffe94a", "ffffff", floats=True)
def _burst(e: Easel) -> None:
    for cx, cy, reach, rays in ((0.0, 0.0, 0.48, 18), (e.r.uniform(-0.35, 0.35), e.r.uniform(-0.3, 0.3), 0.24, 12)):
        turn = e.r.random()
        for i in range(rays):
            a, far = turn + 2 * pi * i / rays, reach * e.r.uniform(0.7, 1.0)
            fill = (e.accent, e.main, e.light)[i % 3]
            tip = (cx + far * cos(a), cy + far * sin(a))
            e.line([(cx + 0.2 * far * cos(a), cy + 0.2 * far * sin(a)), tip], fill, 0.02)
            e.oval(*tip, 0.032, 0.032, fill)
        e.oval(cx, cy, 0.06, 0.06, e.light)


@_subject("9a5a2c", "6a3a1c")
def _horse(e: Easel) -> None:
    coat, mane = e.main, e.dark
    stride = e.r.uniform(0.06, 0.16)
    for x, dx in ((-0.26, -stride), (-0.17, stride), (0.14, -stride * 0.6), (0.22, stride * 1.3)):
        e.line([(x, 0.1), (x + dx, 0.28), (x + dx * 0.8 - 0.03, 0.48)], e.mix(coat, mane, 0.25), 0.055)
    e.line([(-0.3, -0.04), (-0.44, 0.02), (-0.49, 0.18)], mane, 0.06)
    e.oval(-0.03, 0.04, 0.3, 0.15, coat)
    e.poly([(0.1, 0.06), (0.27, 0.06), (0.4, -0.28), (0.26, -0.36)], coat)
    e.oval(0.39, -0.28, 0.15, 0.07, coat, turn=0.6)
    e.poly([(0.27, -0.34), (0.29, -0.47), (0.35, -0.36)], coat)
    e.poly([(0.1, 0.0), (0.05, -0.14), (0.16, -0.2), (0.13, -0.32), (0.24, -0.34), (0.3, -0.42), (0.22, -0.06)], mane)
    e.oval(0.39, -0.31, 0.02, 0.02, (10, 8, 8))


@_subject("e01f2a", "ff8a2f", floats=True)
def _slashes(e: Easel) -> None:
    lean = e.r.uniform(0.5, 1.1)
    for i in range(8):
        x, y = e.r.uniform(-0.4, 0.4), e.r.uniform(-0.35, 0.35)
        half, width = e.r.uniform(0.22, 0.45), e.r.uniform(0.03, 0.08)
        way = lean if i % 4 else -lean
        dx, dy = half * cos(way), -half * sin(way)
        fill = (e.main, e.dark, e.accent, e.main)[i % 4]
        e.poly([(x - dx, y - dy), (x - width * 0.7, y - width), (x + dx, y + dy), (x + width, y + width * 0.7)], fill)


@_subject("3a3f52", "fff04a", floats=True)
def _storm(e: Easel) -> None:
    flash = e.mix(e.accent, e.light, 0.6)
    e.poly([(0.02, -0.1), (-0.14, 0.2), (-0.02, 0.18), (-0.1, 0.5), (0.16, 0.1), (0.04, 0.12), (0.14, -0.1)], flash)
    e.line([(-0.24, -0.05), (-0.34, 0.14), (-0.28, 0.15), (-0.38, 0.36)], flash, 0.025)
    for x in (-0.3, -0.18, 0.24, 0.34):
        e.line([(x, 0.0), (x - 0.08, e.r.uniform(0.25, 0.45))], e.mix(e.dark, e.light, 0.35), 0.014)
    puffs = [(-0.34, -0.16, 0.15), (0.34, -0.16, 0.16), (-0.16, -0.28, 0.19), (0.14, -0.3, 0.2), (0.0, -0.14, 0.22)]
    for x, y, radius in puffs:
        e.oval(x, y + 0.02, radius * 1.15, radius, e.dark)
        e.oval(x - 0.02, y - 0.05, radius * 0.85, radius * 0.6, e.mix(e.dark, e.light, 0.3))


@_subject("8fb43a", "b07a20", floats=True)
def _blobs(e: Easel) -> None:
    for i, (x, y) in enumerate([(-0.2, -0.16), (0.22, -0.1), (-0.08, 0.2), (0.26, 0.26), (-0.34, 0.16)]):
        size = e.r.uniform(0.14, 0.23)
        fill = (e.main, e.accent, e.mix(e.main, e.dark, 0.4))[i % 3]
        wobble = [size * e.r.uniform(0.75, 1.25) for _ in range(11)]
        drip = y + size + e.r.uniform(0.02, 0.12)
        e.line([(x, y), (x, drip)], e.mix(fill, e.dark, 0.3), 0.08)
        e.oval(x, drip, 0.05, 0.06, e.mix(fill, e.dark, 0.3))
        rim = [(x + w * cos(2 * pi * k / 11), y + w * sin(2 * pi * k / 11)) for k, w in enumerate(wobble)]
        e.poly([(u * 1.08 - 0.08 * x, v * 1.08 - 0.08 * y + 0.02) for u, v in rim], e.mix(fill, e.dark, 0.7))
        e.poly(rim, fill)
        e.oval(x - size * 0.35, y - size * 0.4, size * 0.25, size * 0.16, e.mix(fill, e.light, 0.8))
        e.oval(x + size * 0.3, y + size * 0.2, size * 0.2, size * 0.2, e.mix(fill, e.dark, 0.5))


@_subject("b8c83a", "d83a2f")
def _fruit(e: Easel) -> None:
    e.oval(0.0, 0.36, 0.47, 0.11, e.mix(e.light, e.ground, 0.3))
    e.oval(0.0, 0.34, 0.38, 0.07, e.mix(e.light, e.dark, 0.35))
    for x, y, fill in ((-0.22, 0.14, e.accent), (0.22, 0.15, e.main), (0.0, -0.1, e.mix(e.main, e.accent, 0.5))):
        e.oval(x, y, 0.2, 0.19, e.mix(fill, e.dark, 0.45))
        e.oval(x - 0.015, y - 0.015, 0.18, 0.17, fill)
        e.line([(x, y - 0.15), (x + 0.04, y - 0.27)], e.dark, 0.03)
        e.oval(x + 0.1, y - 0.25, 0.07, 0.03, e.mix(e.dark, e.main, 0.4), turn=-0.4)
        for _ in range(3):
            e.oval(x + e.r.uniform(-0.1, 0.1), y + e.r.uniform(-0.08, 0.1), 0.045, 0.035, (62, 44, 22))
    for _ in range(4):
        e.oval(e.r.uniform(-0.4, 0.4), e.r.uniform(-0.45, -0.25), 0.018, 0.014, (15, 15, 12))


@_subject("ffffff", "c9e03a", floats=True)
def _eyes(e: Easel) -> None:
    for x, y, half in ((-0.25, -0.2, 0.2), (0.25, -0.2, 0.2), (-0.18, 0.24, 0.13), (0.2, 0.24, 0.13)):
        y += e.r.uniform(-0.03, 0.03)
        for grow, fill in ((1.3, e.dark), (1.0, e.light)):
            w, h = half * grow, half * 0.62 * grow
            e.poly([(x - w, y), (x - w * 0.4, y - h), (x + w * 0.4, y - h), (x + w, y), (x + w * 0.4, y + h * 0.8),
                    (x - w * 0.4, y + h * 0.8)], fill)  # fmt: skip
        e.oval(x, y - 0.01, half * 0.46, half * 0.52, e.accent)
        e.oval(x, y - 0.01, half * 0.15, half * 0.5, (6, 5, 8))


@_subject("1a141c", "6a4a8a")
def _jagged(e: Easel) -> None:
    rim, steps = [(-0.5, 0.5)], 9
    for i in range(steps):
        x = -0.46 + 0.92 * i / (steps - 1)
        top = -0.5 + 1.1 * abs(x) + e.r.uniform(-0.08, 0.08)
        rim += [(x - 0.04, top + 0.26), (x + e.r.uniform(-0.04, 0.04), top)]
    rim += [(0.5, 0.3), (0.5, 0.5)]
    e.poly([(x * 1.1, y * 1.05 - 0.02) for x, y in rim], e.mix(e.dark, e.accent, 0.45))
    e.poly(rim, e.dark)
    for x in (-0.3, -0.1, 0.12, 0.32):
        e.poly([(x - 0.05, 0.5), (x, 0.24), (x + 0.06, 0.5)], e.mix(e.dark, e.main, 0.4))


@_subject("4a3524", "7a5a3a")
def _tree(e: Easel) -> None:
    def grow(x: float, y: float, angle: float, length: float, depth: int) -> None:
        tip = (x + length * sin(angle), y - length * cos(angle))
        e.line([(x, y), tip], e.dark, 0.012 + 0.016 * depth)
        if depth:
            for turn in (e.r.uniform(-0.75, -0.4), e.r.uniform(0.4, 0.75)):
                # Branches bend downward toward their tips.
                grow(*tip, (angle + turn) * 1.12, length * e.r.uniform(0.62, 0.76), depth - 1)

    grow(0.0, 0.5, e.r.uniform(-0.15, 0.15), 0.34, 4)
    for _ in range(4):
        e.oval(e.r.uniform(-0.4, 0.4), e.r.uniform(0.44, 0.52), 0.03, 0.018, e.mix(e.accent, e.dark, 0.4))


@_subject("2c3a63", "2c3a63")
def _figure(e: Easel) -> None:
    e.poly([(-0.05, 0.48), (0.1, 0.48), (0.5, 0.56), (0.3, 0.58)], e.mix(e.ground, e.dark, 0.6))
    for x in (-0.06, 0.07):
        e.line([(x, 0.25), (x, 0.49)], e.dark, 0.07)
    e.poly([(-0.08, -0.26), (0.08, -0.26), (0.17, 0.34), (-0.17, 0.34)], e.mix(e.dark, e.main, 0.25))
    for side in (-1, 1):
        e.line([(side * 0.1, -0.2), (side * 0.17, 0.12)], e.dark, 0.06)
    e.oval(0.02, -0.36, 0.09, 0.11, e.mix(e.light, e.dark, 0.25))
    e.poly([(-0.09, -0.4), (0.12, -0.43), (0.08, -0.5), (-0.05, -0.5)], e.dark)


@_subject("f4f4f0", "3f4f8f", floats=True)
def _grid(e: Easel) -> None:
    fills = (e.main, e.accent, e.light, e.mix(e.main, e.light, 0.5), e.low, e.dark)
    cuts = [-0.48, e.r.uniform(-0.3, -0.1), e.r.uniform(0.0, 0.1), e.r.uniform(0.2, 0.34), 0.48]
    rows = [-0.48, e.r.uniform(-0.25, -0.05), e.r.uniform(0.08, 0.3), 0.48]
    for x0, x1 in pairwise(cuts):
        for y0, y1 in pairwise(rows):
            e.poly([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], e.r.choice(fills))
    for x in cuts:
        e.line([(x, -0.49), (x, 0.49)], e.dark, 0.03)
    for y in rows:
        e.line([(-0.49, y), (0.49, y)], e.dark, 0.03)


@_subject("f0902f", "2fa8b8", floats=True)
def _rings(e: Easel) -> None:
    fills = (e.main, e.accent, e.dark, e.light)
    for i, (x, y) in enumerate([(-0.22, -0.18), (0.2, 0.14), (0.24, -0.26), (-0.18, 0.28)]):
        size = e.r.uniform(0.15, 0.24)
        for ring in range(3):
            e.oval(x, y, size * (1 - ring * 0.32), size * (1 - ring * 0.32), fills[(i + ring) % 4])
    x, y = e.r.uniform(-0.3, 0.1), e.r.uniform(-0.2, 0.1)
    e.poly([(x, y), (x + 0.32, y + 0.06), (x + 0.1, y + 0.3)], e.mix(e.accent, e.dark, 0.4))
    e.line([(-0.46, 0.06), (0.46, -0.12)], e.dark, 0.022)
