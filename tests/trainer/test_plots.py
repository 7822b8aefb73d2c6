"""Plots of the test report."""

from __future__ import annotations

import re

import numpy as np

from common.html.figures import VARIABLES
from trainer.metrics.calibration import reliability
from trainer.report.plots import MOST_POINTS, reliability_diagram, vad_scatter


def rows(count: int) -> list[dict]:
    values = np.linspace(-0.5, 0.5, count)
    return [{"valence": float(v), "people_valence": float(-v), "arousal": None, "people_arousal": 0.1} for v in values]


def points(svg: str) -> list[tuple[float, float]]:
    """Return the centers of the points in SVG coordinates (y downwards)."""
    return [(float(x), float(y)) for x, y in re.findall(r'<use [^>]*x="([\d.]+)" y="([\d.]+)" [^>]*#4a7fb5', svg)]


def circles(svg: str) -> list[tuple[float, float]]:
    """Return the centers of points of different sizes."""
    found = re.findall(r'<path d="([^"]*)"[^>]*fill: #4a7fb5', svg)
    corners = [np.array(re.findall(r"-?[\d.]+", path), dtype=float).reshape(-1, 2) for path in found]
    return [tuple((path.min(axis=0) + path.max(axis=0)) / 2) for path in corners]


def test_diagram_has_a_point_for_each_bin_with_images():
    bins = reliability(np.array([0.2, 0.55, 0.56, 0.95]), np.array([False, True, False, True]))
    svg = reliability_diagram(bins)
    heights = sorted(y for _, y in circles(svg))
    assert len(heights) == 3 and heights[0] < heights[1] < heights[2], "always, half the time, never right"
    assert abs((heights[0] + heights[2]) / 2 - heights[1]) < 0.01


def test_no_diagram_without_images():
    assert reliability_diagram([]) is None
    assert reliability_diagram(reliability(np.empty(0), np.empty(0, dtype=bool))) is None


def test_scatter_has_a_point_for_each_image_with_both_values():
    svg = vad_scatter([*rows(7), {"valence": None, "people_valence": 0.2}, {"id": "bare"}], "valence")
    found = points(svg)
    assert len(found) == 7
    up = [y for _, y in sorted(found)]
    assert up == sorted(up), "where people's values rise, the model's fall"
    assert vad_scatter(rows(7), "arousal") is None and vad_scatter([], "valence") is None


def test_seed_selects_among_many_points():
    many = rows(MOST_POINTS + 50)
    first = vad_scatter(many, "valence", seed=1)
    assert len(points(first)) == MOST_POINTS
    assert first == vad_scatter(many, "valence", seed=1) != vad_scatter(many, "valence", seed=2)


def test_equal_values_can_be_plotted():
    assert len(points(vad_scatter([{"valence": 0.5, "people_valence": 0.5}] * 2, "valence"))) == 2


def test_figures_use_the_colors_of_the_page():
    for svg in (vad_scatter(rows(3), "valence"), reliability_diagram(reliability(np.array([0.5]), np.array([True])))):
        assert not any(colour in svg for colour in VARIABLES)
        assert "#000000" not in svg and "var(--soft)" in svg
