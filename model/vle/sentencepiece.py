"""Read a sentencepiece model (`spm.model`) and build the same tokenizer with the `tokenizers` library.

The file is a protobuf message; the few fields that matter are read here, so that neither sentencepiece nor protobuf is
needed. Field numbers: github.com/google/sentencepiece, src/sentencepiece_model.proto. The ids are those of transformers
4.26, but where two splits of a word have the same score, or a zero-width joiner follows a character that is replaced.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tokenizers import Regex, Tokenizer
from tokenizers.decoders import Metaspace as MetaspaceDecoder
from tokenizers.models import Unigram
from tokenizers.normalizers import Normalizer, Precompiled, Replace, Sequence
from tokenizers.pre_tokenizers import Metaspace
from tokenizers.processors import TemplateProcessing

from common.errors import UserError, shorten
from common.reading import read_bytes, refuse_panics
from model.weights.plain import read_object

SPECIAL = ("[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]")
UNIGRAM, UNKNOWN = 1, 2  # values of the fields model_type and piece type


class SentencePiece(NamedTuple):
    """What `spm.model` holds: pieces with their log-probabilities, and the compiled normalisation rules."""

    pieces: list[tuple[str, float]]
    unknown: int  # id of the unknown piece
    charsmap: bytes  # empty: text is not normalised


def read_sentencepiece(path: Path) -> SentencePiece:
    """Return the content of a unigram sentencepiece model.

    Raises:
        OSError: it cannot be read.
        UserError: it is damaged, or no unigram model.
    """
    pieces, kinds, charsmap, model = [], [], b"", UNIGRAM
    try:
        for field, value in _fields(read_bytes(path)):
            if field == 1:  # a piece
                content = dict(_fields(value))
                pieces.append((content[1].decode(), struct.unpack("<f", content.get(2, bytes(4)))[0]))
                kinds.append(content.get(3, 1))
            elif field == 2:  # settings of its training
                model = dict(_fields(value)).get(3, UNIGRAM)
            elif field == 3:  # normaliser
                charsmap = dict(_fields(value)).get(2, b"")
        unknown = kinds.index(UNKNOWN)
    except (IndexError, KeyError, TypeError, AttributeError, ValueError, struct.error) as error:
        raise UserError(f"{path} is no sentencepiece model, or is damaged: copy it again") from error
    if model != UNIGRAM:
        raise UserError(f"{path} is not a unigram model, as DeBERTa-v3 has: take the spm.model of the checkpoint")
    return SentencePiece(pieces, unknown, charsmap)


def build_tokenizer(path: Path) -> Tokenizer:
    """Return the DeBERTa-v3 tokenizer of `spm.model`: [CLS] text [SEP], or [CLS] text [SEP] second text [SEP].

    The tokens of `added_tokens.json` beside it, or else [MASK], get the ids after the last piece.

    Raises:
        OSError: a file cannot be read.
        UserError: a file is damaged, a special token is missing, or an added token has another id.
    """
    model = read_sentencepiece(path)
    texts = {text for text, _ in model.pieces}
    if missing := [token for token in SPECIAL[:4] if token not in texts]:
        raise UserError(f"{path} has no {', '.join(missing)}: take the spm.model of a checkpoint of VLE or DeBERTa-v3")
    try:
        with refuse_panics():
            tokenizer = Tokenizer(Unigram(model.pieces, unk_id=model.unknown))
            tokenizer.normalizer = _normalizer(model.charsmap)
    except Exception as error:  # tokenizers raises plain Exception
        raise UserError(f"{path} is damaged ({shorten(error)}): copy it again") from error
    tokenizer.pre_tokenizer = Metaspace(prepend_scheme="always")
    tokenizer.decoder = MetaspaceDecoder(prepend_scheme="always")
    tokenizer.add_special_tokens([*SPECIAL[:4]])
    _add_tokens(tokenizer, path.with_name("added_tokens.json"))
    tokenizer.post_processor = template_of(tokenizer)
    return tokenizer


def template_of(tokenizer: Tokenizer) -> TemplateProcessing:
    """Return what adds the special tokens to one text or two."""
    ends = [(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    return TemplateProcessing(single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=ends)


def _add_tokens(tokenizer: Tokenizer, path: Path) -> None:
    """Append the tokens of `added_tokens.json`, or [MASK] if there is no such file."""
    added = read_object(path) if path.is_file() else {}
    added.setdefault("[MASK]", tokenizer.get_vocab_size() + len(added))
    for token, expected in sorted(added.items(), key=lambda item: str(item[1]).zfill(9)):
        tokenizer.add_special_tokens([token])
        if (found := tokenizer.token_to_id(token)) != expected:
            raise UserError(
                f"{path} gives {token} the id {expected}, and {found} is the next one after the pieces of spm.model: "
                "take both files from one checkpoint"
            )


def _normalizer(charsmap: bytes) -> Normalizer:
    """Return the steps of sentencepiece: its compiled rules first, then only spaces are stripped and collapsed."""
    spaces = [Replace(Regex(r"\A +| +\z"), ""), Replace(Regex(" {2,}"), " ")]
    return Sequence([Precompiled(charsmap), *spaces] if charsmap else spaces)


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yield (number, value) of a protobuf message's fields; the value is a whole number or bytes."""
    at, end = 0, len(message)
    while at < end:
        key, at = _varint(message, at)
        kind, size = key & 7, 0
        if kind == 0:
            value, at = _varint(message, at)
            yield key >> 3, value
            continue
        if kind == 2:
            size, at = _varint(message, at)
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
        else:
            raise ValueError(f"wire type {kind}")
        if at + size > end:
            raise ValueError("truncated")
        yield key >> 3, message[at : at + size]
        at += size


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
