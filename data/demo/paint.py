"""Paint a demo scene: a gradient and brush strokes, the subject on top, and a few strokes over both."""

from __future__ import annotations

import colorsys
from math import cos, sin
from random import Random

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from data.demo.easel import Color, Easel, Placement
from data.demo.scenes import Scene
from data.demo.subjects import FLOATING, OWN_COLORS, SUBJECTS

# Sky, sky at the horizon, ground, and the subject's main, accent, dark and light.
PALETTES: dict[str, tuple[str, ...]] = {
    "candy": ("ff9fd0", "ffe58f", "6fd6cc", "ff4f8b", "3f9dff", "8a3fb0", "fffbe6"),
    "luminous": ("1f4a96", "ffd070", "2d5b86", "fff0cf", "ffb52e", "18305c", "fff8e0"),
    "meadow": ("a5d3e6", "eef3d2", "86b765", "fbf1d9", "ea9178", "4c7a45", "fffdf0"),
    "pastel": ("cbb8e6", "ffdcc9", "bfe0d2", "fff4e8", "f4a6b7", "8e7fae", "ffffff"),
    "fire": ("d8331f", "ffb42b", "97203a", "ffe27a", "ff5a1f", "5a0f24", "fff3c4"),
    "blood": ("1c0a0c", "9c1018", "120709", "dd1f22", "ff5b3a", "050304", "f0b0a0"),
    "murk": ("6b6a28", "a99c3f", "4c4a1c", "8f9a3a", "b0652f", "2e2c12", "d2cf7e"),
    "night": ("0a0b24", "3a3878", "12111f", "5a58a0", "e8e3a6", "020206", "b9b8d8"),
    "ash": ("77839a", "b8c0c8", "5d6676", "3c4454", "8fa2bf", "262c38", "dfe4ea"),
    "earth": ("b9a684", "dccfb2", "8b7350", "6e5a44", "a98b55", "463a2e", "efe6d0"),
    "sea": ("1c5f8f", "8fd0d8", "14506b", "f1f7f4", "2fb3b5", "0d2f45", "ffffff"),
    "violet": ("4a1c7c", "c04fb8", "2c1450", "ffd84a", "ff6fd0", "1b0b33", "f6e3ff"),
}
SUPERSAMPLING = 2  # painted larger and then averaged, for smooth edges


Box = tuple[float, float, float, float]  # left, top, right, bottom, in shares of the picture


def paint(scene: Scene, r: Random, *, image_size: int) -> tuple[Image.Image, list[Box]]:
    """Return an RGB picture of `scene`, image_size × image_size, and the box of each subject; `r` samples the details.

    A box is the square that the subject is drawn in, before rotation.
    """
    size = image_size * SUPERSAMPLING
    shift = r.gauss(0, 0.018), r.uniform(0.82, 1.12), r.uniform(0.86, 1.1)
    tints = [_jitter(color, *shift) for color in PALETTES[scene.palette]]
    horizon, tilt = _horizon(scene.composition, r)
    image = _background(tints, horizon=horizon, tilt=tilt, size=size)
    STROKES[scene.brush](image, r, 1.0)
    if scene.brush == "smooth":
        image = image.filter(ImageFilter.GaussianBlur(size * 0.025))
    places = _placements(scene, horizon, tilt, r)
    for place in places:
        SUBJECTS[scene.subject](Easel(image, _own_colors(tints, scene.subject), r, place, flip=r.random() < 0.5))
    STROKES[scene.brush](image, r, 0.06)
    grain = np.random.default_rng(r.getrandbits(64)).normal(0.0, 2.5, (image_size, image_size, 1))
    pixels = np.asarray(image.reduce(SUPERSAMPLING), dtype=np.float64) + grain
    return Image.fromarray(np.clip(np.rint(pixels), 0, 255).astype(np.uint8)), [_box(*place) for place in places]


def _box(x: float, y: float, scale: float, _: float) -> Box:
    return tuple(
        round(min(1.0, max(0.0, edge)), 4) for edge in (x - scale / 2, y - scale / 2, x + scale / 2, y + scale / 2)
    )


def _jitter(code: str, hue: float, saturation: float, value: float) -> Color:
    h, s, v = colorsys.rgb_to_hsv(*(c / 255 for c in bytes.fromhex(code)))
    return tuple(round(255 * c) for c in colorsys.hsv_to_rgb((h + hue) % 1, min(1, s * saturation), min(1, v * value)))


def _own_colors(tints: list[Color], subject: str) -> list[Color]:
    """Return the palette with main and accent halfway to the subject's own colors."""
    own = zip(tints[3:5], map(bytes.fromhex, OWN_COLORS[subject]), strict=True)
    mixed = [tuple((p + q) // 2 for p, q in zip(a, b, strict=True)) for a, b in own]
    return [*tints[:3], *mixed, *tints[5:]]


def _horizon(composition: str, r: Random) -> tuple[float, float]:
    """Return the height of the horizon in the middle (0 top, 1 bottom) and its slope."""
    low, high = {
        "vast": (0.83, 0.89),
        "high": (0.26, 0.33),
        "centered": (0.60, 0.66),
        "close": (0.71, 0.77),
        "diagonal": (0.55, 0.65),
        "scattered": (0.46, 0.53),
    }[composition]
    slope = r.choice((-1, 1)) * r.uniform(0.4, 0.65) if composition == "diagonal" else r.uniform(-0.04, 0.04)
    return r.uniform(low, high), slope


def _background(tints: list[Color], *, horizon: float, tilt: float, size: int) -> Image.Image:
    above, below, ground, *_ = (np.array(t, dtype=np.float64) for t in tints)
    grid = (np.arange(size) + 0.5) / size
    y, line = grid[:, None], horizon + tilt * (grid[None, :] - 0.5)  # (S, 1), (1, S)
    sky_share = np.clip(y / np.maximum(line, 0.05), 0, 1)[..., None]  # (S, S, 1)
    depth = np.clip((y - line) / 0.6, 0, 1)[..., None]
    sky = above + (below - above) * sky_share**1.3
    land = (0.8 * ground + 0.2 * below) * (1 - depth) + 0.78 * ground * depth
    return Image.fromarray(np.where((y > line)[..., None], land, sky).astype(np.uint8))


def _placements(scene: Scene, horizon: float, tilt: float, r: Random) -> list[Placement]:
    """Return (x, y, scale, angle) of every copy of the subject, in shares of the picture and radians."""
    floats, angle = scene.subject in FLOATING, r.gauss(0, 0.04)
    if scene.composition == "scattered":
        columns = r.sample((0.19, 0.4, 0.62, 0.83), k=4 if floats else 3)
        rows = [r.uniform(0.18, 0.8) if floats else horizon + r.uniform(-0.06, 0.28) for _ in columns]
        spots = sorted((y, x + r.uniform(-0.04, 0.04)) for x, y in zip(columns, rows, strict=True))
        return [(x, y, r.uniform(0.38, 0.44), angle + r.gauss(0, 0.08)) for y, x in spots]
    x = {"left": 0.29, "middle": 0.5, "right": 0.71}[scene.place] + r.uniform(-0.04, 0.04)
    small, large = {"vast": (0.42, 0.50), "high": (0.48, 0.56), "centered": (0.58, 0.66), "close": (0.88, 1.04)}.get(
        scene.composition, (0.58, 0.66)
    )
    scale = r.uniform(small, large)
    if scene.composition == "diagonal":
        angle += tilt * 0.6
    if scene.composition == "close":
        return [(x, 0.5 + r.uniform(-0.03, 0.05), scale, angle)]
    if floats:
        return [(x, r.uniform(0.32, 0.5) if scene.composition != "high" else r.uniform(0.4, 0.6), scale, angle)]
    sunk = r.uniform(0.04, 0.12) if scene.composition != "high" else r.uniform(0.18, 0.4)
    return [(x, horizon + tilt * (x - 0.5) + sunk - scale / 2, scale, angle)]


def _near(image: Image.Image, x: float, y: float, r: Random, spread: int) -> Color:
    """Return the color of the picture at (x, y), lighter or darker by up to `spread`."""
    last, change = image.width - 1, r.randint(-spread, spread)
    pixel = image.getpixel((min(last, max(0, int(x))), min(last, max(0, int(y)))))
    return tuple(min(255, max(0, c + change + r.randint(-6, 6))) for c in pixel)


def _broad(image: Image.Image, r: Random, amount: float) -> None:
    draw, n = ImageDraw.Draw(image), image.width
    for _ in range(round(90 * amount)):
        x, y, half = r.random() * n, r.random() * n, r.uniform(0.06, 0.16) * n
        width = round(r.uniform(0.03, 0.05) * n * (1 if amount == 1 else 0.5))
        draw.line((x - half, y, x + half, y + r.gauss(0, 0.01) * n), fill=_near(image, x, y, r, 36), width=width)


def _dabs(image: Image.Image, r: Random, amount: float) -> None:
    draw, n = ImageDraw.Draw(image), image.width
    for _ in range(round(300 * amount)):
        x, y, radius = r.random() * n, r.random() * n, r.uniform(0.018, 0.03) * n
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=_near(image, x, y, r, 48))


def _swirls(image: Image.Image, r: Random, amount: float) -> None:
    draw, n = ImageDraw.Draw(image), image.width
    eyes = [(r.uniform(0.1, 0.9) * n, r.uniform(0.05, 0.6) * n) for _ in range(3)]
    for _ in range(round(130 * amount)):
        x, y = r.random() * n, r.random() * n
        cx, cy = min(eyes, key=lambda eye: (eye[0] - x) ** 2 + (eye[1] - y) ** 2)
        fill, turn, points = _near(image, x, y, r, 44), r.uniform(0.1, 0.22), [(x, y)]
        for _ in range(5):
            x, y = cx + (x - cx) * cos(turn) - (y - cy) * sin(turn), cy + (x - cx) * sin(turn) + (y - cy) * cos(turn)
            points.append((x, y))
        draw.line(points, fill=fill, width=max(1, round(0.022 * n)))


def _hatching(image: Image.Image, r: Random, amount: float) -> None:
    draw, n = ImageDraw.Draw(image), image.width
    lean = r.choice((-1, 1)) * r.uniform(0.6, 1.4)
    for _ in range(round(190 * amount)):
        x, y, half = r.random() * n, r.random() * n, r.uniform(0.03, 0.08) * n
        fill, steep = _near(image, x, y, r, 60), lean + r.gauss(0, 0.15)
        draw.line((x - half, y - half * steep, x + half, y + half * steep), fill=fill, width=max(1, round(0.012 * n)))


def _drips(image: Image.Image, r: Random, amount: float) -> None:
    draw, n = ImageDraw.Draw(image), image.width
    for _ in range(round(80 * amount)):
        x, y, length = r.random() * n, r.random() * n, r.uniform(0.08, 0.35) * n
        fill, half = _near(image, x, y, r, 46), r.uniform(0.008, 0.014) * n
        draw.line((x, y, x, y + length), fill=fill, width=max(1, round(2 * half)))
        draw.ellipse((x - 1.6 * half, y + length - 2 * half, x + 1.6 * half, y + length + 2 * half), fill=fill)


def _smooth(image: Image.Image, r: Random, amount: float) -> None:
    draw, n = ImageDraw.Draw(image), image.width
    for _ in range(round(36 * amount) if amount == 1 else 0):
        x, y, radius = r.random() * n, r.random() * n, r.uniform(0.05, 0.12) * n
        fill = _near(image, x, y, r, 16)
        draw.ellipse((x - 1.6 * radius, y - 0.6 * radius, x + 1.6 * radius, y + 0.6 * radius), fill=fill)


STROKES = {draw.__name__.strip("_"): draw for draw in (_broad, _dabs, _swirls, _hatching, _drips, _smooth)}
