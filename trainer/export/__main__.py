"""`python -m trainer.export`: write a trained network as a folder that other people can use.

    python -m trainer.export mine --out export                      the trained weights; frozen parts stay named
    python -m trainer.export mine --out export --frozen             all weights: needs no other file, no network
    python -m trainer.export mine --out export --frozen --int8      in 8 bits: a smaller file, and faster on many CPUs
    python -m trainer.export mine --out export --onnx               and picture encoder and bridge for onnxruntime
    python -m trainer.export mine --out export --push ORG/NAME      and upload it to the Hugging Face hub

Use it with `python run.py mode=predict pretrained_name=export image=PICTURE`, or pretrained_name=hf-hub:ORG/NAME.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from common.cli import exit_status, run_program
from common.hub import offline_if_unreachable


def main(argv: list[str] | None = None) -> int:
    parser = _parser()
    arguments = parser.parse_args(argv)
    if arguments.private and arguments.push is None:
        parser.error("--private needs --push")
    if arguments.int8 and not arguments.frozen:
        parser.error("--int8 needs --frozen: without it the large weights are not part of the export")
    if arguments.pictures is not None and not arguments.onnx:
        parser.error("--pictures needs --onnx")
    return exit_status(lambda: _export(arguments), interrupted="interrupted; nothing was written")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m trainer.export",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("run", metavar="RUN", help="folder of a run or checkpoint, or name of a run in runs/")
    add("--out", type=Path, required=True, metavar="FOLDER", help="new folder of the export")
    add("--frozen", action="store_true", help="include the frozen image encoder and language model")
    add("--int8", action="store_true", help="with --frozen: store the weights of linear layers in 8 bits")
    add("--onnx", action="store_true", help="add bridge.onnx: from pictures to the inputs of the language model")
    add("--pictures", metavar="PATH", help="with --onnx: pictures to check it with (the run's validation pictures)")
    add("--license", metavar="NAME", help="license of the weights for the card, such as cc-by-nc-4.0 (none)")
    add("--push", metavar="ORG/NAME", help="upload to this repository of the hub, which is created if needed")
    add("--private", action="store_true", help="with --push: create the repository as a private one")
    add("--overwrite", action="store_true", help="replace an earlier export in FOLDER")
    return parser


def _export(arguments: argparse.Namespace) -> int:
    offline_if_unreachable()
    from trainer.export.export import Settings, export  # imported here: torch takes seconds

    repository = arguments.push
    if repository is not None:
        from trainer.export.push import push, require_repository

        require_repository(repository)
    chosen = {key: getattr(arguments, key) for key in ("frozen", "int8", "onnx", "pictures", "overwrite", "license")}
    settings = Settings(**chosen, repository=repository)
    written = export(arguments.run, arguments.out, settings)
    size = sum(path.stat().st_size for path in written.folder.iterdir()) / 1e6
    print(f"exported step {written.info['state']['step']} to {written.folder} ({size:.1f} MB)")
    if repository is not None:
        print(f"uploaded to {push(written.folder, repository, private=arguments.private)}")
    return 0


if __name__ == "__main__":
    run_program(main)
