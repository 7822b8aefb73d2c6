"""`python -m trainer.text_emotion train|evaluate|import`: the classifier that tells an explanation's emotion.

It is the ruler of emotional alignment: does what a captioner writes sound like what people felt?

    python -m trainer.text_emotion train --train artEmisX_train.json --val artEmisX_val.json --out text_emotion
    python -m trainer.text_emotion evaluate --classifier text_emotion --test artEmisX_test.json
    python -m trainer.text_emotion import best_model.pt --vocabulary vocabulary.pkl --out text_emotion
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

from common.cli import exit_status, run_program

DEVICES = ("auto", "cpu", "cuda", "mps")


def main(argv: list[str] | None = None) -> int:
    arguments = _parser().parse_args(argv)
    message = "interrupted; the best so far, if an epoch was finished, is in the folder --out"
    return exit_status(lambda: arguments.run(arguments), interrupted=message)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m trainer.text_emotion",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="train|evaluate|import")
    _add_train(commands.add_parser("train", help="train a classifier on ArtEmis annotations"))
    evaluate = commands.add_parser("evaluate", help="accuracies of a classifier on ArtEmis annotations")
    evaluate.add_argument("--classifier", type=Path, required=True, metavar="FOLDER", help="what train or import wrote")
    evaluate.add_argument("--test", type=Path, required=True, metavar="JSON", help="annotations in SEVLM's form")
    evaluate.add_argument("--device", choices=DEVICES, default="auto", help="(%(default)s: a GPU where there is one)")
    evaluate.set_defaults(run=_evaluate)
    _add_import(commands.add_parser("import", help="ArtEmis' published classifier, without running anything in it"))
    return parser


def _add_train(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--train", type=Path, required=True, metavar="JSON", help="annotations in SEVLM's form; no picture is needed")
    add("--val", type=Path, required=True, metavar="JSON", help="decides which epoch is the best")
    add("--test", type=Path, metavar="JSON", help="scored at the end")
    add("--network", choices=("lstm", "transformer"), default="lstm", help="(%(default)s, as ArtEmis)")
    add("--embeddings", type=Path, metavar="GLOVE.txt", help="word vectors, kept as they are (default: learned)")
    add("--epochs", type=_positive, default=50, help="(%(default)s)")
    add("--batch-size", type=_positive, default=1024, help="explanations (%(default)s)")
    add("--learning-rate", type=_rate, default=5e-4, help="of Adam, halved before epochs 10, 20, 30 (%(default)s)")
    add("--min-count", type=_positive, default=5, help="words that come less often are <unk> (%(default)s)")
    add("--seed", type=_natural, default=2021, help="(%(default)s)")
    add("--device", choices=DEVICES, default="auto", help="(%(default)s: a GPU where there is one)")
    _add_out(parser)
    parser.set_defaults(run=_train)


def _add_import(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("file", type=Path, metavar="best_model.pt", help="the pickled module")
    add(
        "--vocabulary", type=Path, required=True, metavar="vocabulary.pkl", help="the vocabulary that it was trained on"
    )
    add("--maximum", choices=("words-and-zero", "words"), default="words-and-zero",
        help="what the maximum over time is of; ArtEmis trained with padded zeros in it (%(default)s)")  # fmt: skip
    _add_out(parser)
    parser.set_defaults(run=_import)


def _add_out(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="where the classifier goes")
    parser.add_argument("--overwrite", action="store_true", help="replace a classifier that is there")


def _positive(text: str) -> int:
    value = _natural(text)
    if value == 0:
        raise argparse.ArgumentTypeError("0 is not a whole number of at least 1")
    return value


def _natural(text: str) -> int:
    if not text.isascii() or not text.isdecimal() or int(text) >= 2**32:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 to {2**32 - 1}")
    return int(text)


def _rate(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number between 0 and 1")
    return value


# --- the commands; what is heavy to import is imported here, so that --help is instant ----------------------------


def _train(arguments: argparse.Namespace) -> int:
    from trainer.text_emotion.fit import Recipe, read_explanations, train
    from trainer.text_emotion.text_classifier import check_out

    check_out(arguments.out, overwrite=arguments.overwrite)
    test = None if arguments.test is None else read_explanations(arguments.test)
    training, validation = read_explanations(arguments.train), read_explanations(arguments.val)
    recipe = Recipe(
        network=arguments.network,
        embeddings=arguments.embeddings,
        epochs=arguments.epochs,
        batch_size=arguments.batch_size,
        learning_rate=arguments.learning_rate,
        min_count=arguments.min_count,
        seed=arguments.seed,
    )
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
    classifier = import_classifier(
        arguments.file, arguments.vocabulary, zero_in_max=arguments.maximum == "words-and-zero"
    )
    classifier.save(arguments.out)
    print(f"{arguments.file}: {len(classifier.vocabulary)} words; written to {arguments.out}")
    return 0


def _table(accuracies: Mapping[str, Mapping[str, float | int | None]]) -> str:
    """A line for each split."""
    columns = ("nine_way", "ternary", "binary", "majority")
    lines = [f"{'':<12}" + "".join(f"{name.replace('_', '-'):>10}" for name in columns) + "  explanations"]
    for split, found in accuracies.items():
        values = "".join(f"{'—' if found[name] is None else format(found[name], '.3f'):>10}" for name in columns)
        lines.append(f"{split:<12}{values}  {found['count']:>12,}")
    return "\n".join(lines)


if __name__ == "__main__":
    run_program(main)
