"""`python -m model.checkpoint_import sevlm|perceiver`: turn published weights into a run for test and predict.

    python -m model.checkpoint_import sevlm SELVM_on_artEmis-V2 --out runs/sevlm --lexicon NRC-VAD-Lexicon.txt
    python -m model.checkpoint_import perceiver coco-last.pt --out runs/perceiver
    python run.py mode=test pretrained_name=runs/sevlm dataset.test_ds.visual_dir=… dataset.test_ds.json_path=…

No code in the files is executed. The run holds all weights of the files. If SEVLM's image encoder was not trained, it
is OpenAI's CLIP ViT-B/16, which is downloaded when the run is first used; --vision names another location.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from common.cli import exit_status, run_program
from common.errors import UserError
from common.reading import expand_user

if TYPE_CHECKING:
    from omegaconf import DictConfig
    from torch import Tensor
    from transformers import PreTrainedTokenizerFast

    from model.captioner import Captioner
    from model.checkpoint_import.imported import Imported


def main(argv: list[str] | None = None) -> int:
    arguments = _parser().parse_args(argv)
    return exit_status(lambda: arguments.run(arguments), interrupted="interrupted; nothing was written")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m model.checkpoint_import",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="sevlm|perceiver")
    sevlm = commands.add_parser("sevlm", help="a folder in the layout of SEVLM's training and of Hugging Face")
    add = sevlm.add_argument
    add("folder", type=Path, metavar="FOLDER", help="with nle_model_NAME, nle_gpt2_tokenizer_0, ckpt_stats_NAME.tar")
    add("--name", help="name of the checkpoint (best-res if it exists, else best-acc)")
    add("--vision", metavar="NAME|PATH", help="image encoder, as in model.vision.pretrained_name, if the files hold "
        "none (openai/clip-vit-base-patch16)")  # fmt: skip
    add("--vision-architecture", metavar="NAME", help="open_clip's name for a weight file, such as ViT-B-16-quickgelu")
    add("--lexicon", type=Path, metavar="FILE", help="VAD of words, which SEVLM needs (dataset.vad_lexicon of the run)")
    sevlm.set_defaults(run=_import_sevlm)
    perceiver = commands.add_parser("perceiver", help="a checkpoint of Perceiver-Resampler-XAttn-Captioning")
    add = perceiver.add_argument
    add("file", type=Path, metavar="FILE", help="the .pt file that its training wrote")
    add("--tokenizer", default="gpt2", metavar="NAME|PATH", help="tokenizer of its training (%(default)s)")
    perceiver.set_defaults(run=_import_perceiver)
    for command in (sevlm, perceiver):
        command.add_argument("--out", type=Path, required=True, metavar="RUN", help="folder of the run; a new one")
    return parser


# --- the commands; torch is imported here, so that --help is fast ---------------------------------------------------


def _import_sevlm(arguments: argparse.Namespace) -> int:
    from data.tokenizer import load_tokenizer
    from data.vad.lexicon_files import read_lexicon
    from model.checkpoint_import.sevlm import read_sevlm

    _check_out(arguments.out)
    imported = read_sevlm(arguments.folder, name=arguments.name)
    keys = {"pretrained_name": arguments.vision, "architecture": arguments.vision_architecture}
    vision = {f"model.vision.{key}": _absolute(value) for key, value in keys.items() if value is not None}
    if vision and "model.vision.config" in imported.settings:
        raise UserError(
            f"--vision: the checkpoint {imported.facts['name']} holds the image encoder that was trained with it; "
            "leave --vision and --vision-architecture out"
        )
    imported.settings |= vision
    if arguments.lexicon is not None:
        read_lexicon(arguments.lexicon)
        imported.settings["dataset.vad_lexicon"] = str(arguments.lexicon.resolve())
    elif imported.settings["model.vad.enabled"]:
        imported.remarks.append("SEVLM needs the VAD of words: give dataset.vad_lexicon=FILE (NRC-VAD) to run.py")
    tokenizer = load_tokenizer(imported.tokenizer)
    return _write_run(imported, tokenizer, arguments.out, what=f"SEVLM, {imported.facts['name']}")


def _import_perceiver(arguments: argparse.Namespace) -> int:
    from common.hub import offline_if_unreachable

    _check_out(arguments.out)
    if not expand_user(arguments.tokenizer).exists():
        offline_if_unreachable()  # before huggingface_hub is imported
    from data.tokenizer import load_tokenizer
    from model.checkpoint_import.perceiver import read_perceiver

    imported = read_perceiver(arguments.file, tokenizer=arguments.tokenizer)
    try:
        tokenizer = load_tokenizer(arguments.tokenizer)
    except UserError as error:
        raise UserError(str(error).replace("dataset.tokenizer", "--tokenizer")) from error
    return _write_run(imported, tokenizer, arguments.out, what="Perceiver-Resampler-XAttn-Captioning")


def _check_out(out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--out {out} already exists: give the name of a new folder")


def _write_run(imported: Imported, tokenizer: PreTrainedTokenizerFast, out: Path, *, what: str) -> int:
    """Write the run folder `out` atomically."""
    from safetensors import SafetensorError

    from common.files import sha256, write_folder
    from model.checkpoint_import.imported import compose_run
    from trainer.runs.checkpoint import save_checkpoint
    from trainer.runs.state import TrainState
    from trainer.runs.task import CaptionTask

    _check_tokens(imported, tokenizer)
    run = expand_user(out).resolve()
    settings = {**imported.settings, "dataset.tokenizer": _absolute(imported.tokenizer)}
    config = compose_run(imported.preset, settings, run=run)
    task = CaptionTask(_captioner(imported, config), weights={}, tokenizer=tokenizer)
    state = TrainState(epoch=imported.epoch, step=imported.step)
    files = [{"name": path.name, "bytes": path.stat().st_size, "sha256": sha256(path)} for path in imported.files]
    origin = {"format": what, **imported.facts, "files": files}
    info = {"state": state.as_dict(), "metrics": {}, "import": origin}
    rules = {"monitored": None, "lower_is_better": True, "keep": 1}
    try:
        write_folder(run, lambda dir: save_checkpoint(dir, task, config=config, training=None, info=info, **rules))
    except (OSError, SafetensorError) as error:
        raise UserError(f"--out {run} cannot be written ({getattr(error, 'strerror', None) or error})") from error
    for remark in imported.remarks:
        print(f"note: {remark}", file=sys.stderr)
    count = sum(tensor.numel() for tensor in imported.weights.values())
    print(f"{what}: {count:,} weights, trained for {imported.step} steps in {imported.epoch} epochs; written to {out}")
    return 0


def _absolute(name: str) -> str:
    path = expand_user(name)
    return str(path.resolve()) if path.exists() else name


def _check_tokens(imported: Imported, tokenizer: PreTrainedTokenizerFast) -> None:
    if len(tokenizer) != imported.vocabulary:
        raise UserError(
            f"the weights have {imported.vocabulary} tokens and the tokenizer {imported.tokenizer} has "
            f"{len(tokenizer)}: give the tokenizer of their training"
        )
    known = tokenizer.get_vocab()
    for token, wanted in imported.tokens.items():
        if known.get(token) != wanted:
            raise UserError(
                f"{imported.tokenizer}: {token} is token {known.get(token)} instead of {wanted}, so this is not the "
                "tokenizer of the weights' training"
            )


def _captioner(imported: Imported, config: DictConfig) -> Captioner:
    """Return the run's network with the weights loaded; a small random tower replaces one that the files lack."""
    from model.build import own_state
    from trainer.setup.parts import build_parts

    building = config.copy()
    elsewhere = config.model.vision.pretrained_name is not None
    if elsewhere:
        width = config.model.text.config.n_embd
        tower = {"image_size": 32, "patch_size": 32, "width": width, "layers": 1, "head_width": width}
        building.model.vision.pretrained_name, building.model.vision.architecture = None, None
        building.model.vision.config = tower
    captioner = build_parts(building).captioner
    captioner.vision.pretrained = elsewhere
    parts, needed = captioner.state_dict(), own_state(captioner)
    for name in [*needed, *imported.weights]:
        wanted, found = (state.get(name) for state in (parts, imported.weights))
        if wanted is None or found is None or wanted.shape != found.shape:
            raise UserError(
                f"config.yaml cannot describe the network of these weights: {name} is {_size(found)} in the files and "
                f"{_size(wanted)} in the network"
            )
    captioner.load_state_dict(imported.weights, strict=False)
    return captioner.eval()


def _size(tensor: Tensor | None) -> str:
    return "missing" if tensor is None else str(tuple(tensor.shape))


if __name__ == "__main__":
    run_program(main)
