"""Small real parts of SEVLM for the tests; see also tests/helpers/tiny.py."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import GPT2Tokenizer

from data.sevlm_text import SevlmTemplate
from data.vad.lexicon import Lexicon
from data.vad.pieces import PieceAligner
from model.build import SpecialTokens, build_captioner
from model.captioner import Captioner
from model.sevlm import EMOTION_TOKENS
from tests.helpers.tiny import LEXICON, model_config, write_tokenizer

SWITCHES = {
    "architecture": "sevlm",
    "vision__tokens": "patches",
    "text__trainable": True,
    "vad__fusion": "concat",
    "vad__encoder": "bidirectional",
    "contrastive__depth": 4,
}


def make_sevlm_template(folder: Path, *, max_length: int = 30) -> SevlmTemplate:
    return SevlmTemplate(GPT2Tokenizer.from_pretrained(str(write_tokenizer(folder))), max_length=max_length)


def make_pieces(template: SevlmTemplate, lexicon: dict | None = None) -> PieceAligner:
    return PieceAligner(Lexicon(dict(lexicon or LEXICON)), template.tokenizer, first_target=EMOTION_TOKENS)


def make_sevlm(template: SevlmTemplate, *, seed: int = 0, **changes) -> Captioner:
    """Build SEVLM with small random backbones; changes: as in tests.helpers.tiny.model_config."""
    torch.manual_seed(seed)
    captioner = build_captioner(
        model_config(**{**SWITCHES, **changes}),
        vocab_size=len(template.tokenizer),
        eos_id=template.eos_id,
        special=SpecialTokens(template.pad_id, template.segment_ids),
        length=template.max_length,
    )
    return captioner.eval()
