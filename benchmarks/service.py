"""Throughput and memory of mode=serve beside mode=predict, on the same pictures of a trained run.

    python -m benchmarks.service --run runs/demo --pictures datasets/demo/images --clients 16 --requests 500

Prints the requests per second of both, the ratio, the latency of a request (median and 95th percentile), answers that
differ from mode=predict's, and how the memory of the server grew over the second half of the requests. Rates need a
machine without other work; cpu_ms, the processor time of a picture in mode=predict, in the server's busiest thread (the
network), in its other threads (HTTP) and in the clients, hardly does.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil

from benchmarks.ablation import run_command
from common.cli import exit_status, run_program
from common.errors import UserError
from data.image_files import find_images
from tests.helpers.browser import serving

GREEDY = ("trainer.test.decoding_strategy=greedy", "trainer.test.best_of=1")


def main(argv: list[str] | None = None) -> int:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="python -m benchmarks.service", description=__doc__, formatter_class=form)
    add = parser.add_argument
    add("--run", type=Path, required=True)
    add("--pictures", type=Path, required=True, metavar="FOLDER")
    add("--clients", type=int, default=16, help="(%(default)s)")
    add("--requests", type=int, default=500, help="(%(default)s)")
    options = parser.parse_args(argv)
    return exit_status(lambda: _run(options))


def _run(options: argparse.Namespace) -> int:
    pictures = find_images(options.pictures).images
    if len(pictures) < options.requests:
        raise UserError(f"--pictures {options.pictures} has {len(pictures)} pictures, fewer than --requests")
    pictures = [path.resolve() for path in pictures[: options.requests]]
    with tempfile.TemporaryDirectory() as folder:
        rows, alone, cpu = _predict(options.run.resolve(), pictures, Path(folder))
        found = _serve(options.run.resolve(), pictures, options.clients, Path(folder))
    differ = sum(rows[path] != answer for path, answer in zip(pictures, found["answers"], strict=True))
    times = sorted(found["times"])
    result = {
        "requests": len(pictures),
        "clients": options.clients,
        "predict_per_second": round(alone, 2),
        "serve_per_second": round(len(pictures) / found["seconds"], 2),
        "ratio": round(len(pictures) / found["seconds"] / alone, 3),
        "median_seconds": round(statistics.median(times), 3),
        "p95_seconds": round(times[int(0.95 * len(times))], 3),
        "cpu_ms": {name: round(1000 * value, 2) for name, value in {"predict": cpu, **found["cpu"]}.items()},
        "other_answers": differ,
        "memory_growth_MB": round(found["growth"] / 1e6, 1),
    }
    print(json.dumps(result, indent=2))
    return 0


def _predict(run: Path, pictures: list[Path], folder: Path) -> tuple[dict[Path, tuple], float, float]:
    """Return emotion and text of each picture by mode=predict; pictures per second, and processor seconds per picture.

    The last two are without the start of the command.
    """
    links = folder / "pictures"
    links.mkdir()
    for number, path in enumerate(pictures):
        (links / f"{number:05}{path.suffix}").symlink_to(path)
    shared = [
        "mode=predict",
        f"pretrained_name={run}",
        f"trainer.exp_dir={folder}",
        "dataset.follow_links=true",
        *GREEDY,
    ]
    seconds, spent = [], []
    for name, image in (("one", links / f"00000{pictures[0].suffix}"), ("all", links)):
        begin, cpu = time.perf_counter(), _of_children()
        run_command("mode=predict", *shared, "dataset.test_ds.batch_size=8", f"name={name}", f"image={image}")
        seconds.append(time.perf_counter() - begin)
        spent.append(_of_children() - cpu)
    rows = json.loads((folder / "all" / "predict" / "predictions.json").read_text())
    answers = {pictures[int(Path(row["id"]).stem)]: (row["emotion"], row["explanation"]) for row in rows}
    more = len(pictures) - 1
    return answers, more / (seconds[1] - seconds[0]), (spent[1] - spent[0]) / more


def _of_children() -> float:
    """Return the seconds of a processor that all ended processes of this one took."""
    times = psutil.Process().cpu_times()
    return times.children_user + times.children_system


def _of_threads(process: psutil.Process) -> dict[int, float]:
    return {thread.id: thread.user_time + thread.system_time for thread in process.threads()}


def _serve(run: Path, pictures: list[Path], clients: int, folder: Path) -> dict:
    """Return answers, seconds in all, of each request and of processors, and the growth of the memory in bytes."""
    with serving(run, "serve.page=false", *GREEDY, temporary=folder) as (address, server):
        process, sizes, times = psutil.Process(server.pid), [], []

        def post(path: Path) -> tuple:
            begin = time.perf_counter()
            with urllib.request.urlopen(f"{address}/predict", path.read_bytes()) as answer:
                row = json.loads(answer.read())
            times.append(time.perf_counter() - begin)
            sizes.append(process.memory_info().rss)
            return row["emotion"], row["explanation"]

        post(pictures[0])
        times.clear()
        before, own = _of_threads(process), time.process_time()
        begin = time.perf_counter()
        with ThreadPoolExecutor(clients) as pool:
            answers = [*pool.map(post, pictures)]
        seconds = time.perf_counter() - begin
        spent = sorted(value - before.get(id, 0) for id, value in _of_threads(process).items())
        parts = {"network": spent.pop(), "http": sum(spent), "clients": time.process_time() - own}
    growth = max(sizes[-len(sizes) // 10 :]) - max(sizes[: len(sizes) // 2])
    cpu = {name: value / len(pictures) for name, value in parts.items()}
    return {"answers": answers, "seconds": seconds, "times": times, "growth": growth, "cpu": cpu}


if __name__ == "__main__":
    run_program(main)
