"""How long a command takes before it says anything: its help, a mistake, and the caption of one picture.

    python -m benchmarks.start_up --run runs/demo --image PICTURE [--repeats 5] [--out FILE.json]

Each command is a process of its own; a round takes every one of them once, and times are medians over the rounds after
one to warm up (files in memory, Python's caches of byte code). Beside them what Python and torch take by themselves.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from files import write_text
from settings import ROOT
from trainer.provenance import provenance

NOTHING = "python, nothing"


def commands(run: Path, image: Path, out: str) -> dict[str, tuple[list[str], int]]:
    """Arguments of Python and the status that is expected, by name."""
    script = str(ROOT / "run.py")
    predict = ["mode=predict", f"pretrained_name={run}", f"image={image}", f"trainer.exp_dir={out}", "name=one"]
    return {
        NOTHING: (["-c", "pass"], 0),
        "import torch": (["-c", "import torch"], 0),
        "run.py --help": ([script, "--help"], 0),
        "a key that does not exist": ([script, "mode=train", "trainer.epoch=3"], 2),
        "a value that is not allowed": ([script, "mode=train", "trainer.precision=half"], 2),
        "mode=predict, one picture": ([script, *predict, "trainer.overwrite=true"], 0),
    }


def seconds(arguments: list[str], status: int) -> float:
    start = time.perf_counter()
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True)
    if done.returncode != status:
        raise SystemExit(f"{' '.join(arguments)} ended with {done.returncode}: {done.stderr[-500:]}")
    return time.perf_counter() - start


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.start_up", description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, required=True, help="a trained run")
    parser.add_argument("--image", type=Path, required=True, help="a picture")
    parser.add_argument("--repeats", type=int, default=5, help="(%(default)s)")
    parser.add_argument("--out", type=Path, help="JSON file for all times")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as out:
        works = commands(options.run.resolve(), options.image.resolve(), out)
        times: dict[str, list[float]] = {name: [] for name in works}
        for repeat in range(options.repeats + 1):
            for name, work in works.items():
                elapsed = seconds(*work)
                if repeat:
                    times[name].append(elapsed)
    if options.out:
        write_text(options.out, json.dumps({"seconds": times, **provenance()}) + "\n")
    least = statistics.median(times[NOTHING])
    print("| command | s | × Python alone |\n|---|---|---|")
    for name, values in times.items():
        print(f"| {name} | {statistics.median(values):.2f} | {statistics.median(values) / least:.0f} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
