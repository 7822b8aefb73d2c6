"""Seconds until a command ends: its help, a configuration error, and the caption of one image.

python -m benchmarks.start_up --run runs/demo --image IMAGE [--repeats 5]
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

import torch

from benchmarks.real_size import interleaved, print_table
from common.config.check import ROOT


def run(*arguments: str, status: int = 0) -> None:
    done = subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True)
    if done.returncode != status:
        raise SystemExit(f"error: {' '.join(arguments)} ended with {done.returncode}: {done.stderr[-500:]}")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.start_up", description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, required=True, help="folder of a trained run")
    parser.add_argument("--image", type=Path, required=True)
    parser.add_argument("--repeats", type=int, default=5, help="rounds after the warm-up (%(default)s)")
    options = parser.parse_args()
    predict = ["mode=predict", f"pretrained_name={options.run.resolve()}", f"image={options.image.resolve()}"]
    with tempfile.TemporaryDirectory() as out:
        predict += [f"trainer.exp_dir={out}", "name=one", "trainer.overwrite=true"]
        works = {
            "python -c pass": partial(run, "-c", "pass"),
            "import torch": partial(run, "-c", "import torch"),
            "run.py --help": partial(run, "run.py", "--help"),
            "unknown key": partial(run, "run.py", "mode=train", "trainer.epoch=3", status=2),
            "value that is not allowed": partial(run, "run.py", "mode=train", "trainer.precision=half", status=2),
            "mode=predict, one image": partial(run, "run.py", *predict),
        }
        found = interleaved(works, options.repeats, torch.device("cpu"))
    print_table(("command", "s"), found.items())
    return 0


if __name__ == "__main__":
    sys.exit(main())
