"""Check a data set as training will read it: list what cannot be used, describe the rest.

    python -m data.prepare check preset=artemis_v1 dataset.vad_lexicon=FILE
    python -m data.prepare check preset=none dataset.name=coco dataset.train_ds.json_path=FILE \\
        dataset.train_ds.visual_dir=FOLDER

Takes the keys of run.py and checks every split that is given. Writes to --out: problems.csv (all problems), check.json
(all counts) and report.html (with plots). Exit status: 0 no problems, 1 problems, 2 wrong usage.

Images found under another spelling of their name are used; they are listed, but are no problem. Two images are the same
if their pixels are, whatever their names and formats; with --no-decode, if they are the same file.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.config.rules import SHARDS
from common.errors import UserError
from common.files import write_csv, write_json
from common.hub import offline_if_unreachable
from data.prepare.parallel import add_workers
from data.tokenizer_files import resolve_tokenizer

if TYPE_CHECKING:
    from data.prepare.check.dataset import Report

PROBLEMS, SUMMARY, PAGE = "problems.csv", "check.json", "report.html"


def add_parser(commands: argparse._SubParsersAction) -> None:
    summary = "list the problems of a data set and describe it"
    form = argparse.RawDescriptionHelpFormatter
    parser = commands.add_parser("check", help=summary, description=__doc__, formatter_class=form)
    add = parser.add_argument
    add("keys", nargs="*", metavar="KEY=VALUE", help="as for run.py, see config.yaml")
    add("--out", type=Path, default=Path("datasets/check"), metavar="FOLDER", help="default: %(default)s")
    add("--no-decode", action="store_true", help="do not open the images, only find their files")
    add_workers(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    dataset = compose_dataset(arguments.keys)
    offline_if_unreachable()  # before huggingface_hub is imported
    from data.prepare.check.dataset import check_dataset  # imports torch, so the keys are checked first
    from data.prepare.check.summary import as_text

    report = check_dataset(dataset, decode=not arguments.no_decode, workers=arguments.workers)
    print(as_text(report))
    write_report(report, arguments.out)
    print(f"\nall problems: {arguments.out / PROBLEMS}\nwith plots:   {arguments.out / PAGE}")
    return 1 if report.faults else 0


def compose_dataset(keys: list[str]) -> dict[str, Any]:
    """Return the section `dataset` of the configuration for these KEY=VALUE, as plain values; `tokenizer` resolved.

    Raises:
        UserError: unknown keys, wrong values, no split, or a language model without tokenizer.
    """
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf, open_dict

    from common.config.check import ROOT, check_config, check_overrides

    overrides = check_overrides(keys)
    with initialize_config_dir(version_base="1.3", config_dir=str(ROOT)):
        config = compose("config", overrides=overrides)
    with open_dict(config):  # mode=predict needs no training data; the values that it does need are not used here
        config.mode, config.pretrained_name, config.image = "predict", "-", "-"
    check_config(config)
    dataset = OmegaConf.to_container(config.dataset, resolve=True)
    _require_files(dataset)
    dataset["tokenizer"] = resolve_tokenizer(dataset["tokenizer"], config.model.text.pretrained_name)
    return dataset


def _require_files(dataset: dict[str, Any]) -> None:
    splits = {key: files for key, files in dataset.items() if key.endswith("_ds")}
    if dataset["name"] == "emotion_folder":
        if not any(files["visual_dir"] for files in splits.values()):
            raise UserError("there is no data: give dataset.train_ds.visual_dir=FOLDER")
        return
    for split, files in splits.items():
        lacking = [key for key in ("json_path", "visual_dir") if files[key] is None]
        if len(lacking) == 1 and dataset["name"] != SHARDS:
            raise UserError(f"dataset.{split} needs json_path and visual_dir: give dataset.{split}.{lacking[0]} too")
    if dataset["name"] == "demo":
        _require_demo(Path(dataset["root"]), splits)
    if not any(files["json_path"] for files in splits.values()):
        raise UserError("there is no data: give dataset.train_ds.json_path=FILE and dataset.train_ds.visual_dir=FOLDER")


def _require_demo(root: Path, splits: dict[str, Any]) -> None:
    for split, files in splits.items():
        if files["json_path"] and not Path(files["json_path"]).resolve().is_relative_to(root.resolve()):
            raise UserError(
                f"dataset.{split}.json_path={files['json_path']} is not the demo's: name the data, such as "
                "preset=artemis_v1 or preset=coco, or preset=none dataset.name=artemis"
            )
    if not root.is_dir():
        raise UserError(f"{root} does not contain the demo yet: run `python -m data.demo`")


def write_report(report: Report, out: Path) -> None:
    """Write problems.csv, check.json and report.html.

    Raises:
        UserError: they cannot be written.
    """
    from data.prepare.check.page import write_check_page
    from data.prepare.check.summary import as_json

    write_csv(out / PROBLEMS, ("split", "kind", "image id", "path", "reason"), report.problems)
    write_json(out / SUMMARY, as_json(report))
    write_check_page(report, out / PAGE)
