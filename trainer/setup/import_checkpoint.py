"""`python -m model.checkpoint_import sevlm|perceiver`: released weights as a run that mode=test and mode=predict take.

    python -m model.checkpoint_import sevlm SELVM_on_artEmis-V2 --out runs/sevlm --lexicon NRC-VAD-Lexicon.txt
    python -m model.checkpoint_import perceiver coco-last.pt --out runs/perceiver
    python run.py mode=test pretrained_name=runs/sevlm dataset.test_ds.visual_dir=… dataset.test_ds.json_path=…

Nothing in the files is executed. The run holds all weights that the files hold; where SEVLM's image encoder was not
trained, it is OpenAI's CLIP ViT-B/16, which is fetched when the run is first used (elsewhere: --vision).
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.cli import exit_status, run_program
from common.errors import UserError
from common.reading import expanded

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
    sevlm = commands.add_parser("sevlm", help="a folder as SEVLM's training writes it and Hugging Face holds it")
    add = sevlm.add_argument
    add("folder", type=Path, metavar="FOLDER", help="of nle_model_NAME, nle_gpt2_tokenizer_0 and ckpt_stats_NAME.tar")
    add("--name", help="which checkpoint (best-res where there is one, else best-acc)")
    add("--vision", metavar="NAME|PATH", help="image encoder, as model.vision.pretrained_name takes it, where the "
        "files hold none (openai/clip-vit-base-patch16)")  # fmt: skip
    add("--vision-architecture", metavar="NAME", help="of a weight file: open_clip's name, such as ViT-B-16-quickgelu")
    add("--lexicon", type=Path, metavar="FILE", help="dataset.vad_lexicon of the run: the VAD of words, which SEVLM "
        "reads when it writes")  # fmt: skip
    sevlm.set_defaults(run=_import_sevlm)
    perceiver = commands.add_parser("perceiver", help="a checkpoint of Perceiver-Resampler-XAttn-Captioning")
    add = perceiver.add_argument
    add("file", type=Path, metavar="FILE", help="the .pt file that its training wrote")
    add("--tokenizer", default="gpt2", metavar="NAME|PATH", help="that it was trained with (%(default)s)")
    perceiver.set_defaults(run=_import_perceiver)
    for command in (sevlm, perceiver):
        command.add_argument("--out", type=Path, required=True, metavar="RUN", help="folder of the run; a new one")
    return parser


# --- the commands; what is heavy to import is imported here, so that --help is instant ------------------------------


def _import_sevlm(arguments: argparse.Namespace) -> int:
    from model.checkpoint_import.sevlm import read_sevlm

    _check_out(arguments.out)
    imported = read_sevlm(arguments.folder, name=arguments.name)
    asked = {"pretrained_name": arguments.vision, "architecture": arguments.vision_architecture}
    vision = {f"model.vision.{key}": _absolute(value) for key, value in asked.items() if value is not None}
    if vision and "model.vision.config" in imported.settings:
        raise UserError(
            f"--vision: the checkpoint {imported.facts['name']} holds the image encoder that was trained with it; "
            "leave --vision and --vision-architecture out"
        )
    imported.settings |= vision
    if arguments.lexicon is not None:
        imported.settings["dataset.vad_lexicon"] = str(_lexicon(arguments.lexicon))
    elif imported.settings["model.vad.enabled"]:
        imported.remarks.append("SEVLM reads the VAD of words: give dataset.vad_lexicon=FILE (NRC-VAD) to run.py")
    from data.text import load_tokenizer

    tokenizer = load_tokenizer(imported.tokenizer)
    return _finish(imported, tokenizer, arguments.out, what=f"SEVLM, {imported.facts['name']}")


def _import_perceiver(arguments: argparse.Namespace) -> int:
    from common.hub import offline_where_unreachable

    _check_out(arguments.out)
    if not expanded(arguments.tokenizer).exists():
        offline_where_unreachable()  # before anything that downloads is imported
    from data.text import load_tokenizer
    from model.checkpoint_import.perceiver import read_perceiver

    imported = read_perceiver(arguments.file, tokenizer=arguments.tokenizer)
    try:
        tokenizer = load_tokenizer(arguments.tokenizer)
    except UserError as error:
        raise UserError(str(error).replace("dataset.tokenizer", "--tokenizer")) from error
    return _finish(imported, tokenizer, arguments.out, what="Perceiver-Resampler-XAttn-Captioning")


def _check_out(out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--out {out} is there already: give the name of a new folder")


def _lexicon(path: Path) -> Path:
    from data.vad.lexicon_files import read_lexicon

    read_lexicon(path)
    return path.resolve()


def _finish(imported: Imported, tokenizer: PreTrainedTokenizerFast, out: Path, *, what: str) -> int:
    """Write what was read as the run `out`: the whole folder, or nothing."""
    from safetensors import SafetensorError

    from common.files import write_folder
    from model.checkpoint_import.imported import compose_run
    from trainer.runs.checkpoint import save_checkpoint
    from trainer.runs.state import TrainState
    from trainer.runs.task import CaptionTask

    _check_tokens(imported, tokenizer)
    run = expanded(out).resolve()
    config = compose_run(
        imported.preset, {**imported.settings, "dataset.tokenizer": _absolute(imported.tokenizer)}, run=run
    )
    task = CaptionTask(_captioner(imported, config), weights={}, tokenizer=tokenizer)
    state = TrainState(epoch=imported.epoch, step=imported.step)
    origin = {"format": what, **imported.facts, "files": _fingerprints(imported.files)}
    info = {"state": state.as_dict(), "metrics": {}, "import": origin}
    once = {"monitored": None, "lower_is_better": True, "keep": 1}
    try:
        write_folder(run, lambda folder: save_checkpoint(folder, task, config=config, training=None, info=info, **once))
    except (OSError, SafetensorError) as error:
        raise UserError(f"--out {run} cannot be written ({getattr(error, 'strerror', None) or error})") from error
    for remark in imported.remarks:
        print(f"note: {remark}", file=sys.stderr)
    count = sum(tensor.numel() for tensor in imported.weights.values())
    print(f"{what}: {count:,} weights, trained for {imported.step} steps in {imported.epoch} epochs; written to {out}")
    return 0


def _absolute(name: str) -> str:
    path = expanded(name)
    return str(path.resolve()) if path.exists() else name


def _check_tokens(imported: Imported, tokenizer: PreTrainedTokenizerFast) -> None:
    if len(tokenizer) != imported.vocabulary:
        raise UserError(
            f"the weights know {imported.vocabulary} tokens and the tokenizer {imported.tokenizer} has "
            f"{len(tokenizer)}: give the one that they were trained with"
        )
    known = tokenizer.get_vocab()
    for token, wanted in imported.tokens.items():
        if known.get(token) != wanted:
            raise UserError(
                f"{imported.tokenizer}: {token} is token {known.get(token)} instead of {wanted}, so this is not the "
                "tokenizer that the weights were trained with"
            )


def _captioner(imported: Imported, config: DictConfig) -> Captioner:
    """The run's network with the weights in it; a tower that the files do not hold is stood in for by a small one."""
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
                f"these weights make no network that config.yaml can describe: {name} is {_size(found)} in the files "
                f"and {_size(wanted)} in the network"
            )
    captioner.load_state_dict(imported.weights, strict=False)
    return captioner.eval()


def _size(tensor: Tensor | None) -> str:
    return "missing" if tensor is None else str(tuple(tensor.shape))


def _fingerprints(paths: list[Path]) -> list[dict[str, Any]]:
    found = []
    for path in paths:
        with path.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        found.append({"name": path.name, "bytes": path.stat().st_size, "sha256": digest})
    return found


if __name__ == "__main__":
    run_program(main)
