"""Each mode imports only what it needs."""

from __future__ import annotations

import subprocess
import sys

from tests.helpers.tiny import ROOT, arguments, write_run, write_splits

# Runs run.py twice, with the arguments before and after "then"; prints the imported modules after each, in a line.
PROGRAM = """
import sys, run
middle = sys.argv.index("then")
for words in (sys.argv[1:middle], sys.argv[middle + 1 :]):
    sys.argv = ["run.py", *words]
    run.main()
    print("modules", *sys.modules)
"""


def test_predict_and_test_import_only_what_they_need(tmp_path) -> None:
    keys = write_splits(tmp_path)
    run = {"pretrained_name": write_run(keys, "run")}
    predict = arguments({"mode": "predict", **run, "image": keys["dataset.test_ds.visual_dir"]})
    test = arguments({"mode": "test", **run, "trainer.test.novelty": False})
    command = [sys.executable, "-c", PROGRAM, *predict, "then", *test]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    after_predict, after_test = (line.split()[1:] for line in done.stdout.splitlines() if line.startswith("modules "))
    assert "trainer.prediction.command" in after_predict
    training = ("trainer.loop", "trainer.stages", "data.demo")
    assert [name for name in after_predict if name.startswith(training)] == []
    vle = ("model.vle", "transformers.models.deberta")  # needed only with trainer.test.vle
    assert [name for name in after_test if name.startswith(vle)] == []
