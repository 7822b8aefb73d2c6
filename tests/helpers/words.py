"""Words, texts and tokenizers for tests of the rules of data/vad/align.py."""

from __future__ import annotations

import random
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPT2Tokenizer, PreTrainedTokenizerFast

from data.vad.align import VadAligner
from data.vad.lexicon import Lexicon

# fmt: off
ENTRIES = (
    "past", "yell", "yellow", "tree", "blue", "green", "yo-yo", "yo", "win", "won", "happy", "sad", "naïve",
    "calm", "calming", "rock", "roll", "o'clock", "clock", "brush", "serene", "somber", "leaf", "t", "well-being",
    "being", "空", "mother-in-law", "mother", "law", "re", "ve", "ll",
)
# fmt: on
LEXICON = Lexicon({word: ((i + 1) / 32, -(i + 1) / 64, 0.5) for i, word in enumerate(ENTRIES)} | {"meh": (0, 0, 0)})
EOS = "<|endoftext|>"
SNIPPETS = [*ENTRIES, "yellows", "pastel", "Brushstrokes", "won't", "don’t", "tree's", "meh", "mehs", "3", "_"]
SNIPPETS += ["--", "-", "'", "’", ". ", ", ", "\n", "😀", "e\u0301", "…", "é", "ß", "\u2011", "blue-green", "空き", EOS]


def random_text(rng: random.Random) -> str:
    return "".join(rng.choice(SNIPPETS) + rng.choice(["", " ", " ", " "]) for _ in range(rng.randint(1, 14)))


def byte_level(merges: list[tuple[str, str]], *, use_regex: bool = True) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE with these merges; without merges every byte is a piece."""
    pieces = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *("".join(pair) for pair in merges)]
    tokenizer = Tokenizer(models.BPE({piece: i for i, piece in enumerate(pieces)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=EOS)


def write_gpt2_like(folder: Path) -> GPT2Tokenizer:
    """Return a GPT2Tokenizer with a small vocabulary that splits most words, written to `folder`."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=330, special_tokens=[EOS], initial_alphabet=sorted(alphabet), show_progress=False
    )
    rng = random.Random(0)
    tokenizer.train_from_iterator([random_text(rng).replace(EOS, "") for _ in range(300)], trainer)
    tokenizer.model.save(str(folder))
    return GPT2Tokenizer.from_pretrained(folder)


def mixed() -> PreTrainedTokenizerFast:
    """Return a tokenizer with pieces that end a word and continue, or have a letter and a part of a character."""
    merges = ["y .", "d Ġ", "s -", "' s", "e Ġ", "eĠ b", "Ã ¯", "Ã¯ v", "a Ã"]
    return byte_level([tuple(pair.split()) for pair in merges], use_regex=False)


def random_rows(aligner: VadAligner, *, count: int, seed: int = 1) -> list[list[int]]:
    """Return ids of random texts, and random ids (incomplete characters, special tokens inside words)."""
    rng = random.Random(seed)
    texts = [aligner.tokenizer(random_text(rng))["input_ids"] for _ in range(count)]
    ids = range(len(aligner.tokenizer) + 2)
    return [row for row in texts if row] + [rng.choices(ids, k=rng.randint(1, 30)) for _ in range(count)]
