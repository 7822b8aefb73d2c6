"""Results of benchmarks.real: the predictions of all folds pooled, scored once, and laid out in Markdown."""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

from common.files import write_json, write_text
from common.html.tables import NONE, interval, number, signed
from data.emotions import EMOTIONS
from data.readers.texts import read_annotated_texts
from data.vad.lexicon_files import read_lexicon
from model.expert.student import STUDENT
from trainer.metrics import bootstrap
from trainer.metrics.alignment import alignment_scores
from trainer.metrics.baselines import baseline_texts
from trainer.runs.provenance import provenance
from trainer.score.looking_tables import NAMES
from trainer.score.measure import measure, write_scores
from trainer.score.predictions import read_predictions
from trainer.score.references import join
from trainer.score.scores import Row, Settings
from trainer.text_emotion.text_classifier import load_classifier

CAPTIONS = ("CIDEr", "METEOR", "BLEU-4")
OF_TEXTS = (*(f"captions.{name}" for name in CAPTIONS), "alignment.accuracy", "looking.match.first")
Metrics = Mapping[str, Any]


def write_results(options: argparse.Namespace, folds: Iterable[int]) -> None:
    """Write a folder of predictions and scores for each variant, results.json, table.md and ten.md."""
    out, results = options.out, {"provenance": provenance(), "folds": [*folds], "variants": {}, "differences": {}}
    classifier = load_classifier(out / "text_emotion") if options.texts else None
    shared = {"classifier": classifier, "seed": options.seed}
    if options.lexicon:
        shared |= {"lexicon": read_lexicon(options.lexicon), "lexicon_name": options.lexicon.name}
    for variant in options.variants:
        rows, baselines = pool(out, variant, folds, seed=options.seed)
        found = measure(rows, Settings(baselines=baselines, **shared))
        write_scores(out / variant, found, {})
        results["variants"][variant] = found.metrics
        if variant == options.variants[0]:
            whole = found.statistics
            write_text(out / "ten.md", samples(rows, options.samples))
            probed = _read(out, f"{variant}-{{}}-student", folds)
            results["probe"] = measure([_of_probe(row) for row in probed], Settings(seed=options.seed)).metrics
            results["alignment"] = classifier and {
                name: alignment_scores(texts, {row["id"]: row["histogram"] for row in rows}, classifier)[0]["accuracy"]
                for name, texts in baselines.items()
            }
        else:
            results["differences"][variant] = bootstrap.paired(whole, found.statistics, len(rows), seed=options.seed)
    write_json(out / "results.json", results)
    write_text(out / "table.md", report(results))
    print(report(results), f"written to {out}: table.md, results.json, ten.md", sep="\n")


def pool(out: Path, variant: str, folds: Iterable[int], *, seed: int) -> tuple[list[Row], dict[str, dict[str, str]]]:
    """Return the rows of all folds, and the texts of each baseline; these come from the fold's own training texts."""
    rows: list[Row] = []
    baselines: dict[str, dict[str, str]] = {}
    for fold in folds:
        of_fold = _read(out, f"{variant}-{{}}", [fold])
        training = read_annotated_texts(out / "data" / f"fold-{fold}" / "train.json")
        found, _ = baseline_texts(of_fold, *zip(*training, strict=True), seed=seed)
        for name, texts in found.items():
            baselines.setdefault(name, {}).update(texts)
        rows += of_fold
    return rows, baselines


def _read(out: Path, run: str, folds: Iterable[int]) -> list[Row]:
    files = [out / "runs" / run.format(fold) / "test" / "predictions.jsonl" for fold in folds]
    return [row for file in files for row in join(read_predictions(file), None)[0]]


def _of_probe(row: Row) -> Row:
    """Return the row with the emotion of the probe, and without texts."""
    shares = row["sources"][STUDENT]
    emotion = {"emotion": EMOTIONS[shares.index(max(shares))], "emotion_distribution": shares}
    kept = {"id": row["id"], "histogram": row["histogram"], "explanation": None, "references": []}
    return kept | emotion


def samples(rows: Sequence[Row], count: int) -> str:
    """Return a table of the first paintings by the SHA-256 of their file name, without people's texts."""
    chosen = sorted(rows, key=lambda row: hashlib.sha256(Path(row["image"]).name.encode()).hexdigest())[:count]
    lines = ["| painting | people's emotions | the network's | its reason |", "|---|---|---|---|"]
    for row in chosen:
        votes = sorted(zip(row["histogram"], EMOTIONS, strict=True), reverse=True)
        felt = ", ".join(f"{name} {share:.0%}" for share, name in votes if share)
        lines.append(f"| {Path(row['image']).stem} | {felt} | {row['emotion']} | {row['explanation']} |")
    return "\n".join(lines) + "\n"


def report(results: Metrics) -> str:
    """Return table.md."""
    variants, commit = results["variants"], results["provenance"]["git"] or "unknown"
    first = next(iter(variants.values()))
    emotion = first["emotion"]
    lines = [
        f"{date.today()}, commit {commit[:12]}, folds {', '.join(map(str, results['folds']))}: {first['images']} "
        f"paintings; accuracy on the {emotion['count']} whose annotators agree by more than half. In brackets: 95 % "
        "intervals by painting.",
        "",
        *_table(("emotion", "accuracy", "macro-F1", "log loss"), _emotion_rows(first, results["probe"])),
        *_table(("explanation", *CAPTIONS, "emotional alignment", "match@1", "lead in CIDEr"), _text_rows(results)),
    ]
    if len(variants) > 1:
        heads = ("variant", "accuracy", *CAPTIONS, "emotional alignment", "match@1")
        rows = [(name, _cell(found, "emotion.accuracy"), *_text_cells(found)) for name, found in variants.items()]
        lines += _table(heads, rows)
        changes = results["differences"].items()
        rows = [
            (name, *(_change(found.get(key)) for key in ("emotion.accuracy", *OF_TEXTS))) for name, found in changes
        ]
        lines += _table((f"minus {next(iter(variants))}", *heads[1:]), rows)
    return "\n".join(lines)


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (heads, ["---"] * len(heads), *rows)] + [""]


def _emotion_rows(network: Metrics, probe: Metrics) -> list[tuple[str, ...]]:
    keys = [f"emotion.{key}" for key in ("accuracy", "macro_f1", "nll")]
    systems = {"linear probe of the image encoder": probe, "the network": network}
    rows = [("always the commonest label", number(network["emotion"]["majority"]), NONE, NONE)]
    return rows + [(name, *(_cell(found, key) for key in keys)) for name, found in systems.items()]


def _text_rows(results: Metrics) -> list[tuple[str, ...]]:
    first = next(iter(results["variants"].values()))
    rows = [("the network", *_text_cells(first), NONE)]
    for name, system in ((first["baselines"] or {}).get("systems") or {}).items():
        figures = [number(system["captions"].get(key)) for key in CAPTIONS]
        lead = _change(system["differences"]["captions.CIDEr"])
        rows.append((NAMES[name], *figures, number((results["alignment"] or {}).get(name)), NONE, lead))
    return rows


def _text_cells(found: Metrics) -> list[str]:
    return [_cell(found, key) for key in OF_TEXTS]


def _cell(metrics: Metrics, key: str) -> str:
    """Return the figure at a key such as "captions.CIDEr" with its interval."""
    value: Any = metrics
    for part in key.split("."):
        value = (value or {}).get(part)
    return f"{number(value)} {interval(metrics['intervals'].get(key), number)}".strip()


def _change(figures: Metrics | None) -> str:
    """Return a difference of bootstrap.paired with its interval."""
    return f"{signed(number)(figures['difference'])} {interval(figures['interval'], number)}" if figures else NONE
