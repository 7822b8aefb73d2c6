"""The commands of `python -m trainer.score`: from files to scores, tables and files."""

from __future__ import annotations

import argparse
import itertools
import os
import platform
import sys
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.files import write_json
from data.emotions import EMOTIONS, label_set
from data.readers.facts import read_facts
from data.readers.texts import read_annotated_texts
from data.vad.lexicon_files import read_lexicon
from trainer.metrics import bootstrap
from trainer.score.compare import comparison_text, refuse_other_references
from trainer.score.measure import measure, write_scores
from trainer.score.predictions import Texts, read_predictions
from trainer.score.references import common, join, read_references
from trainer.score.scores import Row, Settings
from trainer.score.tables import metrics_text

PREDICTIONS = ("predictions.jsonl", "test/predictions.jsonl")  # of a test folder, of a run folder


def score(arguments: argparse.Namespace, *, references: Texts | None = None, only: Container[str] | None = None) -> int:
    """Score predictions; raise UserError for unusable or mismatched files.

    Args:
        references: those of --references if they are read already.
        only: ids of the images to score.
    """
    check_out(arguments.out)
    references = references or read_references_of(arguments)
    predictions = _read(read_predictions, arguments.predictions)
    if only is not None:
        predictions = replace(predictions, rows={id: row for id, row in predictions.rows.items() if id in only})
    rows, notes = join(predictions, references, subset=arguments.subset)
    found = measure(_with_pictures(rows, arguments), _settings(arguments), notes=[*notes, *_left_out(arguments)])
    print(metrics_text(found.metrics))
    if arguments.out is not None:
        source = {"predictions": str(predictions.path), "references": str((references or predictions).path)}
        with _writing(arguments.out, "metrics.json and per_image.jsonl"):
            write_scores(arguments.out, found, {**source, **_versions()})
    return 0


def compare(arguments: argparse.Namespace) -> int:
    """Compare two runs; raise UserError for unusable files, other images (without --subset) or other references."""
    check_out(arguments.out)
    references = read_references_of(arguments)
    runs = [_read(read_predictions, _predictions_file(path)) for path in (arguments.first, arguments.second)]
    joined = [join(run, references, subset=arguments.subset) for run in runs]
    by_id = [{row["id"]: row for row in rows} for rows, _ in joined]
    sides = [Texts(run.path, "", rows) for run, rows in zip(runs, by_id, strict=True)]
    ids = common(*sides, subset=arguments.subset)
    first, second = ([rows[id] for id in ids] for rows in by_id)
    refuse_other_references(first, second, paths=[run.path for run in runs])
    settings = _settings(arguments)
    found = [
        measure(_with_pictures(rows, arguments), settings, notes=[*notes, *_left_out(arguments)])
        for rows, (_, notes) in zip((first, second), joined, strict=True)
    ]
    figures = bootstrap.paired(*(scores.statistics for scores in found), len(ids), seed=settings.seed)
    names = [str(path) for path in (arguments.first, arguments.second)]
    print(comparison_text(found[0].metrics, found[1].metrics, figures, names=names))
    if arguments.out is not None:
        sources = {"first": str(runs[0].path), "second": str(runs[1].path), "images": len(ids), "figures": figures}
        sources |= {key: found[0].metrics[key] for key in ("tokenizer", "bootstrap")}
        with _writing(arguments.out, "comparison.json"):
            write_json(arguments.out / "comparison.json", {**sources, **_versions()})
    return 0


def read_references_of(arguments: argparse.Namespace) -> Texts | None:
    """Return the references, of the emotions --labels if given; None without --references."""
    labels = label_set(arguments.labels, where="--labels") if arguments.labels else EMOTIONS
    return arguments.references and _read(partial(read_references, labels=labels), arguments.references)


def _read(read: Callable[[Path], Texts], path: Path) -> Texts:
    texts = read(path)
    print(f"{path}: {texts.format}", file=sys.stderr)
    return texts


def _predictions_file(path: Path) -> Path:
    if not path.is_dir():
        return path
    found = [path / name for name in PREDICTIONS if (path / name).is_file()]
    if not found:
        raise UserError(f"{path} has neither {' nor '.join(PREDICTIONS)}; name the file of predictions")
    return found[0]


def check_out(folder: Path | None) -> None:
    """Raise UserError, before the work, for a file or for the test folder of a run."""
    if folder is not None and folder.exists() and not folder.is_dir():
        raise UserError(f"--out {folder} is a file; give a folder")
    if folder is not None and (folder / "report.html").exists():
        raise UserError(f"--out {folder} contains the test of a run; give another folder")


@contextmanager
def _writing(folder: Path, names: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"--out {folder}: {names} cannot be written ({error.strerror or error})") from error
    print(f"{names}: {folder}", file=sys.stderr)


def _settings(arguments: argparse.Namespace) -> Settings:
    classifier, lexicon = None, arguments.lexicon
    training = read_annotated_texts(arguments.training) if arguments.training else []
    if arguments.classifier is not None:
        from trainer.text_emotion.text_classifier import load_classifier  # imports torch

        classifier = load_classifier(arguments.classifier)
    if arguments.clip is not None:
        from common.hub import offline_if_unreachable

        offline_if_unreachable()
    return Settings(
        metrics=arguments.metrics,
        tokenizer=arguments.tokenizer,
        spice_parser=arguments.spice_parser,
        training_texts=[found.text for found in training] or None,
        training_emotions=[found.emotion for found in training],
        training_languages=[found.language for found in training],
        facts=arguments.facts and read_facts(arguments.facts),
        lexicon=lexicon and read_lexicon(lexicon, scale=arguments.scale, columns=arguments.columns),
        lexicon_name=lexicon and lexicon.name,
        classifier=classifier,
        clip_name=arguments.clip,
        clip_architecture=arguments.clip_architecture,
        clip_section="--clip",
        seed=arguments.seed,
    )


def _left_out(arguments: argparse.Namespace) -> list[str]:
    notes = [] if arguments.training else ["novelty and baselines of training texts left out: give --training FILE"]
    return notes + ([] if arguments.facts else ["grounding left out: give --facts FILE"])


def _with_pictures(rows: Sequence[Row], arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Return the rows, each with the path of its picture if that is known."""
    if arguments.images is not None:
        return [{**row, "image": str(picture_of(arguments.images, row))} for row in rows]
    if arguments.clip is not None and not any(row.get("image") for row in rows):
        raise UserError("--clip needs --images FOLDER: neither predictions nor references name the pictures")
    return list(rows)


def picture_of(folder: Path, row: Row) -> Path:
    """Find a picture by the name in the annotations, else by the end of the path in the predictions, else by the id.

    The result is inside `folder` whatever the files contain; for a link that leads out of it, it is the folder itself,
    which cannot be read as a picture.
    """
    parts = Path(row.get("image_name") or row.get("image") or row["id"]).parts
    inside = [*itertools.takewhile(lambda part: part not in ("..", Path(part).anchor), reversed(parts))]
    ends = [folder.joinpath(*reversed(inside[:length])) for length in range(1, len(inside) + 1)] or [folder]
    found = next((path for path in reversed(ends) if _is_file_inside(path, folder)), None)
    return found or (folder if os.path.lexists(ends[-1]) else ends[-1])


def _is_file_inside(path: Path, folder: Path) -> bool:
    if not os.path.isfile(path):  # noqa: PTH113 -- Path.is_file raises for a name that is too long
        return False
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))


def _versions() -> dict[str, Any]:
    packages = ("numpy", "pycocoevalcap")
    return {"versions": {"python": platform.python_version(), **{name: version(name) for name in packages}}}
