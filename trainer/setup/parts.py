"""Build the network, the text template and the VAD aligner from a configuration or checkpoint."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from common.errors import UserError, shorten
from data.emotions import EMOTIONS
from data.sevlm_text import SevlmTemplate
from data.text import Template
from data.tokenizer import load_tokenizer
from data.vad.align import VadAligner
from data.vad.lexicon_files import configured_lexicon
from data.vad.pieces import PieceAligner
from model.build import SpecialTokens, build_captioner, count_parameters, own_state
from model.captioner import Captioner
from model.decoding.packed import optimize_for_generation
from model.sevlm import EMOTION_TOKENS
from model.weights.tensor_files import add_tensors
from trainer.runs.checkpoint import Checkpoint, load_weights
from trainer.setup.vocabulary import configured_tokenizer


@dataclass(slots=True)
class Parts:
    """The network, and the template and aligner that turn text into its tensors."""

    captioner: Captioner
    template: Template
    aligner: VadAligner | PieceAligner
    with_emotions: bool
    with_explanations: bool = True
    int8: bool = False  # the checkpoint's weights were stored in 8 bits

    def optimize(self, *, bf16: bool) -> None:
        """Optimize the network for generation, in place; see optimize_for_generation."""
        optimize_for_generation(self.captioner, bf16=bf16, int8=self.int8)

    def emotion_tokens(self, config: DictConfig, device: torch.device) -> Tensor | None:
        """Return the first token id of each label, (C,), for model.emotion_target=histogram; else None."""
        if not self.with_emotions or config.model.emotion_target != "histogram":
            return None
        return torch.tensor([ids[0] for ids in self.template.label_ids], device=device)


def build_parts(config: DictConfig, *, checkpoint: Checkpoint | None = None) -> Parts:
    """Build the parts; with a checkpoint, load its tokenizer and weights.

    Raises:
        UserError: a part cannot be built, weights that are not finite, or a text longer than the model's positions.
    """
    tokenizer = load_tokenizer(str(checkpoint.tokenizer)) if checkpoint else configured_tokenizer(config)
    sevlm = config.model.architecture == "sevlm"
    kind = SevlmTemplate if sevlm else partial(Template, languages=config.dataset.languages or ())
    template = kind(tokenizer, max_length=config.dataset.max_length, labels=config.dataset.labels or EMOTIONS)
    if config.dataset.emotions:
        template.require_distinct()
    aligner = _aligner(config, tokenizer)  # first: a wrong path of the lexicon is reported before weights are loaded
    try:
        captioner = build_captioner(
            OmegaConf.to_container(config.model, resolve=True),
            vocab_size=len(tokenizer),
            eos_id=template.eos_id,
            special=SpecialTokens(template.pad_id, template.segment_ids) if sevlm else None,
            length=config.dataset.max_length,
        )
    except (TypeError, ValueError, RuntimeError, MemoryError, ArithmeticError, AssertionError) as error:
        raise UserError(f"the network of the section `model` cannot be built ({shorten(error)})") from error
    int8 = False
    if checkpoint is not None:
        int8 = load_weights(captioner, checkpoint.folder)
        _refuse_other_backbones(captioner, config, checkpoint)
        broken = (name for name, value in captioner.named_parameters() if not value.isfinite().all())
        if (name := next(broken, None)) is not None:
            raise UserError(f"{checkpoint.folder}: {name} holds NaN or infinity; take another checkpoint")
    longest = config.dataset.max_length + (1 if config.dataset.name != "mlslt" else config.dataset.max_frames)
    if longest > captioner.language.max_positions:
        raise UserError(
            f"dataset.max_length={config.dataset.max_length} and the visual prefix need {longest} positions, but this "
            f"language model has {captioner.language.max_positions}: lower dataset.max_length"
        )
    explanations = config.dataset.explanations is not False
    return Parts(captioner, template, aligner, config.dataset.emotions, explanations, int8)


def frozen_weights(captioner: Captioner) -> dict[str, dict[str, str]]:
    """Return the digests of frozen pretrained weights, which checkpoints do not contain, by the key that names them."""
    stored = {tensor.data_ptr() for tensor in own_state(captioner).values()}  # a tied weight is stored by one name
    state = {name: tensor for name, tensor in captioner.state_dict().items() if tensor.data_ptr() not in stored}
    found = {}
    for key, prefix in (("model.vision.pretrained_name", "vision."), ("model.text.pretrained_name", "language.")):
        if frozen := {name: tensor for name, tensor in state.items() if name.startswith(prefix)}:
            found[key] = {"sha256": tensors_digest(frozen)}
    return found


def _refuse_other_backbones(captioner: Captioner, config: DictConfig, checkpoint: Checkpoint) -> None:
    trained_with = checkpoint.info.get("made_of")
    if not isinstance(trained_with, dict):  # an imported checkpoint
        return
    for key, found in frozen_weights(captioner).items():
        stored = trained_with.get(key)
        if isinstance(stored, dict) and stored.get("sha256") != found["sha256"]:
            raise UserError(
                f"{checkpoint.folder} was trained with other weights of {key}={OmegaConf.select(config, key)} than are "
                "loaded now: restore those, or train again"
            )


def tensors_digest(state: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of a state dict."""
    digest = hashlib.sha256()
    add_tensors(digest, state)
    return digest.hexdigest()


def _aligner(config: DictConfig, tokenizer) -> VadAligner | PieceAligner:
    lexicon = configured_lexicon(config.dataset) if config.model.vad.enabled else None
    if config.dataset.vad_unit == "word":
        return VadAligner(lexicon, tokenizer)
    return PieceAligner(lexicon, tokenizer, first_target=EMOTION_TOKENS if config.model.architecture == "sevlm" else 0)


def describe(captioner: Captioner) -> str:
    """Return a table of trained and frozen weights by part."""
    rows = [(row.part, row.trained, row.frozen) for row in count_parameters(captioner)]
    rows.append(("total", sum(row[1] for row in rows), sum(row[2] for row in rows)))
    lines = (f"{part:<16} {trained:>13,} {frozen:>13,}" for part, trained, frozen in rows)
    return "\n".join([f"{'part':<16} {'trained':>13} {'frozen':>13}", *lines])
