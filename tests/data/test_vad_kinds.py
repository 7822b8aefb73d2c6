"""VAD values with the tokenizers of other language models: sentencepiece, WordPiece, and other byte-level BPE."""

from __future__ import annotations

import random

import pytest
import torch
from tokenizers import decoders

from common.errors import UserError
from data.tokenizer import load_tokenizer
from data.vad.align import VadAligner
from data.vad.lexicon import Lexicon
from data.vad.piece_bytes import piece_bytes
from data.vad.pieces import PieceAligner
from tests.helpers.tiny import LEXICON, sentences
from tests.helpers.tokenizer_kinds import KINDS, write_kind

TABLE = LEXICON | {"boat": (0.1, 0.2, 0.3), "tree": (0.4, 0.1, 0.0), "naïve": (0.2, 0.0, -0.2)}
ALPHABET = "abest ortm,.'-’é\u0308ï🌊\n\t<0>▁#1"


@pytest.fixture(scope="module", params=KINDS)
def aligner(request, tmp_path_factory):
    folder = write_kind(tmp_path_factory.mktemp("kind"), request.param)
    return VadAligner(Lexicon(TABLE), load_tokenizer(str(folder)))


def texts(count: int) -> list[str]:
    rng = random.Random(3)
    noise = ["".join(rng.choices(ALPHABET, k=rng.randint(0, 24))) for _ in range(count)]
    return [*noise, *(rng.choice((str.title, str.upper, str))(text) for text in sentences(count))]


def sequences(tokenizer, count: int) -> list[list[int]]:
    """Return encoded texts, and ids drawn at random, special ones and bytes of no character among them."""
    rng = random.Random(5)
    drawn = [rng.choices(range(len(tokenizer)), k=rng.randint(1, 20)) for _ in range(count)]
    return [*([*tokenizer(text, add_special_tokens=False).input_ids] for text in texts(count)), *drawn]


def test_step_by_step_equals_the_whole_text(aligner):
    known_pieces = 0
    for ids in filter(None, sequences(aligner.tokenizer, 60)):
        vad, known, _ = aligner.align(ids)
        for prompt in {1, len(ids) // 2 or 1}:
            state = aligner.start([ids[:prompt]], torch.device("cpu"))
            for i in range(prompt, len(ids)):
                values, flags = state.step(torch.tensor([ids[i]]))
                assert torch.equal(values[0], vad[i]) and bool(flags[0]) == bool(known[i]), (ids, i)
        known_pieces += int(known.sum())
    assert known_pieces > 40


def test_values_do_not_depend_on_later_pieces(aligner):
    for ids in filter(None, sequences(aligner.tokenizer, 40)):
        vad, known, _ = aligner.align(ids)
        for end in range(1, len(ids)):
            prefix = aligner.align(ids[:end])
            assert torch.equal(prefix[0], vad[:end]) and torch.equal(prefix[1], known[:end])


def test_every_word_of_the_lexicon_ends_with_its_values(aligner):
    for text in sentences(20):
        ids = aligner.tokenizer(f" {text}", add_special_tokens=False).input_ids
        vad, known, target = aligner.align(ids)
        expected = [TABLE[word] for word in text.split() if word in TABLE]
        torch.testing.assert_close(vad[target], torch.tensor(expected).view(-1, 3))
        assert (target & ~known).sum() == 0
    assert aligner.coverage(sentences(20))["own"] == 1.0


def test_bytes_of_the_pieces_are_the_text(aligner):
    pieces, tokenizer = piece_bytes(aligner.tokenizer), aligner.tokenizer
    for text in sentences(10):
        ids = tokenizer(text, add_special_tokens=False).input_ids
        joined = b"".join(pieces[i] for i in ids).decode()
        assert joined.strip().replace(" ,", ",") == text.replace(" ,", ",")
    assert not pieces.keys() & set(tokenizer.added_tokens_decoder), "special tokens have no bytes"


def test_characters_without_piece_are_their_bytes(tmp_path):
    tokenizer = load_tokenizer(str(write_kind(tmp_path, "sentencepiece BPE")))
    pieces = piece_bytes(tokenizer)
    assert pieces[tokenizer.convert_tokens_to_ids("<0x0A>")] == b"\n"
    ids = tokenizer("🌊é", add_special_tokens=False).input_ids
    assert b"".join(pieces[i] for i in ids) == " 🌊é".encode()


def test_word_of_several_bytes_is_found(tmp_path):
    """ "naïve" has no piece for ï in these: bytes, or a letter without its accent."""
    lexicon = Lexicon({"naïve": (0.2, 0.0, -0.2)})
    for kind in ("byte level", "sentencepiece BPE"):
        aligner = VadAligner(lexicon, load_tokenizer(str(write_kind(tmp_path / kind, kind))))
        vad, _, target = aligner.align(aligner.tokenizer(" a naïve boat", add_special_tokens=False).input_ids)
        assert target.sum() == 1 and torch.equal(vad[target], torch.tensor([lexicon.table["nai\u0308ve"]]))


def test_upper_case_and_lower_case_are_one_word(aligner):
    tokenizer, seen = aligner.tokenizer, 0
    for text in (" CALM", " Calm", " calm"):
        ids = tokenizer(text, add_special_tokens=False).input_ids
        if tokenizer.unk_token_id not in ids:  # the unigram vocabulary has no capital letters
            vad, _, target = aligner.align(ids)
            assert torch.equal(vad[target], torch.tensor([TABLE["calm"]]))
            seen += 1
    assert seen in (1, 3)


def test_single_pieces_are_looked_up_with_every_kind(aligner):
    tokenizer = aligner.tokenizer
    pieces = PieceAligner(aligner.lexicon, tokenizer)
    ids = tokenizer(" calm", add_special_tokens=False).input_ids
    vad, known, _ = pieces.align(ids)
    assert len(ids) > 1 or (known.tolist() == [True] and torch.equal(vad[0], torch.tensor(TABLE["calm"])))


@pytest.mark.parametrize("decoder", [decoders.BPEDecoder(), decoders.CTC(), decoders.Fuse()])
def test_other_kinds_are_refused(tmp_path, decoder):
    tokenizer = load_tokenizer(str(write_kind(tmp_path, "byte level")))
    tokenizer.backend_tokenizer.decoder = decoder
    with pytest.raises(UserError, match=r"neither a byte-level BPE nor sentencepiece nor WordPiece.*vad_lexicon"):
        VadAligner(Lexicon(TABLE), tokenizer)
