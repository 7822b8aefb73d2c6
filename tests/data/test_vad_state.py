"""VadState gives the same values token by token as VadAligner.align for the whole text."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from transformers import GPT2Tokenizer, PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

from data.vad.align import VadAligner
from data.vad.lexicon import Lexicon
from data.vad.lexicon_files import read_lexicon
from tests.helpers.words import EOS, LEXICON, byte_level, mixed, random_rows, write_gpt2_like

CPU = torch.device("cpu")
TEXTS = [
    "A pastel sky, somber and serene: yellows, YELLOWS, Yellow's!",
    "blue-green well-being mother-in-law yo-yo yo--yo yo- yo -yo rock'n'roll o'clock 'sad' trees' won't don’t tree’s",
    "naïve nai\u0308ve NAÏVE na\u0131ve sad\u0301 sa\u0301d \u0301sad sad-\u0301sad ﬁre ß SS ẞ σς Σ 空き 空 é e\u0301",
    "3sad4 sad_sad sad—sad sad…sad “calm” ‘happy’ calm\u2011happy 😀sad😀 sad\u200bsad \tsad\nsad sad\x00sad",
    f"sad{EOS}sad sa{EOS}d won{EOS}'t",
    "rock-'roll rock'-roll t's t't 't s-t re've'll d'm-s o''clock o-'clock mother-in mother-in-",
]


def assert_steps_equal_align(aligner: VadAligner, rows: Sequence[Sequence[int]]) -> int:
    """Step through all rows, compare every position with `align`, and return the number of known positions."""
    length = max(map(len, rows))
    eos = aligner.tokenizer.eos_token_id
    ids = torch.tensor([[*row, *[eos] * (length - len(row))] for row in rows])
    expected = [aligner.align(row) for row in ids]
    state = aligner.start([[]] * len(rows), CPU)
    for t in range(length):
        vad, known = state.step(ids[:, t])
        assert (vad.dtype, known.dtype) == (torch.float32, torch.bool)
        assert torch.equal(known, torch.stack([flags[t] for _, flags, _ in expected])), f"known at token {t}"
        assert torch.equal(vad, torch.stack([values[t] for values, _, _ in expected])), f"values at token {t}"
    return int(sum(known.sum() for _, known, _ in expected))


@pytest.fixture(scope="module", params=["gpt2_like", "bytes", "mixed"])
def aligner(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> VadAligner:
    if request.param == "gpt2_like":
        return VadAligner(LEXICON, write_gpt2_like(tmp_path_factory.mktemp("bpe")))
    return VadAligner(LEXICON, mixed() if request.param == "mixed" else byte_level([]))


def test_steps_equal_align_for_texts_and_random_ids(aligner: VadAligner) -> None:
    rows = [aligner.tokenizer(text)["input_ids"] for text in TEXTS]
    assert assert_steps_equal_align(aligner, rows) > 50
    assert assert_steps_equal_align(aligner, random_rows(aligner, count=150)) > 300


# Letters, joiners and marks; then bytes of surrogates and of overlong, incomplete or invalid characters.
AWKWARD = "adstA'- 3_é’\u0301空😀".encode() + bytes([0x80, 0x81, 0xA0, 0xBF, 0xC0, 0xC1, 0xE0, 0xED, 0xF0, 0xF4, 0xFF])


def random_pieces(rng: random.Random, count: int) -> PreTrainedTokenizerFast:
    """Return a tokenizer with `count` random merges of the awkward bytes."""
    characters = bytes_to_unicode()
    pieces = [characters[byte] for byte in sorted({*AWKWARD})]
    merges: list[tuple[str, str]] = []
    while len(merges) < count:
        pair = (rng.choice(pieces), rng.choice(pieces))
        if len("".join(pair)) <= 5 and "".join(pair) not in pieces:
            merges.append(pair)
            pieces.append("".join(pair))
    return byte_level(merges)


@pytest.mark.parametrize("seed", range(3))
def test_steps_equal_align_for_random_vocabularies(seed: int) -> None:
    """Few letters, so that words occur; characters are split and joined at random."""
    rng = random.Random(seed)
    words = ["a", "d", "s", "t", "ad", "as", "at", "sad", "é", "éa", "sé", "dé", "a'd", "a-s", "s't", "a\u0301", "ÁT"]
    words += ["é-é", "é's", "s-é'd", "aa", "dd", "tas", "空a"]
    lexicon = Lexicon({word: (i / 32, -i / 32, 0.5) for i, word in enumerate(words, start=1)})
    aligner = VadAligner(lexicon, random_pieces(rng, 80))
    likely = [i for i, piece in aligner._pieces.items() if set(piece) <= {*"adst'-é’\u0301空".encode()}]
    awkward = [i for i, piece in aligner._pieces.items() if set(piece) <= {*AWKWARD}]
    rows = [[rng.choice(likely if rng.random() < 0.8 else awkward) for _ in range(40)] for _ in range(150)]
    assert assert_steps_equal_align(aligner, rows) > 500


def test_prompts_of_different_lengths(aligner: VadAligner) -> None:
    rows = [row for row in random_rows(aligner, count=20) if len(row) > 1]
    vad, known = aligner.start([row[:-1] for row in rows], CPU).step(torch.tensor([row[-1] for row in rows]))
    assert torch.equal(vad, torch.stack([aligner.align(row)[0][-1] for row in rows]))
    assert torch.equal(known, torch.stack([aligner.align(row)[1][-1] for row in rows]))
    assert known.any() and not known.all()


def test_reordered_rows(aligner: VadAligner) -> None:
    rng = random.Random(5)
    rows = [row[:6] for row in random_rows(aligner, count=30) if len(row) >= 6]
    state = aligner.start(rows, CPU)
    for _ in range(12):
        order = [rng.randrange(len(rows)) for _ in rows]
        state.reorder(torch.tensor(order))
        tokens = [rng.choice(rng.choice(rows)) for _ in rows]
        rows = [[*rows[i], token] for i, token in zip(order, tokens, strict=True)]
        vad, known = state.step(torch.tensor(tokens))
        assert torch.equal(vad, torch.stack([aligner.align(row)[0][-1] for row in rows]))
        assert torch.equal(known, torch.stack([aligner.align(row)[1][-1] for row in rows]))


def test_without_lexicon_nothing_is_known() -> None:
    aligner = VadAligner(None, byte_level([]))
    state = aligner.start([[1, 2], [3]], CPU)
    for _ in range(2):
        vad, known = state.step(torch.tensor([1, 2]))
        assert vad.shape == (2, 3) and not vad.any() and known.tolist() == [False, False]
        state.reorder(torch.tensor([1, 1]))


@pytest.mark.parametrize("table", [{}, {"still life": (0.1, 0.2, 0.3)}], ids=["no words", "phrases only"])
def test_lexicon_without_single_words(table: dict) -> None:
    aligner = VadAligner(Lexicon(table), byte_level([]))
    assert assert_steps_equal_align(aligner, [aligner.tokenizer("still life")["input_ids"]]) == 0


@pytest.fixture(scope="module")
def real(shared_data: Path) -> VadAligner:
    lexicon = read_lexicon(shared_data / "vad" / "GlasgowNorms.csv")
    return VadAligner(lexicon, GPT2Tokenizer.from_pretrained(shared_data / "gpt2_bpe"))


def test_steps_equal_align_for_random_gpt2_ids(real: VadAligner) -> None:
    """More than half of the ids are pieces that may continue a word, among them parts of characters."""
    rng = random.Random(3)
    vocabulary = range(len(real.tokenizer) + 2)
    inner = sorted(real._inner, key=lambda i: (len(real._pieces[i]), i))[:4000]
    rows = [[rng.choice(inner if rng.random() < 0.6 else vocabulary) for _ in range(25)] for _ in range(500)]
    assert assert_steps_equal_align(real, rows) > 500


def test_steps_equal_align_for_real_explanations(real: VadAligner, shared_data: Path) -> None:
    records = json.loads((shared_data / "paintings" / "artEmisX_train.json").read_text(encoding="utf-8"))
    texts = [f" {text}" for record in records.values() for text in record["explanations"]]
    texts += [text.title().replace("'", "’").replace(" ", "—", 1) for text in texts[:100]] + TEXTS
    assert assert_steps_equal_align(real, [real.tokenizer(text)["input_ids"] for text in texts]) > 2000


@pytest.mark.parametrize("mark", ["’", "—", "é", "\u0301", "空", "😀"])
def test_characters_split_into_gpt2_pieces(real: VadAligner, mark: str) -> None:
    """Every split of a character into GPT-2 pieces, inside and after a word."""
    single = {piece: i for i, piece in real._pieces.items()}
    encoded = mark.encode()
    ways = [
        [encoded[:i], encoded[i:j], encoded[j:]] for i in range(1, len(encoded)) for j in range(i, len(encoded) + 1)
    ]
    rows = []
    for way in ways:
        for before, after in ((" sad", "s"), (" sad", " tree"), (" tree", "s"), ("tree", "")):
            parts = [before.encode(), *way, after.encode()]
            if all(part in single for part in parts if part):
                rows.append([single[part] for part in parts if part])
    assert rows
    assert_steps_equal_align(real, rows)
