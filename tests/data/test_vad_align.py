"""Alignment of the values of words with BPE pieces, which does not depend on later pieces."""

from __future__ import annotations

import json
import random
import re
import unicodedata
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import GPT2Tokenizer, PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

from common.errors import UserError
from data.vad.align import VadAligner
from data.vad.lexicon import Lexicon
from data.vad.lexicon_files import read_lexicon
from tests.helpers.words import EOS, LEXICON, byte_level, mixed, random_rows, random_text, write_gpt2_like


@pytest.fixture(scope="module")
def gpt2_like(tmp_path_factory: pytest.TempPathFactory) -> GPT2Tokenizer:
    return write_gpt2_like(tmp_path_factory.mktemp("bpe"))


@pytest.fixture(scope="module", params=["gpt2_like", "bytes", "mixed"])
def aligner(request: pytest.FixtureRequest) -> VadAligner:
    if request.param == "gpt2_like":
        return VadAligner(LEXICON, request.getfixturevalue("gpt2_like"))
    return VadAligner(LEXICON, mixed() if request.param == "mixed" else byte_level([]))


def test_values_do_not_depend_on_later_pieces(aligner: VadAligner) -> None:
    known_pieces = 0
    for row in random_rows(aligner, count=40):
        vad, known, target = aligner.align(row)
        assert vad.shape == (len(row), 3) and known.shape == target.shape == (len(row),)
        assert (vad.dtype, known.dtype, target.dtype) == (torch.float32, torch.bool, torch.bool)
        assert not vad[~known].any() and not (target & ~known).any()
        for p in range(1, len(row) + 1):
            before_vad, before_known, _ = aligner.align(row[:p])
            assert torch.equal(before_vad, vad[:p]) and torch.equal(before_known, known[:p])
        known_pieces += int(known.sum())
    assert known_pieces > 100  # otherwise the test would pass with no known piece


def test_values_equal_a_lookup_of_the_decoded_text(gpt2_like: GPT2Tokenizer) -> None:
    """Decode the text up to each piece and look up the letters at its end."""
    aligner, rng = VadAligner(LEXICON, gpt2_like), random.Random(2)
    alphabet = {char: byte for byte, char in bytes_to_unicode().items()}
    for _ in range(60):
        row = gpt2_like(random_text(rng).replace(EOS, ""))["input_ids"]
        vad, known, _ = aligner.align(row)
        text = ""
        for t in range(len(row)):
            pieces = gpt2_like.convert_ids_to_tokens(row[: t + 1])
            before, text = text, b"".join(bytes(alphabet[c] for c in p) for p in pieces).decode(errors="ignore")
            if not re.fullmatch(r"[ \w]+", text) or re.search(r"[\d_\u0301]", text):
                break  # this check covers letters and spaces only
            word = re.search(r"[^\W\d_]*$", text)[0] if len(text) > len(before) else ""
            expected = LEXICON.lookup(word)
            assert bool(known[t]) == (expected is not None), (text, word)
            assert torch.equal(vad[t], torch.tensor(expected or (0.0, 0.0, 0.0))), (text, word)


def known_and_targets(text: str, tokenizer: PreTrainedTokenizerFast) -> tuple[list[str], list[str]]:
    """Return the known pieces and the targets as "text up to the piece=entry with its values"."""
    aligner = VadAligner(LEXICON, tokenizer)
    ids = tokenizer(text)["input_ids"]
    vad, known, target = aligner.align(ids)
    entries = ((unicodedata.normalize("NFC", word), values) for word, values in LEXICON.table.items())
    names = {torch.tensor(values, dtype=torch.float32): word for word, values in entries}

    def shown(flags: torch.Tensor) -> list[str]:
        found = []
        for t in flags.nonzero().flatten().tolist():
            entry = next(word for values, word in names.items() if torch.equal(values, vad[t]))
            found.append(f"{tokenizer.decode(ids[: t + 1])}={entry}")
        return found

    return shown(known), shown(target)


@pytest.mark.parametrize(
    ("text", "known", "targets"),
    [
        ("pastel", ["past=past"], []),
        ("yellows", ["yell=yell", "yellow=yellow", "yellows=yellow"], ["yellows=yellow"]),
        ("Meh.", ["Meh=meh"], ["Meh=meh"]),
        ("sad, so sad", ["sad=sad", "sad, so sad=sad"], ["sad=sad", "sad, so sad=sad"]),
        ("tree's", ["t=t", "tree=tree"], ["tree=tree"]),
        ("tree’s", ["t=t", "tree=tree"], ["tree=tree"]),
        ("trees'", ["t=t", "tree=tree", "trees=tree"], ["trees=tree"]),
        ("'sad'", ["'sad=sad"], ["'sad=sad"]),
        ("won't", ["won=won"], []),
        ("won’t", ["won=won"], []),
        ("t-tree", ["t=t", "t-t=t", "t-tree=tree"], ["t=t", "t-tree=tree"]),
        ("blue-green", ["blue=blue", "blue-green=green"], ["blue=blue", "blue-green=green"]),
        ("yo-yo", ["yo=yo", "yo-yo=yo-yo"], ["yo-yo=yo-yo"]),
        ("yo--yo", ["yo=yo", "yo--yo=yo"], ["yo=yo", "yo--yo=yo"]),
        ("yo - yo", ["yo=yo", "yo - yo=yo"], ["yo=yo", "yo - yo=yo"]),
        ("well-being", ["well-being=well-being"], ["well-being=well-being"]),
        ("mother-in-law", ["mother=mother", "mother-in-law=mother-in-law"], ["mother-in-law=mother-in-law"]),
        ("o'clock", ["o'clock=o'clock"], ["o'clock=o'clock"]),
        ("rock'n'roll", ["rock=rock", "rock'n'roll=roll"], ["rock=rock", "rock'n'roll=roll"]),
        ("3sad4", ["3sad=sad"], ["3sad=sad"]),
        ("sad_sad", ["sad=sad", "sad_sad=sad"], ["sad=sad", "sad_sad=sad"]),
        ("naïve", ["naïve=naïve"], ["naïve=naïve"]),
        ("nai\u0308ve", ["nai\u0308ve=naïve"], ["nai\u0308ve=naïve"]),
        ("sad\u0301", ["sad=sad"], []),  # an accent continues the word
        ("空", ["空=空"], ["空=空"]),
        (f"sad{EOS}sad", ["sad=sad", f"sad{EOS}sad=sad"], ["sad=sad", f"sad{EOS}sad=sad"]),
        (f"sa{EOS}d", [], []),
        ("😀 ... 42", [], []),
    ],
)
def test_rules_byte_by_byte(text: str, known: list[str], targets: list[str]) -> None:
    assert known_and_targets(text, byte_level([])) == (known, targets)


def test_piece_that_ends_a_word_and_continues() -> None:
    tokenizer = byte_level([("y", "."), ("y.", "Ġ"), ("d", "Ġ"), ("dĠ", "b")], use_regex=False)
    assert tokenizer.convert_ids_to_tokens(tokenizer("happy. ")["input_ids"])[-1] == "y.Ġ"
    assert known_and_targets("happy. sad", tokenizer) == (
        ["happy. =happy", "happy. sad=sad"],
        ["happy. =happy", "happy. sad=sad"],
    )
    assert known_and_targets("sad blue", tokenizer) == (
        ["sad blue=blue"],
        ["sad blue=blue"],
    )  # the last word of a piece is used


def test_split_words_have_their_values_at_the_last_piece(gpt2_like: GPT2Tokenizer) -> None:
    aligner, split = VadAligner(LEXICON, gpt2_like), 0
    for word, values in LEXICON.table.items():
        ids = gpt2_like(f" {word} ")["input_ids"]
        while gpt2_like.decode(ids).strip() == word and gpt2_like.decode(ids[:-1]).strip() == word:
            ids = ids[:-1]
        vad, known, target = aligner.align(ids)
        assert known[-1] and target[-1] and torch.equal(vad[-1], torch.tensor(values, dtype=torch.float32)), word
        split += len(ids) > 1
    assert split > 5


def test_neutral_words_are_known() -> None:
    aligner = VadAligner(LEXICON, byte_level([]))
    for text, flag in ((" meh", True), (" mex", False)):
        vad, known, target = aligner.align(aligner.tokenizer(text)["input_ids"])
        assert not vad.any()
        assert bool(known[-1]) == bool(target[-1]) == flag


def test_without_lexicon_all_pieces_are_unknown() -> None:
    aligner = VadAligner(None, byte_level([]))
    vad, known, target = aligner.align([1, 2, 3])
    assert vad.shape == (3, 3) and not vad.any() and not known.any() and not target.any()
    assert aligner.coverage(["a sad tree"])["lexicon_words"] == 0


def test_empty_input() -> None:
    aligner = VadAligner(LEXICON, byte_level([]))
    assert [tuple(part.shape) for part in aligner.align([])] == [(0, 3), (0,), (0,)]


def test_aligner_can_be_pickled(gpt2_like: GPT2Tokenizer) -> None:
    aligner = VadAligner(LEXICON, gpt2_like)
    ids = gpt2_like(" a calming blue tree")["input_ids"]
    aligner.align(ids)
    copy = ForkingPickler.loads(ForkingPickler.dumps(aligner))
    for one, other in zip(copy.align(torch.tensor(ids)), aligner.align(ids), strict=True):
        assert torch.equal(one, other)


def test_tokenizer_of_another_kind_is_refused() -> None:
    words = Tokenizer(models.WordLevel({"▁sad": 0, "[UNK]": 1}, unk_token="[UNK]"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]")
    with pytest.raises(UserError, match=r"neither a byte-level BPE .* \(its decoder is missing\).*vad_lexicon"):
        VadAligner(LEXICON, tokenizer)


def test_coverage_counts_words_once() -> None:
    tokenizer = byte_level([("p", "a"), ("s", "t"), ("pa", "st"), ("s", "a"), ("sa", "d"), ("Ġ", "sad"), ("s", "h")])
    found = VadAligner(LEXICON, tokenizer).coverage(["sad pasts, blue", "won't see"])
    # "pasts": "past|s" has its values at one piece; "blue": single bytes, no values; "won't" is not "won".
    assert found == {"texts": 2, "words": 5, "lexicon_words": 3, "split_words": 2, "own": 1.0} | {
        f"pieces_{way}": pytest.approx(share) for way, share in (("own", 2 / 3), ("other", 0), ("none", 1 / 3))
    }


def test_coverage_of_nfc_and_nfd_words() -> None:
    found = VadAligner(LEXICON, byte_level([])).coverage(["naïve nai\u0308ve", "a naïve's nai\u0308ve-sad"])
    assert (found["words"], found["lexicon_words"], found["own"]) == (5, 2, 1.0)


@pytest.fixture(scope="module")
def real(shared_data: Path) -> VadAligner:
    lexicon = read_lexicon(shared_data / "vad" / "GlasgowNorms.csv")
    return VadAligner(lexicon, GPT2Tokenizer.from_pretrained(shared_data / "gpt2_bpe"))


@pytest.mark.parametrize(
    ("text", "pieces", "entry"),
    [
        (" yellows", ["Ġyell", "ows"], "yellow"),
        (" serene", ["Ġse", "rene"], "serene"),
        (" dreary", ["Ġd", "re", "ary"], "dreary"),
        (" petals", ["Ġpet", "als"], "petal"),
        (" Peaceful", ["ĠPeace", "ful"], "peaceful"),
    ],
)
def test_real_gpt2_pieces(real: VadAligner, text: str, pieces: list[str], entry: str) -> None:
    ids = real.tokenizer(text)["input_ids"]
    assert real.tokenizer.convert_ids_to_tokens(ids) == pieces
    vad, known, target = real.align(ids)
    assert known[-1] and target[-1] and not target[:-1].any()
    assert torch.equal(vad[-1], torch.tensor(real.lexicon.table[entry]))


def test_real_gpt2_pieces_of_pastel_are_not_past(real: VadAligner) -> None:
    lexicon = Lexicon({"past": (0.1, 0.2, 0.3), "somber": (-0.5, -0.25, 0.0)})
    aligner = VadAligner(lexicon, real.tokenizer)
    vad, known, target = aligner.align(real.tokenizer(" pastel somber past")["input_ids"])
    assert known.tolist() == [True, False, False, True, True]  # past|el som|ber past
    assert target.tolist() == [False, False, False, True, True]
    assert torch.equal(vad[3], torch.tensor(lexicon.table["somber"]))


def test_coverage_of_real_explanations(real: VadAligner, shared_data: Path) -> None:
    records = json.loads((shared_data / "paintings" / "artEmisX_train.json").read_text(encoding="utf-8"))
    found = real.coverage(text for record in records.values() for text in record["explanations"])
    assert found["lexicon_words"] > 2000 and found["split_words"] > 50
    assert found["own"] == 1.0
    assert found["pieces_own"] < 0.98 and found["pieces_other"] > 0
    assert found["pieces_own"] + found["pieces_other"] + found["pieces_none"] == pytest.approx(1)
