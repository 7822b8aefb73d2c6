"""`python -m trainer.text_emotion train|evaluate|import`: the classifier that predicts the emotion of an explanation.

It measures emotional alignment: does a generated explanation express the emotion that people felt?

    python -m trainer.text_emotion train --train artEmisX_train.json --val artEmisX_val.json --out text_emotion
    python -m trainer.text_emotion evaluate --classifier text_emotion --test artEmisX_test.json
    python -m trainer.text_emotion import best_model.pt --vocabulary vocabulary.pkl --out text_emotion
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import fields
from functools import partial
from pathlib import Path

from common.cli import exit_status, run_program

DEVICES = ("auto", "cpu", "cuda", "mps")


def main(argv: list[str] | None = None) -> int:
    arguments = _parser().parse_args(argv)
    message = "interrupted; the folder --out holds the best classifier of the finished epochs, if any"
    return exit_status(lambda: arguments.run(arguments), interrupted=message)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m trainer.text_emotion",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="train|evaluate|import")
    train = commands.add_parser("train", help="train a classifier on ArtEmis annotations")
    evaluate = commands.add_parser("evaluate", help="print a classifier's accuracies on ArtEmis annotations")
    evaluate.add_argument("--classifier", type=Path, required=True, metavar="FOLDER", help="from train or import")
    evaluate.add_argument("--test", type=Path, required=True, metavar="JSON", help="annotations in SEVLM's format")
    evaluate.add_argument("--device", choices=DEVICES, default="auto", help="(%(default)s: a GPU if there is one)")
    evaluate.set_defaults(run=_evaluate)
    convert = commands.add_parser("import", help="convert ArtEmis' published classifier without running its code")
    _add_train(train)
    _add_import(convert)
    for command in (train, convert):
        command.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="folder of the classifier")
        command.add_argument("--overwrite", action="store_true", help="replace an existing classifier")
    return parser


def _add_train(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    positive = partial(_integer, least=1)
    add("--train", type=Path, required=True, metavar="JSON", help="annotations in SEVLM's format; needs no images")
    add("--val", type=Path, required=True, metavar="JSON", help="selects the best epoch")
    add("--test", type=Path, metavar="JSON", help="scored at the end")
    add("--network", choices=("lstm", "transformer"), default="lstm", help="(%(default)s, as in ArtEmis)")
    add("--embeddings", type=Path, metavar="GLOVE.txt", help="frozen word vectors (default: learned)")
    add("--epochs", type=positive, default=50, help="(%(default)s)")
    add("--batch-size", type=positive, default=1024, help="explanations (%(default)s)")
    add("--learning-rate", type=_rate, default=5e-4, help="of Adam, halved before epochs 10, 20, 30 (%(default)s)")
    add("--min-count", type=positive, default=5, help="rarer words become <unk> (%(default)s)")
    add("--seed", type=_integer, default=2021, help="(%(default)s)")
    add("--device", choices=DEVICES, default="auto", help="(%(default)s: a GPU if there is one)")
    parser.set_defaults(run=_train)


def _add_import(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("file", type=Path, metavar="best_model.pt", help="the pickled module")
    add("--vocabulary", type=Path, required=True, metavar="vocabulary.pkl", help="vocabulary of its training")
    add("--maximum", choices=("words-and-zero", "words"), default="words-and-zero",
        help="values in the maximum over time; ArtEmis trained with zeros of the padding (%(default)s)")  # fmt: skip
    parser.set_defaults(run=_import)


def _integer(text: str, least: int = 0) -> int:
    if not text.isascii() or not text.isdecimal() or not least <= int(text) < 2**32:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {least} to {2**32 - 1}")
    return int(text)


def _rate(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number between 0 and 1")
    return value


# --- the commands; torch is imported here, so that --help is fast -------------------------------------------------


def _train(arguments: argparse.Namespace) -> int:
    from trainer.text_emotion.fit import Recipe, read_explanations, train
    from trainer.text_emotion.text_classifier import check_out

    check_out(arguments.out, overwrite=arguments.overwrite)
    test = None if arguments.test is None else read_explanations(arguments.test)
    training, validation = read_explanations(arguments.train), read_explanations(arguments.val)
    recipe = Recipe(**{field.name: getattr(arguments, field.name) for field in fields(Recipe)})
    classifier = train(training, validation, recipe, out=arguments.out, test=test, device=arguments.device)
    print(f"embeddings: {classifier.settings['embeddings']}; {len(classifier.vocabulary)} words")
    print(_table(classifier.metrics["accuracies"]))
    print(f"best epoch {classifier.metrics['best_epoch'] + 1} of {recipe.epochs}; written to {arguments.out}")
    return 0


def _evaluate(arguments: argparse.Namespace) -> int:
    from trainer.text_emotion.fit import evaluate, read_explanations
    from trainer.text_emotion.text_classifier import load_classifier

    classifier = load_classifier(arguments.classifier, device=arguments.device)
    print(_table({"test": evaluate(classifier, read_explanations(arguments.test))}))
    return 0


def _import(arguments: argparse.Namespace) -> int:
    from trainer.text_emotion.import_artemis import import_classifier
    from trainer.text_emotion.text_classifier import check_out

    check_out(arguments.out, overwrite=arguments.overwrite)
    zero_in_max = arguments.maximum == "words-and-zero"
    classifier = import_classifier(arguments.file, arguments.vocabulary, zero_in_max=zero_in_max)
    classifier.save(arguments.out)
    print(f"{arguments.file}: {len(classifier.vocabulary)} words; written to {arguments.out}")
    return 0


def _table(accuracies: Mapping[str, Mapping[str, float | int | None]]) -> str:
    columns = ("nine_way", "ternary", "binary", "majority")
    lines = [f"{'':<12}" + "".join(f"{name.replace('_', '-'):>10}" for name in columns) + "  explanations"]
    for split, found in accuracies.items():
        values = "".join(f"{'—' if found[name] is None else format(found[name], '.3f'):>10}" for name in columns)
        lines.append(f"{split:<12}{values}  {found['count']:>12,}")
    return "\n".join(lines)


if __name__ == "__main__":
    run_program(main)
