"""Write a network as a folder that other people can use: a checkpoint without its training, and a model card."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from common.config.check import defaults
from common.config.rules import VLE_STAGES, VLM
from common.errors import UserError, shorten
from common.files import WriteError, explain_write_errors, write_folder, write_json
from common.reading import expand_user
from model.build import own_state
from model.captioner import Text
from model.decoding.int8 import in_int8
from model.standalone import make_standalone
from trainer.export.bridge import require_packages, write_bridge
from trainer.export.card import write_card
from trainer.export.public import FILES, complete, is_local, public_config, public_info
from trainer.prediction.expert import further_sources
from trainer.runs.checkpoint import Checkpoint, find_checkpoint, read_checkpoint
from trainer.runs.console import print_status
from trainer.runs.hub import FILES as CHECKPOINT_FILES
from trainer.runs.retention import write_sums
from trainer.runs.start import LOCK, run_lock
from trainer.setup.parts import Parts, build_parts

WEIGHTS = "model.safetensors"
WRITTEN = (WEIGHTS, "config.yaml", "checkpoint.json", "SHA256SUMS")  # the other files are copied
TOKENS = 8  # of the text with which two networks are compared; dataset.max_length is at least as large


@dataclass(frozen=True, slots=True)
class Settings:
    """What an export holds, and what its card states."""

    frozen: bool = False  # include the frozen image encoder and language model
    int8: bool = False  # with frozen: weights of linear layers in 8 bits
    onnx: bool = False  # add image encoder, mapper and resampler for onnxruntime
    pictures: str | None = None  # with which that is checked; None: the run's validation pictures
    overwrite: bool = False  # replace an earlier export
    license: str | None = None  # such as cc-by-nc-4.0; None: the card names none
    repository: str | None = None  # ORG/NAME on the hub; None: the card names a folder


def export(run: str, out: Path, settings: Settings) -> Checkpoint:
    """Write the best checkpoint of a run, atomically, and return it.

    Args:
        run: folder of a run or checkpoint, or the name of a run.

    Raises:
        UserError: no run of a captioner, one that is being written, a folder that is not to be replaced, or parts that
            cannot be built again from the export; nothing is left of the folder then.
    """
    if settings.onnx:
        require_packages()
    out = expand_user(out).absolute()
    source = find_checkpoint(run, Path(defaults()["trainer.exp_dir"]), key="RUN")
    _require_captioner(source)
    _require_free(out, source, overwrite=settings.overwrite)
    busy = run_lock(source.run, purpose="export") if (source.run / LOCK).exists() else nullcontext()
    with busy, explain_write_errors(out):
        try:
            write_folder(out, lambda folder: _fill(folder, source, settings))
        except SafetensorError as error:  # a full disk
            raise WriteError(out, error) from error
    return read_checkpoint(out, training=False)


def _require_captioner(source: Checkpoint) -> None:
    stage = source.config.get("stage", "caption")
    if stage in (*VLE_STAGES, VLM):
        raise UserError(
            f"{source.folder} is of stage={stage}: name a run of stage=caption, student or gate; one of VLE is a "
            "folder of transformers already, and stage=vlm stores what it tuned"
        )
    if others := further_sources(source.info.get("expert")):
        raise UserError(
            f"the gate of {source.folder} also reads {', '.join(others)}, which an export does not hold: run "
            "stage=gate with expert.sources=[] and export that"
        )


def _require_free(out: Path, source: Checkpoint, *, overwrite: bool) -> None:
    if out.resolve().is_relative_to(source.run.resolve()):
        raise UserError(f"--out {out} is inside the run {source.run}: name a folder outside of it")
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is a file: name a folder")
    if not out.is_dir() or not any(out.iterdir()):
        return
    if not overwrite:
        raise UserError(f"--out {out} is not empty: name another folder, or replace an earlier export with --overwrite")
    if not (out / "checkpoint.json").is_file() or not (out / "README.md").is_file():
        raise UserError(f"--out {out} holds something other than an export and is not replaced: name another folder")


def _fill(folder: Path, source: Checkpoint, settings: Settings) -> None:
    config = complete(source.config)
    if settings.frozen:
        config = _write_all_weights(folder, config, source, int8=settings.int8)
    else:
        shutil.copyfile(source.folder / WEIGHTS, folder / WEIGHTS)
        _note_local_parts(config)
    for path in sorted(source.folder.iterdir()):
        if path.name not in WRITTEN and any(map(path.match, CHECKPOINT_FILES)):
            shutil.copyfile(path, folder / path.name)
    OmegaConf.save(public_config(config), folder / "config.yaml")
    write_json(folder / "checkpoint.json", public_info(source.info))
    write_sums(folder)  # before the card, which its author may edit
    read_checkpoint(folder, training=False)
    if settings.onnx:  # not among the sums: `pretrained_name` reads and downloads the other files only
        write_bridge(folder, _build(complete(source.config), source).captioner, source.config, settings.pictures)
    write_card(folder, source, config, license=settings.license, repository=settings.repository)


def _note_local_parts(config: DictConfig) -> None:
    """Print which frozen parts the export names but neither holds nor can be downloaded."""
    for key in FILES[:2]:
        if is_local(name := OmegaConf.select(config, key)):
            print_status(
                f"warning: {key}={name} is on this machine: whoever uses the export must give {key}=PATH, unless you "
                "export with --frozen"
            )


def _write_all_weights(folder: Path, config: DictConfig, source: Checkpoint, *, int8: bool) -> DictConfig:
    """Write every weight of the network; return the configuration that builds it without other files.

    Raises:
        UserError: the network that is built so differs from the source; in 8 bits, differences are printed.
    """
    config = config.copy()
    parts = _build(config, source)
    config.model = make_standalone(parts.captioner, OmegaConf.to_container(config.model))
    expected = _outputs(parts)
    state = {key: tensor.detach().cpu().contiguous() for key, tensor in own_state(parts.captioner).items()}
    state = in_int8(parts.captioner, state) if int8 else state
    save_file(state, folder / WEIGHTS)
    del parts, state  # two networks might not fit into memory
    copy = Checkpoint(folder, config, {})
    shutil.copyfile(source.tokenizer, copy.tokenizer)
    if (settings := source.tokenizer.with_name("tokenizer_config.json")).is_file():
        shutil.copyfile(settings, folder / settings.name)
    try:
        found = _outputs(_build(config, copy))
    except UserError as error:
        raise _not_standalone(source, shorten(error)) from error
    if int8:
        shares = {name: float((found[name] - one).norm() / one.norm()) for name, one in expected.items()}
        print_status(f"8 bits change {', '.join(f'{name} by {share:.2%}' for name, share in shares.items())}")
    elif different := [name for name, tensor in expected.items() if not torch.equal(tensor, found[name])]:
        raise _not_standalone(source, f"{different[0]} differ")
    return config


def _not_standalone(source: Checkpoint, reason: str) -> UserError:
    return UserError(
        f"--frozen: the network of {source.folder} cannot be built again without the files of its frozen parts "
        f"({reason}): export it without --frozen"
    )


def _build(config: DictConfig, checkpoint: Checkpoint) -> Parts:
    """Build a network on the CPU; its lexicon is not needed for that."""
    config = config.copy()
    config.dataset.vad_lexicon = None
    parts = build_parts(config, checkpoint=checkpoint)
    parts.captioner.eval()
    return parts


@torch.no_grad()
def _outputs(parts: Parts) -> Mapping[str, Tensor]:
    """Return the encoder's tokens of a random picture, and the logits of a random text about it."""
    captioner, random = parts.captioner, torch.Generator().manual_seed(0)
    size: Any = captioner.vision.preprocess["size"]
    frames = torch.rand(1, 1, 3, *((size, size) if isinstance(size, int) else size), generator=random)
    ids = torch.randint(len(parts.template.tokenizer), (1, TOKENS), generator=random)
    known = torch.ones(1, TOKENS, dtype=torch.bool)
    text = Text(ids, torch.zeros_like(ids), torch.zeros(1, TOKENS, 3), known, known, right_padded=True)
    tokens = captioner.encode(frames)
    hidden = captioner.read(captioner.look(frames, known[:, :1], tokens), text)
    logits = captioner.language.next_word(hidden[0]).logits()
    return {"the tokens of a picture": tokens, "the logits of a text": logits}
