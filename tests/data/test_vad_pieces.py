"""Values of single BPE pieces as in SEVLM, for whole texts and during generation."""

from __future__ import annotations

import random
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import pytest
import torch
from transformers import GPT2Tokenizer

from data.vad.align import VadAligner
from data.vad.lexicon import Lexicon
from data.vad.lexicon_files import read_lexicon
from data.vad.pieces import PieceAligner
from tests.helpers.words import ENTRIES, LEXICON, byte_level, random_rows, write_gpt2_like

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> GPT2Tokenizer:
    return write_gpt2_like(tmp_path_factory.mktemp("bpe"))


@pytest.fixture(scope="module")
def aligner(tokenizer: GPT2Tokenizer) -> PieceAligner:
    return PieceAligner(LEXICON, tokenizer)


def pieces_of(text: str, merges: list[str], lexicon: Lexicon = LEXICON) -> dict[str, tuple[float, ...] | None]:
    """Return the values by piece, None for unknown ones; `merges` makes the pieces."""
    tokenizer = byte_level([tuple(pair.split()) for pair in merges])
    ids = tokenizer(text)["input_ids"]
    vad, known, target = PieceAligner(lexicon, tokenizer).align(ids)
    assert torch.equal(known, target)
    shown = zip(tokenizer.convert_ids_to_tokens(ids), vad.tolist(), known.tolist(), strict=True)
    return {piece: tuple(values) if flag else None for piece, values, flag in shown}


def test_split_words_have_the_values_of_their_pieces():
    """A piece of "yellows" is the word "yell", and one of "pastel" is "past"."""
    merges = ["y e", "l l", "ye ll", "o w", "ow s", "p a", "s t", "pa st", "e l"]
    found = pieces_of("yellows pastel", merges)
    assert found["yell"] == LEXICON.lookup("yell") and found["ows"] is None
    assert found["past"] == LEXICON.lookup("past") and found["el"] is None
    assert LEXICON.lookup("yellows") == LEXICON.lookup("yellow") != LEXICON.lookup("yell")


def test_lookup_ignores_leading_space_but_not_case():
    found = pieces_of("sad sad Sad", ["a d", "s ad", "S ad", "Ġ sad", "Ġ Sad"])
    assert found == {"sad": LEXICON.lookup("sad"), "Ġsad": LEXICON.lookup("sad"), "ĠSad": None}
    assert LEXICON.lookup("Sad") == LEXICON.lookup("sad"), "Lexicon.lookup ignores case"


def test_lemma_is_used_for_pieces_without_entry():
    lexicon = Lexicon({"tree": (0.25, 0.5, 0.75), "calm": (1.0, 0.5, 0.25), "calming": (-1.0, 0.5, 0.25)})
    merges = ["t r", "e e", "tr ee", "tree s", "c a", "l m", "ca lm", "i n", "in g", "calm ing", "e d", "calm ed"]
    found = pieces_of("trees,calming,calmed", merges, lexicon)
    assert found["trees"] == lexicon.lookup("tree")
    assert found["calming"] == (-1.0, 0.5, 0.25), "the entry comes before the lemma"
    assert found["calmed"] == (1.0, 0.5, 0.25)


def test_neutral_pieces_are_unknown():
    merges = ["m e", "me h"]
    assert pieces_of("meh", merges) == {"meh": None} and LEXICON.lookup("meh") == (0, 0, 0)
    half = Lexicon({"meh": (0.0, 0.0, 0.5)})
    assert pieces_of("meh", merges, half) == {"meh": (0.0, 0.0, 0.5)}, "one value other than zero is enough"


def test_special_and_added_tokens_are_unknown(tokenizer: GPT2Tokenizer):
    added = GPT2Tokenizer.from_pretrained(tokenizer.name_or_path)
    added.add_tokens(["sad", "<pad>"])
    aligner = PieceAligner(LEXICON, added)
    apart = [added.eos_token_id, *added.convert_tokens_to_ids(["sad", "<pad>"]), len(added), len(added) + 99]
    vad, known, _ = aligner.align(apart)
    assert not known.any() and not vad.any()
    assert "sad" in LEXICON and len({*apart}) == 5


def test_pieces_with_incomplete_characters_are_unknown():
    lexicon = Lexicon({"é": (0.5, 0.5, 0.5)})
    assert pieces_of("é", ["Ã ©"], lexicon) == {"Ã©": (0.5, 0.5, 0.5)}
    assert pieces_of("é", [], lexicon) == {"Ã": None, "©": None}


def test_every_piece_equals_a_lookup_of_its_text(tokenizer: GPT2Tokenizer, aligner: PieceAligner):
    seen = {True: 0, False: 0}
    for row in random_rows(VadAligner(LEXICON, tokenizer), count=60):
        vad, known, target = aligner.align(row)
        assert vad.shape == (len(row), 3) and (vad.dtype, known.dtype) == (torch.float32, torch.bool)
        for t, index in enumerate(row):
            text = tokenizer.decode([index]) if index < len(tokenizer) and index != tokenizer.eos_token_id else ""
            text = text.removeprefix(" ")
            expected = LEXICON.lookup(text) if text and text == text.lower() else None
            known_here = expected is not None and any(expected)
            assert bool(known[t]) == bool(target[t]) == known_here, text
            assert torch.equal(vad[t], torch.tensor(expected if known_here else (0.0, 0.0, 0.0))), text
            seen[known_here] += 1
    assert min(seen.values()) > 100


def test_targets_begin_at_first_target(tokenizer: GPT2Tokenizer):
    ids = random.Random(0).choices(tokenizer(" ".join(ENTRIES))["input_ids"], k=50)
    everywhere, late = PieceAligner(LEXICON, tokenizer), PieceAligner(LEXICON, tokenizer, first_target=6)
    vad, known, target = late.align(ids)
    assert torch.equal(vad, everywhere.align(ids)[0]) and torch.equal(known, everywhere.align(ids)[1])
    assert not target[:6].any() and torch.equal(target[6:], known[6:])
    assert known[:6].any() and target.any()
    assert not late.align(ids[:4])[2].any()


def test_steps_equal_whole_texts(tokenizer: GPT2Tokenizer, aligner: PieceAligner):
    rng = random.Random(1)
    rows = [rng.choices(range(len(tokenizer) + 2), k=20) for _ in range(30)]
    state = aligner.start([row[:5] for row in rows], CPU)
    known_pieces = 0
    for t in range(5, 20):
        if t % 4 == 0:
            order = [rng.randrange(30) for _ in rows]
            state.reorder(torch.tensor(order))
            rows = [[*rows[i][:t], *rows[r][t:]] for r, i in enumerate(order)]
        vad, known = state.step(torch.tensor([row[t] for row in rows]))
        assert (vad.dtype, known.dtype) == (torch.float32, torch.bool)
        whole = [aligner.align(row[: t + 1]) for row in rows]
        assert torch.equal(vad, torch.stack([values[t] for values, _, _ in whole]))
        assert torch.equal(known, torch.stack([flags[t] for _, flags, _ in whole]))
        known_pieces += int(known.sum())
    assert known_pieces > 20


def test_state_is_on_the_given_device(aligner: PieceAligner):
    vad, known = aligner.start([[1]], torch.device("meta")).step(torch.zeros(4, dtype=torch.int64, device="meta"))
    assert vad.device.type == known.device.type == "meta" and vad.shape == (4, 3)
    assert aligner.values.device.type == "cpu"


def test_tensors_and_empty_texts(aligner: PieceAligner):
    ids = list(range(60))
    assert all(torch.equal(a, b) for a, b in zip(aligner.align(ids), aligner.align(torch.tensor(ids)), strict=True))
    assert [tuple(part.shape) for part in aligner.align([])] == [(0, 3), (0,), (0,)]


def test_without_lexicon_all_pieces_are_unknown(tokenizer: GPT2Tokenizer):
    aligner = PieceAligner(None, tokenizer)
    vad, known, target = aligner.align([1, 2, 3])
    assert vad.shape == (3, 3) and not vad.any() and not known.any() and not target.any()
    vad, known = aligner.start([[1], [2]], CPU).step(torch.tensor([4, 5]))
    assert vad.shape == (2, 3) and not known.any()


def test_aligner_can_be_pickled(aligner: PieceAligner):
    copy = ForkingPickler.loads(ForkingPickler.dumps(aligner))
    ids = list(range(len(aligner.values)))
    assert all(torch.equal(a, b) for a, b in zip(copy.align(ids), aligner.align(ids), strict=True))


@pytest.fixture(scope="module")
def gpt2(shared_data: Path) -> GPT2Tokenizer:
    return GPT2Tokenizer.from_pretrained(shared_data / "gpt2_bpe")


def test_real_pieces(gpt2: GPT2Tokenizer, shared_data: Path):
    lexicon = read_lexicon(shared_data / "vad" / "GlasgowNorms.csv")
    text = " the emotion is fear because Happy trees are yellow yellows, a dreary brushstroke"
    ids = [gpt2.eos_token_id, *gpt2(text).input_ids, gpt2.eos_token_id]
    pieces = [gpt2.decode([i]) for i in ids]
    vad, known, target = PieceAligner(lexicon, gpt2, first_target=6).align(ids)
    assert [piece for piece, flag in zip(pieces, known.tolist(), strict=True) if flag] == [
        " emotion", " fear", " trees", " yellow", " brush", "stroke",
    ]  # fmt: skip
    assert torch.equal(vad[pieces.index(" trees")], torch.tensor(lexicon.table["tree"]))
    assert lexicon.lookup("yellows") and lexicon.lookup("dreary"), "these words are split"
    assert torch.equal(target, known & (torch.arange(len(ids)) >= 6))
