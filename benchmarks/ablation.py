"""What each part brings on the demo: trains and tests every variant with several seeds, and writes ablation.md.

    python -m benchmarks.ablation [--seeds 2021 2022 2023] [--train-images 1500] [--epochs 5] [--out benchmarks]

The first six variants add parts to one another; "states" takes the contrastive head back to what it is in SEVLM, and
the rows below it start from there and change one thing about the emotions, most of them back to what SEVLM does. All
share data, seeds, optimiser and number of steps. Each run's figures are kept as it ends, in
runs/ablation/results.jsonl, and a run that is there is not repeated.

The losses are those of the held-out texts, each word told from the true words before it. A network that sees later
words scores better there and writes no better: the difference between both is what the leak is worth.
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

from data.demo import write_demo
from data.lexicon import Lexicon, read_lexicon
from data.vad_align import WORD
from files import write_text
from trainer.checkpoint import provenance

ROOT = Path(__file__).resolve().parent.parent
OFF = {"model.vad.enabled": "false", "model.contrastive.enabled": "false"}
STATES = {"model.contrastive.negatives": "states"}
VARIANTS = {
    "mapper only": {**OFF, "model.enable_resampler_xattn": "false"},
    "resampler only": {**OFF, "model.enable_mapper": "false"},
    "both": OFF,
    "both + VAD": {"model.contrastive.enabled": "false"},
    "both + contrastive": {"model.vad.enabled": "false"},
    "all": {},
    "states": STATES,
    "states, values of pieces": {**STATES, "dataset.vad_unit": "piece"},
    "states, causal VAD encoder": {**STATES, "model.vad.encoder": "causal"},
    "states, bidirectional VAD encoder": {**STATES, "model.vad.encoder": "bidirectional"},
    "states, concatenated": {**STATES, "model.vad.fusion": "concat"},
    "states, concatenated, causal encoder": {**STATES, "model.vad.fusion": "concat", "model.vad.encoder": "causal"},
    "states, concatenated, bidirectional encoder": {
        **STATES,
        "model.vad.fusion": "concat",
        "model.vad.encoder": "bidirectional",
    },
    "states, shares of the annotators": {**STATES, "model.emotion_target": "histogram"},
}
FIGURES = {
    "accuracy": "emotion accuracy",
    "nll": "emotion NLL",
    "bleu4": "BLEU-4",
    "vad_error": "VAD error",
    "loss_caption": "loss of words",
    "loss_vad": "loss of VAD",
}


def main() -> int:
    options = _options()
    data, runs = options.runs / "demo", options.runs
    write_demo(data, num_train=options.train_images)
    results_path = runs / "results.jsonl"
    runs.mkdir(parents=True, exist_ok=True)
    done = [json.loads(line) for line in results_path.read_text().splitlines()] if results_path.exists() else []
    settings = {"train_images": options.train_images, "epochs": options.epochs}
    done = [row for row in done if row["settings"] == settings]
    lexicon = read_lexicon(data / "vad_lexicon_synthetic.csv")
    for seed in options.seeds:
        for variant in options.variants:
            if any(row["variant"] == variant and row["seed"] == seed for row in done):
                continue
            print(f"{variant}, seed {seed}", file=sys.stderr)
            figures = _run(variant, seed, VARIANTS[variant], options, data, lexicon)
            row = {"variant": variant, "seed": seed, "settings": settings, **figures}
            done.append(row)
            with results_path.open("a", encoding="utf-8") as lines:
                lines.write(json.dumps(row) + "\n")
    rows = [row for row in done if row["seed"] in options.seeds]
    write_text(options.out / "ablation.md", _report(rows, options))
    write_text(options.out / "ablation.json", json.dumps({"rows": rows, **provenance()}, indent=2) + "\n")
    print((options.out / "ablation.md").read_text())
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ablation", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=[2021, 2022, 2023], help="of weights, order and sampling"
    )
    parser.add_argument("--train-images", type=int, default=1500, help="pictures of the demo to train on (%(default)s)")
    parser.add_argument(
        "--variants", nargs="+", choices=VARIANTS, default=[*VARIANTS], help="those to train now; all by default"
    )
    parser.add_argument("--epochs", type=int, default=5, help="(%(default)s)")
    parser.add_argument("--runs", type=Path, default=Path("runs/ablation"), help="where the runs go (%(default)s)")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks", help="folder of ablation.md (%(default)s)")
    return parser.parse_args()


def _run(
    variant: str, seed: int, overrides: dict[str, str], options: argparse.Namespace, data: Path, lexicon: Lexicon
) -> dict[str, float]:
    name = f"{re.sub('[^A-Za-z]+', '-', variant.replace('+', 'and'))}-{seed}"
    folder = options.runs / name
    common = [f"name={name}", f"trainer.exp_dir={options.runs}", f"seed={seed}"]
    keys = {**overrides, "dataset.root": str(data), "dataset.demo_images": str(options.train_images)}
    keys |= {"trainer.epochs": str(options.epochs)}
    keys |= {
        "trainer.num_validation_images": "0",
        "trainer.num_validation_captions": "0",
        "trainer.check_val_every_n_epoch": "null",
        "trainer.overwrite": "true",
    }
    _python("run.py", "mode=train", *common, *(f"{key}={value}" for key, value in keys.items()))
    _python("run.py", "mode=test", f"pretrained_name={folder}")
    metrics = json.loads((folder / "test" / "metrics.json").read_text(encoding="utf-8"))
    lines = (folder / "test" / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    checkpoint = json.loads((Path(metrics["checkpoint"]) / "checkpoint.json").read_text(encoding="utf-8"))
    losses = checkpoint["metrics"]
    return {
        "accuracy": metrics["emotion"]["accuracy"],
        "nll": metrics["emotion"]["nll"],
        "bleu4": metrics["captions"]["BLEU-4"],
        "vad_error": vad_error([json.loads(line) for line in lines], lexicon),
        "loss_caption": losses["validation/loss_caption"],
        "loss_vad": losses.get("validation/loss_vad"),
    }


def _python(*arguments: str) -> None:
    subprocess.run([sys.executable, *arguments], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


def vad_error(rows: list[dict], lexicon: Lexicon) -> float:
    """Mean distance, per dimension and image, between the mean VAD of the generated words and of the references' words.

    On the scale −1..1; images where either has no word of the lexicon are left out.
    """
    errors = []
    for row in rows:
        ours = _mean_vad([row["explanation"]], lexicon)
        theirs = _mean_vad(row["references"], lexicon)
        if ours and theirs:
            errors.append(statistics.fmean(abs(a - b) for a, b in zip(ours, theirs, strict=True)))
    return statistics.fmean(errors)


def _mean_vad(texts: list[str], lexicon: Lexicon) -> list[float] | None:
    values = [value for text in texts for word in WORD.findall(text) if (value := lexicon.lookup(word)) is not None]
    return [statistics.fmean(column) for column in zip(*values, strict=True)] if values else None


def _report(rows: list[dict], options: argparse.Namespace) -> str:
    lines = [
        "# What each part brings on the demo",
        "",
        f"`python -m benchmarks.ablation --train-images {options.train_images} --epochs {options.epochs}`, "
        f"{date.today().isoformat()}; mean ± standard deviation over seeds {', '.join(map(str, options.seeds))}. "
        "Held-out pictures; accuracy where more than half of the annotators agree; NLL in nats against their answers; "
        "BLEU-4 of the reason with all references; VAD error as in `benchmarks/ablation.py`; losses per word and per "
        "value on the validation set, each word told from the true words before it (all but accuracy and BLEU-4: lower "
        "is better).",
        "",
        f"| variant | {' | '.join(FIGURES.values())} |",
        f"|---|{'---|' * len(FIGURES)}",
    ]
    for variant in VARIANTS:
        chosen = [row for row in rows if row["variant"] == variant]
        cells = [_cell([row[key] for row in chosen if row.get(key) is not None]) for key in FIGURES]
        lines.append(f"| {variant} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cell(values: list[float]) -> str:
    if not values:
        return "–"
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.fmean(values):.3f} ± {spread:.3f}"


if __name__ == "__main__":
    sys.exit(main())
