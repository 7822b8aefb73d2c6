"""Each mode imports only what it needs."""

from __future__ import annotations

import subprocess
import sys

from tests.helpers.tiny import ROOT, arguments, write_run, write_splits

# Runs run.py with the arguments of the process, then prints the imported modules of this project, one per line.
PROGRAM = """
import sys, run
run.main()
print(*(name for name in sys.modules if name.partition(".")[0] in ("data", "model", "trainer")), sep="\\n")
"""


def test_predict_imports_neither_training_nor_the_demo(tmp_path) -> None:
    keys = write_splits(tmp_path)
    own = {"pretrained_name": write_run(keys, "run"), "image": keys["dataset.test_ds.visual_dir"]}
    command = [sys.executable, "-c", PROGRAM, "mode=predict", *arguments(own)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    modules = done.stdout.splitlines()
    assert "trainer.prediction.command" in modules
    assert [name for name in modules if name.startswith(("trainer.loop", "trainer.stages", "data.demo"))] == []
