"""Train and test variants of the model on the demo with several seeds, and write their figures to ablation.md.

    python -m benchmarks.ablation [--seeds 2021 2022 2023] [--train-images 1600] [--epochs 5] [--out docs]

All variants share data, seeds, optimizer and number of steps. The figures of each run are appended to results.jsonl in
--runs when it ends, and a run that stands there is not repeated.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
from datetime import date
from pathlib import Path
from typing import Any

from common.config.check import ROOT
from common.errors import UserError
from common.files import write_text
from trainer.runs.provenance import provenance

NO_CONTRASTIVE = {"model.contrastive.enabled": "false"}
OFF = {**NO_CONTRASTIVE, "model.vad.enabled": "false"}
VARIANTS = {
    "mapper only": {**OFF, "model.enable_resampler_xattn": "false"},
    "resampler only": {**OFF, "model.enable_mapper": "false"},
    "both": OFF,
    "both + VAD fusion": {**NO_CONTRASTIVE, "model.loss_weights.vad": 0.0},
    "both + VAD head": {**NO_CONTRASTIVE, "model.vad.fusion": "off"},
    "both + contrastive": {"model.vad.enabled": "false"},
    "all": {},
    "all, emotion weight 2": {"model.loss_weights.emotion": 2.0},
    "all, emotion weight 2, no limit": {"model.loss_weights.emotion": 2.0, "model.balance": "null"},
}
GREEDY = ["trainer.test.decoding_strategy=greedy", "trainer.test.best_of=1", "trainer.test.metrics=[cider]"]
FIGURES = {
    "subject": "subject precision",
    "subject_recall": "recall",
    "palette": "palette precision",
    "cider": "CIDEr",
    "distinct": "distinct",
    "match": "match@1 of 16",
    "pointing": "pointing",
    "accuracy": "emotion accuracy",
    "vad_error": "VAD error",
}
LEGEND = (
    "Test images, greedy explanations. Precision: of the explanations that name a subject (palette), those naming the "
    "painted one; recall: of all images. Match@1: the explanation is likeliest with its own image among 16 of one "
    "emotion. Pointing: the attention of the word for the subject is strongest inside it. Emotion accuracy where more "
    "than half of the annotators agree. VAD error: mean absolute difference of the words' values from people's."
)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ablation", description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[2021, 2022, 2023])
    parser.add_argument("--train-images", type=int, default=1600, help="images of the demo to train on (%(default)s)")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=[*VARIANTS], help="to train now (all)")
    parser.add_argument("--epochs", type=int, default=5, help="(%(default)s)")
    parser.add_argument("--runs", type=Path, default=Path("runs/ablation"), help="where the runs go (%(default)s)")
    parser.add_argument("--out", type=Path, default=ROOT / "docs", help="folder of ablation.md (%(default)s)")
    options = parser.parse_args()
    report = _report(_measure(options), options)
    write_text(options.out / "ablation.md", report)
    print(report)
    return 0


def _measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Return a row for every run of these seeds, after those that are missing."""
    options.runs.mkdir(parents=True, exist_ok=True)
    path = options.runs / "results.jsonl"
    settings = {"train_images": options.train_images, "epochs": options.epochs}
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []
    rows = [row for row in rows if row["settings"] == settings and row["seed"] in options.seeds]
    done = {(row["seed"], row["variant"]) for row in rows}
    for seed in options.seeds:
        for variant in options.variants:
            if (seed, variant) not in done:
                print(f"{variant}, seed {seed}", file=sys.stderr)
                rows.append({"variant": variant, "seed": seed, "settings": settings, **_run(variant, seed, options)})
                with path.open("a", encoding="utf-8") as lines:
                    lines.write(json.dumps(rows[-1]) + "\n")
    return rows


def _run(variant: str, seed: int, options: argparse.Namespace) -> dict[str, float | None]:
    name = f"{re.sub('[^A-Za-z]+', '-', variant.replace('+', 'and'))}-{seed}"
    folder = options.runs / name
    keys = VARIANTS[variant] | {
        "name": name,
        "seed": seed,
        "dataset.root": options.runs / "demo",
        "dataset.demo_images": options.train_images,
        "trainer.exp_dir": options.runs,
        "trainer.epochs": options.epochs,
        "trainer.num_validation_images": 0,
        "trainer.num_validation_captions": 0,
        "trainer.check_val_every_n_epoch": "null",
        "trainer.overwrite": "true",
    }
    for overrides in (
        ["mode=train", *(f"{key}={value}" for key, value in keys.items())],
        ["mode=test", f"pretrained_name={folder}", *GREEDY],
    ):
        run_command(*overrides)
    metrics = json.loads((folder / "test" / "metrics.json").read_text(encoding="utf-8"))
    kinds, looking = metrics["grounding"]["kinds"], metrics.get("looking") or {}
    return {
        "subject": kinds["subject"]["precision"],
        "subject_recall": kinds["subject"]["recall"],
        "palette": kinds["palette"]["precision"],
        "cider": metrics["captions"]["CIDEr"],
        "distinct": metrics["explanations"]["distinct"],
        "match": (looking.get("match") or {}).get("first"),
        "pointing": (looking.get("pointing") or {}).get("accuracy"),
        "accuracy": metrics["emotion"]["accuracy"],
        "vad_error": statistics.fmean(metrics["vad"][name]["error"] for name in ("valence", "arousal", "dominance")),
    }


def run_command(*overrides: str) -> None:
    """Run `python run.py` without its output; raise UserError if it fails."""
    if subprocess.run([sys.executable, ROOT / "run.py", *overrides], stdout=subprocess.DEVNULL).returncode:
        raise UserError(f"run.py {' '.join(overrides[:2])} failed; solve what it reports above and start again")


def _report(rows: list[dict[str, Any]], options: argparse.Namespace) -> str:
    command = f"python -m benchmarks.ablation --train-images {options.train_images} --epochs {options.epochs}"
    lines = [
        "# What each part brings on the demo",
        "",
        f"`{command}`, {date.today()}, commit {(provenance()['git'] or 'unknown')[:12]}; mean ± standard deviation "
        f"over seeds {', '.join(map(str, options.seeds))}. {LEGEND}",
        "",
        f"| variant | {' | '.join(FIGURES.values())} |",
        f"|---|{'---|' * len(FIGURES)}",
    ]
    for variant in VARIANTS:
        chosen = [row for row in rows if row["variant"] == variant]
        cells = [_cell([row[key] for row in chosen if row[key] is not None]) for key in FIGURES]
        if chosen:
            lines.append(f"| {variant} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cell(values: list[float]) -> str:
    if not values:
        return "–"
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.fmean(values):.3f} ± {spread:.3f}"


if __name__ == "__main__":
    sys.exit(main())
