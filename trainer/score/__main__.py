"""Scores predictions without a model, compares two runs on the same images, or asks a model behind an endpoint.

    python -m trainer.score --predictions runs/demo/test/predictions.jsonl
    python -m trainer.score --predictions captions.json --references artEmisX_test.json --out scores
    python -m trainer.score compare runs/one runs/two
    python -m trainer.score ask --endpoint URL --model NAME --references artEmisX_test.json --images wikiart --out gpt

Predictions: EmoScribe's predictions.jsonl (which contains its references) and predictions.json, COCO results, SEVLM's
and NLX-GPT's unf_captions_full and unf_captions_exp, or a CSV. References: COCO or SEVLM annotations,
predictions.jsonl, or a CSV. The format is recognized by the content; ids are compared as text.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from common.cli import exit_status, run_program
from trainer.metrics.captions import ALL_METRICS, METRICS, TOKENIZERS


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    command, *options = argv if argv[:1] in (["compare"], ["ask"]) else ["score", *argv]
    parser = {"score": _parser, "compare": _compare_parser, "ask": _ask_parser}[command]()
    arguments = parser.parse_args(options)

    def run() -> int:
        from trainer.score import ask, commands

        return {"score": commands.score, "compare": commands.compare, "ask": ask.ask}[command](arguments)

    return exit_status(run, interrupted=parser.get_default("interrupted") or "interrupted")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m trainer.score",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="compare --help: two runs; ask --help: a model behind an endpoint",
    )
    parser.add_argument("--predictions", type=Path, required=True, metavar="FILE", help="explanations by image id")
    _add_common(parser, "metrics.json and per_image.jsonl")
    return parser


def _compare_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m trainer.score compare",
        description="Every score of two runs on the same images, the difference with a 95 % interval, and how likely "
        "chance alone would give it (paired bootstrap over images).",
    )
    for name, what in (("first", "A"), ("second", "B")):
        parser.add_argument(name, type=Path, metavar=what, help="run folder, test folder or file of predictions")
    _add_common(parser, "comparison.json")
    return parser


def _ask_parser() -> argparse.ArgumentParser:
    from data.prepare.instructions.collect import KEPT, add_options, count

    parser = argparse.ArgumentParser(
        prog="python -m trainer.score ask",
        description="A model behind an OpenAI-compatible endpoint gives the emotion of each picture of --references "
        "and a reason, which are written into --out and scored. The pictures of --images are sent there; the "
        "environment variable EMOSCRIBE_API_KEY holds the key. After an interruption, the same command requests what "
        "is missing.",
    )
    add_options(parser, required=True)
    parser.add_argument("--names", type=Path, metavar="FILE", help="names or ids of the pictures to use, one in a line")
    parser.add_argument("--limit", type=count, metavar="N", help="only the first N pictures")
    _add_common(parser, "predictions.jsonl, ask.json, metrics.json and per_image.jsonl", "of the pictures")
    parser.set_defaults(interrupted=KEPT)
    return parser


def _add_common(parser: argparse.ArgumentParser, files: str, pictures: str = "of the pictures, for CLIPScore") -> None:
    add = parser.add_argument
    add("--references", type=Path, metavar="FILE", help="human texts (default: those in the predictions)")
    add("--labels", type=lambda text: text.split(","), metavar="NAME,NAME",
        help="emotions of the references (default: the nine of ArtEmis)")  # fmt: skip
    add("--subset", action="store_true", help="score only the images that both files have")
    add("--metrics", type=_metrics, default=METRICS, metavar="NAME,NAME",
        help=f"of the captions: {', '.join(ALL_METRICS)} (default: {','.join(METRICS)})")  # fmt: skip
    add("--tokenizer", choices=[*TOKENIZERS], default="ptb", help="ptb needs Java (default: %(default)s)")
    add("--spice-parser", type=Path, metavar="FOLDER", help="with SPICE's parser; SPICE needs Java 8 to 14")
    add("--training", type=Path, metavar="FILE", help="training texts of the model, for novelty and baselines")
    add("--facts", type=Path, metavar="FILE", help="JSON of what each image shows, for grounding (docs/data.md)")
    add("--lexicon", type=Path, metavar="FILE", help="valence, arousal and dominance of words")
    add("--scale", default="auto", metavar="LOW..HIGH", help="of the lexicon, as --scale=-1..1 (default: %(default)s)")
    add("--columns", type=lambda text: text.split(","), metavar="WORD,VALENCE,AROUSAL,DOMINANCE",
        help="of the lexicon, by heading or by number from 1 (default: recognized)")  # fmt: skip
    add("--classifier", type=Path, metavar="FOLDER", help="text→emotion classifier, for emotional alignment")
    add("--clip", metavar="NAME", help="CLIP, for CLIPScore, named as in model.vision.pretrained_name")
    add("--clip-architecture", metavar="NAME", help="if --clip is a file of weights")
    add("--images", type=Path, metavar="FOLDER", help=pictures)
    add("--out", type=Path, metavar="FOLDER", help=f"for {files}")
    add(
        "--seed",
        type=_seed,
        default=2021,
        help="of the bootstrap, of novelty's samples and of baselines (default: %(default)s)",
    )


def _metrics(text: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(name.strip().lower() for name in text.split(",") if name.strip()))
    unknown = [name for name in names if name not in ALL_METRICS]
    if unknown or not names:
        raise argparse.ArgumentTypeError(f"{(unknown or [text])[0]!r} is none of {', '.join(ALL_METRICS)}")
    return names


def _seed(text: str) -> int:
    if not text.isascii() or not text.isdecimal() or int(text) >= 2**32:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 to {2**32 - 1}")
    return int(text)


if __name__ == "__main__":
    run_program(main)
