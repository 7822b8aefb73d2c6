from __future__ import annotations

import re

import pytest

from common.config.check import ROOT

LINK = re.compile(r"\]\((?!https?:)([^)#]*)(?:#([^)]*))?\)")
SOURCE = re.compile(r"`((?:[\w*<>.-]+/)*[\w*<>-]+\.py)`")
CODE = ("common", "data", "model", "trainer", "tests", "benchmarks", "docs")
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files_and_headings(page) -> None:
    for name, heading in LINK.findall(page.read_text(encoding="utf-8")):
        target = page.parent / name if name else page
        assert target.exists(), f"no file {name}"
        if heading:
            titles = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), re.MULTILINE)
            slugs = [re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles]
            assert heading in slugs, f"no heading {heading} in {name}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_source_files_exist(page) -> None:
    for name in SOURCE.findall(page.read_text(encoding="utf-8")):
        pattern = re.sub("<.*?>", "*", name)
        found = any(ROOT.glob(pattern))
        if "/" not in name:
            if page.name == "coming_from_other_systems.md":  # names scripts of these systems
                continue
            found = found or any(path for folder in CODE for path in (ROOT / folder).rglob(name))
        assert found, f"no file {name}"
