"""The bytes that each piece of a tokenizer's vocabulary stands for, as its decoder describes them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from common.errors import UserError

BYTE = re.compile(r"<0x([0-9A-F]{2})>")  # a piece that stands for one byte of a character without piece


def piece_bytes(tokenizer) -> dict[int, bytes]:
    """Return the bytes of every piece of the vocabulary by id, without special and added tokens.

    Concatenated, they are the text with a space before each word: that of byte-level BPE and sentencepiece, or the one
    that WordPiece's decoder inserts.

    Raises:
        UserError: the decoder is of another kind.
    """
    special = {*tokenizer.all_special_ids, *tokenizer.get_added_vocab().values()}
    pieces = {index: piece for piece, index in tokenizer.get_vocab().items() if index not in special}
    try:
        read = _reader(json.loads(tokenizer.backend_tokenizer.to_str())["decoder"] or {})
        return {index: read(piece) for index, piece in pieces.items()}
    except KeyError as error:
        raise UserError(
            f"words cannot be aligned with the tokens of {tokenizer.name_or_path or 'this tokenizer'}: it is neither a "
            f"byte-level BPE nor sentencepiece nor WordPiece ({error.args[0]}); use GPT-2's tokenizer, or set "
            "dataset.vad_lexicon to null"
        ) from None


def _reader(decoder: Mapping[str, Any]) -> Callable[[str], bytes]:
    """Return the function from a piece to its bytes.

    Args:
        decoder: of the tokenizer's JSON; a Sequence of several, or one.

    Raises:
        KeyError: another kind of decoder; the function: a character that stands for no byte.
    """
    steps = {step["type"]: step for step in decoder.get("decoders", [decoder]) if step}
    if "ByteLevel" in steps:
        from transformers.convert_slow_tokenizer import bytes_to_unicode

        alphabet = {char: byte for byte, char in bytes_to_unicode().items()}
        return lambda piece: bytes(alphabet[char] for char in piece)
    if "WordPiece" in steps:
        prefix = steps["WordPiece"]["prefix"]
        return lambda piece: (piece.removeprefix(prefix) if piece.startswith(prefix) else f" {piece}").encode()
    if "Metaspace" in steps:
        space = steps["Metaspace"]["replacement"]
    elif "Replace" in steps and steps["Replace"]["content"] == " ":
        space = steps["Replace"]["pattern"]["String"]
    else:
        raise KeyError(f"its decoder is {', '.join(steps) or 'missing'}")
    fallback = "ByteFallback" in steps

    def read(piece: str) -> bytes:
        byte = BYTE.fullmatch(piece) if fallback else None
        return bytes.fromhex(byte[1]) if byte else piece.replace(space, " ").encode()

    return read
