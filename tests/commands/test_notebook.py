"""docs/quickstart.ipynb, its cells run in order on a small network in the place of the demo's."""

from __future__ import annotations

import ast
import json
import shutil
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import pytest

from common.reading import ROOT
from tests.helpers.tiny import run_mode, write_pictures
from tests.trainer.test_interface import write_diverse_run
from trainer.interface import Explanation, WordMaps

NOTEBOOK = ROOT / "docs" / "quickstart.ipynb"


def run_cell(source: str, names: dict) -> object:
    """Run a cell; return the value of its last expression, which Jupyter shows."""
    tree = ast.parse(source)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, str(NOTEBOOK), "exec"), names)
    return eval(compile(ast.Expression(last.value), str(NOTEBOOK), "eval"), names) if last else None


@pytest.fixture
def repository(tmp_path, monkeypatch) -> Path:
    """A folder like the repository after `make demo`."""
    run = write_diverse_run(tmp_path / "written")
    run_mode("test", {"pretrained_name": run, "trainer.test.novelty": False})
    (tmp_path / "runs").mkdir()
    shutil.copytree(run, tmp_path / "runs" / "demo")
    shutil.copytree(run, tmp_path / "runs" / "other")
    write_pictures(tmp_path / "datasets/demo/samples", 5)
    for style in ("Broad_Impressionism", "Veiled_Realism"):
        write_pictures(tmp_path / "datasets/demo/images" / style, 3)
    (tmp_path / "docs").mkdir()
    monkeypatch.chdir(tmp_path / "docs")
    return tmp_path


def test_every_cell_of_the_notebook_runs(repository, monkeypatch, capsys):
    monkeypatch.setattr(plt, "show", lambda: None)
    previous, names = matplotlib.get_backend(), {}
    matplotlib.use("agg")
    cells = [cell for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
    shown = [run_cell("".join(cell["source"]), names) for cell in cells]
    bars = len(plt.gcf().axes[0].patches)
    plt.close("all")
    matplotlib.use(previous)
    assert [type(value) for value in shown if value is not None] == [Explanation, WordMaps]
    printed = capsys.readouterr().out
    assert Path.cwd() == repository and bars == 9 * 2
    assert printed.count("accuracy") == 2 and "demo" in printed and "other" in printed and "→" in printed
