"""Small tokenizers of every kind that language models have, as folders with tokenizer.json and its settings."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from data.emotions import EMOTIONS
from tests.helpers.tiny import sentences

KINDS = ("byte level", "sentencepiece BPE", "sentencepiece unigram", "WordPiece")
CHAT = ["<|im_start|>", "<|im_end|>"]


def write_kind(folder: Path, kind: str, *, sizes: int = 420, model_type: str | None = None) -> Path:
    """Write the tokenizer, and a config.json if `model_type` is given; its first tokens are special."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer, ends = {
        "byte level": _byte_level,
        "sentencepiece BPE": _llama,
        "sentencepiece unigram": _unigram,
        "WordPiece": _wordpiece,
    }[kind](sizes)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **ends}))
    if model_type is not None:
        config = {"model_type": model_type, "vocab_size": tokenizer.get_vocab_size()}
        (folder / "config.json").write_text(json.dumps(config))
    return folder


def _corpus() -> list[str]:
    return [f" the emotion is {e} because {s} 'yo-yo' ünï" for e in EMOTIONS for s in sentences(20)]


def _train(tokenizer: Tokenizer, trainer: trainers.Trainer) -> Tokenizer:
    tokenizer.train_from_iterator(_corpus(), trainer)
    return tokenizer


def _byte_level(size: int) -> tuple[Tokenizer, dict[str, str]]:
    """As SmolLM2 and Qwen: digits alone, chat tokens, and an <eos> that a file without settings would not give."""
    tokenizer = Tokenizer(models.BPE())
    digits = pre_tokenizers.Digits(individual_digits=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<|endoftext|>", *CHAT]
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    return _train(tokenizer, trainer), {"bos_token": CHAT[0], "eos_token": CHAT[1], "chat_template": "{{ messages }}"}


def _llama(size: int) -> tuple[Tokenizer, dict[str, str]]:
    """As Llama 2: a space before any text, bytes for unknown characters."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=["<unk>", "<s>", "</s>"], show_progress=False)
    parts = json.loads(_train(tokenizer, trainer).to_str())
    vocabulary = parts["model"]["vocab"]
    for byte in range(256):
        vocabulary[f"<0x{byte:02X}>"] = len(vocabulary)
    tokenizer = Tokenizer.from_str(json.dumps(parts))
    tokenizer.pre_tokenizer = None
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return tokenizer, {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}


def _unigram(size: int) -> tuple[Tokenizer, dict[str, str]]:
    """As XGLM: Metaspace."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Replace("  ", " ")
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    trainer = trainers.UnigramTrainer(
        vocab_size=size, special_tokens=["<s>", "<pad>", "</s>", "<unk>"], unk_token="<unk>", show_progress=False
    )
    return _train(tokenizer, trainer), {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}


def _wordpiece(size: int) -> tuple[Tokenizer, dict[str, str]]:
    """As BERT, without an <eos>: lower case, no accents."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    trainer = trainers.WordPieceTrainer(vocab_size=size, special_tokens=special, show_progress=False)
    return _train(tokenizer, trainer), {"unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
