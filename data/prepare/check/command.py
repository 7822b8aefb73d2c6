"""The report of a dataset as training will read it: what cannot be used, and what the rest is like.

    python -m data.prepare check preset=artemis_v1 dataset.vad_lexicon=FILE
    python -m data.prepare check preset=none dataset.name=coco dataset.train_ds.json_path=FILE \\
        dataset.train_ds.visual_dir=FOLDER

Takes the keys of run.py and checks every split that is given. Writes to --out: problems.csv (every single one),
check.json (all counts) and report.html (with plots). Status: 0 nothing is wrong, 1 something is, 2 wrong usage.

Images that are found under another spelling of their name are used and no problem, but listed too. Two images are the
same if their pixels are, whatever their names and formats; with --no-decode, if they are the same file.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.errors import UserError
from common.files import write_csv, write_json
from data.prepare.parallel import add_workers

if TYPE_CHECKING:
    from data.prepare.check.dataset import Report, SplitReport

PROBLEMS, SUMMARY, PAGE = "problems.csv", "check.json", "report.html"


def add_parser(commands: argparse._SubParsersAction) -> None:
    summary = "what is wrong with a dataset, and what it is like"
    form = argparse.RawDescriptionHelpFormatter
    parser = commands.add_parser("check", help=summary, description=__doc__, formatter_class=form)
    parser.add_argument("keys", nargs="*", metavar="KEY=VALUE", help="as for run.py, see config.yaml")
    parser.add_argument(
        "--out", type=Path, default=Path("datasets/check"), metavar="FOLDER", help="default: %(default)s"
    )
    parser.add_argument("--no-decode", action="store_true", help="do not open the images, only look for them")
    add_workers(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    dataset = compose_dataset(arguments.keys)
    from common.hub import offline_where_unreachable
    from data.prepare.check.dataset import check_dataset  # brings torch: only for keys that are right
    from data.prepare.check.summary import as_text

    offline_where_unreachable()
    report = check_dataset(dataset, decode=not arguments.no_decode, workers=arguments.workers)
    print(as_text(report))
    write_report(report, arguments.out)
    print(f"\nevery problem: {arguments.out / PROBLEMS}\nwith plots:    {arguments.out / PAGE}")
    return 1 if report.wrong else 0


def compose_dataset(keys: list[str]) -> dict[str, Any]:
    """The section `dataset` that these KEY=VALUE give, checked, as plain values.

    Raises:
        UserError: unknown keys, wrong values, or no split to check.
    """
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf, open_dict

    from common.config.check import ROOT, check_config, check_overrides

    overrides = check_overrides(keys)
    with initialize_config_dir(version_base="1.3", config_dir=str(ROOT)):
        config = compose("config", overrides=overrides)
    with open_dict(config):  # the one mode that does without training data; what it needs instead is not read here
        config.mode, config.pretrained_name, config.image = "predict", "-", "-"
    check_config(config)
    dataset = OmegaConf.to_container(config.dataset, resolve=True)
    _require_files(dataset)
    return dataset


def _require_files(dataset: dict[str, Any]) -> None:
    splits = {key: value for key, value in dataset.items() if key.endswith("_ds")}
    if dataset["name"] == "emotion_folder":
        if not any(files["visual_dir"] for files in splits.values()):
            raise UserError("nothing to check: give dataset.train_ds.visual_dir=FOLDER")
        return
    for split, files in splits.items():
        if (files["json_path"] is None) != (files["visual_dir"] is None):
            lacking = "json_path" if files["json_path"] is None else "visual_dir"
            raise UserError(
                f"dataset.{split} needs both a json_path and a visual_dir: give dataset.{split}.{lacking} too"
            )
        path = files["json_path"]
        if (
            dataset["name"] == "demo"
            and path
            and not Path(path).resolve().is_relative_to(Path(dataset["root"]).resolve())
        ):
            raise UserError(
                f"dataset.{split}.json_path={path} is not the demo's: name the data, such as preset=artemis_v1 or "
                "preset=coco, or preset=none dataset.name=artemis"
            )
    if dataset["name"] == "demo" and not Path(dataset["root"]).is_dir():
        raise UserError(f"the demo is not in {dataset['root']} yet: `python -m data.demo` paints it there")
    if not any(files["json_path"] for files in splits.values()):
        raise UserError("nothing to check: give dataset.train_ds.json_path=FILE and dataset.train_ds.visual_dir=FOLDER")


def write_report(report: Report, out: Path) -> None:
    """The three files.

    Raises:
        UserError: they cannot be written.
    """
    from data.prepare.check.page import write_check_page

    try:
        write_csv(out / PROBLEMS, ("split", "kind", "image id", "path", "reason"), report.problems)
        write_json(out / SUMMARY, _summary(report))
    except OSError as error:
        raise UserError(f"cannot write into {out}: {error.strerror or error}") from error
    write_check_page(report, out / PAGE)


def _summary(report: Report) -> dict[str, Any]:
    from data.prepare.check.summary import problem_counts

    return {
        "wrong": report.wrong,
        "problems": problem_counts(report.problems),
        "splits": {name: _split_summary(split) for name, split in report.splits.items()},
        "settings": report.settings,
    }


def _split_summary(split: SplitReport) -> dict[str, Any]:
    from data.prepare.check.images import size_quantiles
    from data.prepare.check.texts import most_frequent

    images = ("listed", "usable", "missing", "ambiguous", "corrupt", "renamed")
    summary = {
        "json_path": split.json_path,
        "visual_dir": split.visual_dir,
        "faulty_entries": split.entries,
        "images": {key: getattr(split, key) for key in images},
        "sizes": size_quantiles(split.images) if split.images else None,
    }
    if (texts := split.texts) is None:
        return summary
    return summary | {
        "texts": texts.texts,
        "texts_per_image": dict(sorted(texts.texts_per_image.items())),
        "votes": {name: texts.votes[i] for i, name in enumerate(texts.labels)} if texts.votes else None,
        "dominant": {name: texts.dominant[i] for i, name in enumerate(texts.labels)} if texts.dominant else None,
        "no_majority": texts.dominant[None] if texts.dominant else None,
        "tokens_of_a_text": dict(sorted(texts.lengths.items())) or None,
        "truncated_texts": texts.truncated if texts.lengths else None,
        "tokens": texts.tokens if texts.lengths else None,
        "tokens_with_vad": texts.tokens_known if texts.coverage else None,
        "vad": texts.coverage or None,
        "words_the_lexicon_lacks": dict(most_frequent(texts.lacking)) if texts.coverage else None,
    }
