"""Predict a collection in tar archives: speed, memory from the first to the last shard, and ten kills on the way.

    python -m benchmarks.shards --run runs/demo --shards 100 --pictures 1000

Writes so many archives of small JPEG files, no two alike, then prints as JSON:

- reading: pictures a second that are read, decoded and transformed by one process, without the network;
- finding: pictures a second whose places are found and whose bytes are read, of all archives under --links names each,
  and the memory of that process after 1 % and at the end;
- one, two: pictures a second of mode=predict (emotions alone) by so many processes, without its start, and its memory
  in MB (proportional set size of all its processes) after 1 % of the shards, at its highest, and at the end;
- killed: times that it was killed at a random moment and started again, the results that then differ from those of the
  unbroken command, by their SHA-256, and shards that were predicted twice although they were finished.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import random
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
from PIL import Image

from common.cli import exit_status, run_program
from common.config.check import ROOT
from common.files import sha256
from common.progress import progress

SIDE, GRID = 64, 8  # pixels of a picture, and of the noise that it is enlarged from
KILLS = 10


def main(argv: list[str] | None = None) -> int:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="python -m benchmarks.shards", description=__doc__, formatter_class=form)
    add = parser.add_argument
    add("--run", type=Path, required=True)
    add("--shards", type=int, default=100, help="(%(default)s)")
    add("--pictures", type=int, default=1000, help="in each shard (%(default)s)")
    add("--batch-size", type=int, default=32, help="(%(default)s)")
    add("--links", type=int, default=20, help="names of each archive for finding (%(default)s)")
    add("--folder", type=Path, help="for the shards, which are kept (default: a temporary folder)")
    add("--seed", type=int, default=0, help="of pictures and kills (%(default)s)")
    options = parser.parse_args(argv)
    return exit_status(lambda: _run(options))


def _run(options: argparse.Namespace) -> int:
    with tempfile.TemporaryDirectory() as temporary:
        folder = (options.folder or Path(temporary)).resolve()
        pattern = write_shards(folder / "shards", options.shards, options.pictures, seed=options.seed)
        result = {"pictures": options.shards * options.pictures, "reading": round(read_alone(pattern), 1)}
        result["finding"] = find_alone(pattern, Path(temporary) / "links", options.links)
        command = Predict(options, pattern, Path(temporary) / "runs")
        for name, count in (("one", 1), ("two", 2)):
            result[name] = command.measured(name, count)
        whole = command.digests("one")
        result["two"]["other results"] = differing(whole, command.digests("two"))
        result["killed"] = command.killed("killed", random.Random(options.seed), result["one"]["seconds"])
        result["killed"]["other results"] = differing(whole, command.digests("killed"))
    print(json.dumps(result, indent=2))
    return 0


def write_shards(folder: Path, shards: int, pictures: int, *, seed: int) -> str:
    """Write the archives that are missing; return their pattern."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in progress_over(range(shards), "writing shards"):
        path = folder / f"{number:05}.tar"
        if path.exists():
            continue
        rng, part = np.random.default_rng([seed, number]), path.with_suffix(".part")
        with tarfile.open(part, "w") as archive:
            for row, noise in enumerate(rng.integers(0, 256, (pictures, GRID, GRID, 3), dtype=np.uint8)):
                file = io.BytesIO()
                Image.fromarray(noise).resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(file, "JPEG")
                member = tarfile.TarInfo(f"{row:06}.jpg")
                member.size = file.tell()
                file.seek(0)
                archive.addfile(member, file)
        part.replace(path)
    return f"{folder}/{{00000..{shards - 1:05}}}.tar"


def progress_over(numbers: range, what: str) -> Iterator[int]:
    with progress(len(numbers), what, unit="shard") as bar:
        for number in numbers:
            yield number
            bar.update()


def read_alone(pattern: str) -> float:
    """Return the pictures a second of a loader's work, on a tenth of the shards."""
    from data.frames import FrameReader
    from data.readers.shard_lists import find_shards
    from data.samples import Samples
    from data.shard_stream import ShardStream
    from data.views import ImageDataset

    found = find_shards(pattern, where="pattern").found
    read = FrameReader({"size": SIDE}, max_frames=1)
    dataset = ImageDataset(Samples.pack(()), read=read, seed=0, tokens=None)
    begin, count = time.perf_counter(), 0
    for part in ShardStream(found[: max(1, len(found) // 10)], dataset, list, 32):
        count += len(part.samples)
    return count / (time.perf_counter() - begin)


def find_alone(pattern: str, folder: Path, links: int) -> dict[str, float]:
    """Read the archives under further names, as hard links, without decoding."""
    from data.readers.shard_lists import find_shards
    from data.readers.shards import pictures_in
    from data.shards import read_picture

    folder.mkdir()
    shards = find_shards(pattern, where="pattern").found
    for number in range(links):
        for shard in shards:
            os.link(shard.path, folder / f"{number:05}-{shard.name}")
    found, begin, count, sizes = find_shards(str(folder), where="folder").found, time.perf_counter(), 0, []
    for shard in found:
        for sample in pictures_in(shard)[0]:
            read_picture(sample.path)
            count += 1
        sizes.append(psutil.Process().memory_info().rss / 1e6)
    rate, early = count / (time.perf_counter() - begin), sizes[len(sizes) // 100]
    return {"pictures": count, "a second": round(rate), "MB after 1 %": round(early), "MB at the end": round(sizes[-1])}


def differing(first: dict[str, str], second: dict[str, str]) -> int:
    return sum(first.get(name) != second.get(name) for name in {*first, *second})


class Predict:
    """Commands mode=predict on the shards; each has a folder in `runs`."""

    def __init__(self, options: argparse.Namespace, pattern: str, runs: Path) -> None:
        self.options, self.pattern, self.runs = options, pattern, runs

    def start(self, name: str, processes: int = 1) -> subprocess.Popen:
        launcher = [sys.executable]
        if processes > 1:
            launcher += ["-m", "torch.distributed.run", "--nproc-per-node", str(processes), "--master-port", "29511"]
        keys = {
            "pretrained_name": self.options.run.resolve(),
            "image": self.pattern,
            "trainer.exp_dir": self.runs,
            "name": name,
            "dataset.explanations": "false",
            "dataset.test_ds.batch_size": self.options.batch_size,
            "dataset.test_ds.num_workers": 1,
        }
        words = [f"{key}={value}" for key, value in keys.items()]
        self.runs.mkdir(parents=True, exist_ok=True)
        log = (self.runs / f"{name}.log").open("ab")
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        command = [*launcher, str(ROOT / "run.py"), "mode=predict", *words]
        return subprocess.Popen(command, stdout=log, stderr=log, cwd=ROOT, env=environment, start_new_session=True)

    def finished(self, name: str) -> list[Path]:
        return sorted((self.runs / name / "predict" / "finished").glob("*.json"))

    def measured(self, name: str, processes: int) -> dict[str, float]:
        """Return seconds from the first shard's end on, pictures a second, and memory."""
        process, times, sizes = self.start(name, processes), [], []
        while process.poll() is None:
            done = len(self.finished(name))
            if done:
                times.append((time.monotonic(), done))
                sizes.append((done, memory_of(process.pid)))
            time.sleep(0.5)
        self.require(name, process)
        (first, before), (last, done) = times[0], next(entry for entry in times if entry[1] == times[-1][1])
        early = next(size for done, size in sizes if done >= 0.01 * self.options.shards)
        seconds = last - first
        return {
            "seconds": round(seconds, 1),
            "pictures a second": round((done - before) * self.options.pictures / seconds, 1),
            "MB after 1 %": early,
            "MB at most": max(size for _, size in sizes),
            "MB at the end": next(size for done, size in reversed(sizes) if done < self.options.shards),
        }

    def killed(self, name: str, rng: random.Random, seconds: float) -> dict[str, int]:
        """Kill the command at random moments, then let it end; return how often, and the shards predicted twice."""
        twice = kills = 0
        for number in range(KILLS + 1):
            times = {path: path.stat().st_mtime_ns for path in self.finished(name)}
            process = self.start(name)
            if number < KILLS:
                self.wait_for(name, process, len(times) + 1)  # so that each start finishes something
                with suppress(subprocess.TimeoutExpired):
                    process.wait(rng.uniform(0, seconds / KILLS))
                kills += process.poll() is None
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            else:
                process.wait()
                self.require(name, process)
            twice += sum(path.stat().st_mtime_ns != times[path] for path in times)
        return {"times": kills, "finished shards predicted twice": twice}

    def wait_for(self, name: str, process: subprocess.Popen, count: int) -> None:
        while process.poll() is None and len(self.finished(name)) < min(count, self.options.shards):
            time.sleep(0.1)

    def require(self, name: str, process: subprocess.Popen) -> None:
        if process.returncode:
            raise SystemExit((self.runs / f"{name}.log").read_text(errors="replace")[-3000:])

    def digests(self, name: str) -> dict[str, str]:
        folder = self.runs / name / "predict" / "predictions"
        return {path.name: sha256(path) for path in sorted(folder.iterdir())}


def memory_of(pid: int) -> int:
    """Return the proportional set size in MB of a process and its children."""
    total = 0
    with suppress(psutil.Error):
        main_process = psutil.Process(pid)
        for process in (main_process, *main_process.children(recursive=True)):
            with suppress(psutil.Error):
                total += process.memory_full_info().pss
    return round(total / 1e6)


if __name__ == "__main__":
    run_program(main)
