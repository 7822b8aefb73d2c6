"""Token ids as sentencepiece gives them, pixels as CLIP's published processing gives them, and refused files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing

from common.errors import UserError
from model.vle.processor import VLEProcessor
from model.vle.sentencepiece import build_tokenizer, read_sentencepiece
from tests.helpers.vle import CHARACTERS, CONTROL, NORMAL, UNKNOWN, spm_bytes, write_processor, write_spm

# Trained by sentencepiece 0.2.3 (unigram, 97 pieces) with normalisation rules of its own, among them those for spaces.
TRAINED = Path(__file__).with_name("trained_spm.model")
# Ids of the DebertaV2Tokenizer of transformers 4.26.0 on it, without [CLS] at the start and [SEP] at the end.
# fmt: off
IDS = [
    ("", []),
    ("   ", []),
    (" What is the\tcolor\nof the house? ", [4, 80, 31, 85, 18, 6, 39, 13, 10, 45, 30, 6, 35, 23]),
    ("e\ufb03cient of\ufb01cer", [4, 11, 42, 49, 15, 19, 29, 42, 25]),
    ("\uff21\uff11\uff12 \uff13", [4, 75, 65, 66, 4, 3]),
    ("calm\u2026", [39, 52, 51, 16, 83]),
    ("\xbd of the bread", [4, 65, 3, 66, 30, 6, 56, 12, 27, 14]),
    ("no\xa0break\xa0space", [4, 15, 13, 56, 12, 27, 33, 17, 3, 27, 93, 11]),
    ("zero\u200bwidth", [4, 3, 25, 13, 4, 53, 50, 14, 19, 31]),
    ("red\u3000sun", [4, 12, 14, 17, 46]),
    ("isn\u2019t", [18, 15, 22, 19]),
    ("the \u263a\u263a sun \U0001f642", [6, 4, 3, 17, 46, 4, 3]),
    ("[SEP] typed [MASK] in [CLS]text", [2, 4, 19, 8, 3, 11, 14, 97, 4, 86, 1, 4, 19, 11, 3, 19]),
    ("\u2581Is\u2581Casey[SEP]\u2581No\u2581,", [4, 76, 5, 4, 82, 27, 84, 8, 2, 4, 77, 13, 4, 7]),
    ("e\u0301 \xe9", [4, 3, 4, 3]),
    ("\u2163 \u2122", [4, 76, 3, 4, 79, 3]),
    ("\u65e5\u672c", [4, 3]),
    ("a  house", [9, 35]),
    ("[UNK]", [3]),
    (". . ...", [4, 16, 4, 16, 4, 16, 83]),
    ("\xdf", [4, 3]),
    ("The  [SEP]  boat [PAD]end", [4, 79, 26, 2, 36, 0, 4, 11, 20]),
]
# fmt: on
MEAN, STD = np.array([0.48145466, 0.4578275, 0.40821073]), np.array([0.26862954, 0.26130258, 0.27577711])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_processor(tmp_path / "vle")


@pytest.fixture
def processor(folder: Path) -> VLEProcessor:
    return VLEProcessor.from_pretrained(folder)


def picture(width: int, height: int, mode: str = "RGB", seed: int = 0) -> Image.Image:
    """Return smooth random colours, so that bicubic filters matter."""
    bands = len(Image.new(mode, (1, 1)).getbands())
    pixels = np.random.default_rng(seed).integers(0, 256, (7, 9, bands), dtype=np.uint8)
    return Image.fromarray(pixels.squeeze()).convert(mode).resize((width, height), Image.Resampling.BICUBIC)


@pytest.mark.parametrize(("text", "ids"), IDS, ids=[ascii(text) for text, _ in IDS])
def test_ids_are_those_of_sentencepiece(tmp_path: Path, text: str, ids: list[int]) -> None:
    shutil.copy(TRAINED, tmp_path / "spm.model")
    assert build_tokenizer(tmp_path / "spm.model").encode(text).ids == [1, *ids, 2]


def test_reads_pieces_scores_and_rules() -> None:
    model = read_sentencepiece(TRAINED)
    assert [text for text, _ in model.pieces[:5]] == ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "▁"]
    assert (len(model.pieces), model.unknown) == (97, 3)
    assert model.pieces[0][1] == 0 and all(score < 0 for _, score in model.pieces[4:])
    assert len(model.charsmap) > 1000


def test_special_tokens(processor: VLEProcessor) -> None:
    tokenizer = processor.tokenizer
    ids = tokenizer.convert_tokens_to_ids(["[PAD]", "[CLS]", "[SEP]", "[UNK]"])
    assert ids == [0, 1, 2, 3]
    assert tokenizer.mask_token_id == len(tokenizer) - 1
    assert processor("[MASK]")["input_ids"] == [1, tokenizer.mask_token_id, 2]


def test_mask_follows_the_pieces_without_added_tokens(folder: Path) -> None:
    expected = VLEProcessor.from_pretrained(folder).tokenizer.mask_token_id
    (folder / "added_tokens.json").unlink()
    assert VLEProcessor.from_pretrained(folder).tokenizer.mask_token_id == expected


def test_pairs_padding_and_truncation(processor: VLEProcessor) -> None:
    one, two = processor("the sky")["input_ids"], processor("a small boat")["input_ids"]
    pair = processor("the sky", text_pair="a small boat")
    assert pair["input_ids"] == one + two[1:]
    assert pair["token_type_ids"] == [0] * len(one) + [1] * (len(two) - 1)
    batch = processor(text=["the sky", "a small boat"], padding="max_length", max_length=7, return_tensors="pt")
    assert batch["input_ids"].tolist() == [one + [0] * (7 - len(one)), two + [0] * (7 - len(two))]
    assert batch["attention_mask"].sum(dim=1).tolist() == [len(one), len(two)]
    cut = processor("a small boat " * 20, truncation=True, max_length=7)["input_ids"]
    assert len(cut) == 7 and cut[-1] == 2 and cut[:4] == two[:4]


def test_saved_processor_is_the_same(folder: Path, tmp_path: Path) -> None:
    shutil.copy(TRAINED, folder / "spm.model")
    (folder / "added_tokens.json").write_text('{"[MASK]": 97}')
    before = VLEProcessor.from_pretrained(folder, alpha="white")
    before(text=["a", "the house"], padding="max_length", truncation=True, max_length=3)  # a state to be forgotten
    before.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved" / "spm.model").exists()
    after = VLEProcessor.from_pretrained(tmp_path / "saved")
    assert after.alpha == "white"
    for text, ids in IDS:
        assert after(text)["input_ids"] == [1, *ids, 2]
    assert after.decode(after("the house")["input_ids"], skip_special_tokens=True) == "the house"
    image = picture(50, 40)
    same = [item(images=image, return_tensors="pt")["pixel_values"] for item in (before, after)]
    assert torch.equal(*same)


def test_a_template_of_the_file_cannot_multiply_texts(processor: VLEProcessor, tmp_path: Path) -> None:
    processor.save_pretrained(tmp_path)
    saved = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    saved.post_processor = TemplateProcessing(single=" ".join(["$A"] * 5000), special_tokens=[])
    saved.save(str(tmp_path / "tokenizer.json"))
    found = VLEProcessor.from_pretrained(tmp_path)
    assert found("a boat")["input_ids"] == processor("a boat")["input_ids"]
    assert found("a boat", text_pair="a storm")["input_ids"] == processor("a boat", text_pair="a storm")["input_ids"]


def clip_pixels(image: Image.Image, size: int) -> np.ndarray:
    """CLIP's processing, written out: (3, size, size)."""
    width, height = image.size
    short = min(width, height)
    resized = image.resize((int(size * width / short), int(size * height / short)), Image.Resampling.BICUBIC)
    left, top = (resized.width - size) // 2, (resized.height - size) // 2
    pixels = np.asarray(resized.crop((left, top, left + size, top + size))) / 255
    return ((pixels - MEAN) / STD).transpose(2, 0, 1)


@pytest.mark.parametrize("size", [(32, 32), (61, 40), (40, 61), (33, 97), (20, 11), (300, 199)])
def test_pixels_are_those_of_clip(processor: VLEProcessor, size: tuple[int, int]) -> None:
    image = picture(*size)
    found = processor(images=image, return_tensors="pt")["pixel_values"]
    assert found.shape == (1, 3, 32, 32) and found.dtype == torch.float32
    np.testing.assert_allclose(found[0].numpy(), clip_pixels(image, 32), atol=1e-6)


def test_sizes_as_numbers(folder: Path) -> None:
    path = folder / "preprocessor_config.json"
    settings = json.loads(path.read_text()) | {"size": 24, "crop_size": 24}
    path.write_text(json.dumps(settings))
    image = picture(50, 41)
    found = VLEProcessor.from_pretrained(folder)(images=image, return_tensors="np")["pixel_values"]
    np.testing.assert_allclose(found[0], clip_pixels(image, 24), atol=1e-6)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency(folder: Path, mode: str) -> None:
    colours = Image.new("RGBA", (32, 32), (200, 40, 90, 64))
    image = colours.convert(mode)
    if mode == "P":
        image.info["transparency"] = image.getpixel((0, 0))
    drop, white = (
        VLEProcessor.from_pretrained(folder, alpha=alpha)(images=image, return_tensors="pt")["pixel_values"]
        for alpha in ("drop", "white")
    )
    np.testing.assert_allclose(drop[0].numpy(), clip_pixels(image.convert("RGB"), 32), atol=1e-6)
    assert (white > drop + 0.1).all()
    if mode == "RGBA":
        on_white = [round(value * 64 / 255 + 255 * 191 / 255) for value in (200, 40, 90)]
        np.testing.assert_allclose(
            white[0, :, 5, 5].numpy(), (np.array(on_white) / 255 - MEAN) / STD, atol=1.5 / 255 / STD.min()
        )


def test_paths_and_arrays(processor: VLEProcessor, tmp_path: Path) -> None:
    image = picture(50, 40)
    image.save(tmp_path / "a.png")
    array = np.asarray(image)
    forms = [image, tmp_path / "a.png", str(tmp_path / "a.png"), array, torch.from_numpy(array.copy()).permute(2, 0, 1)]
    found = processor(images=forms, return_tensors="pt")["pixel_values"]
    assert all(torch.equal(found[0], other) for other in found[1:])


def test_wrong_pictures(processor: VLEProcessor, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"missing\.png cannot be read"):
        processor(images=tmp_path / "missing.png")
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(UserError, match=r"text\.png cannot be read"):
        processor(images=str(tmp_path / "text.png"))
    with pytest.raises(UserError, match="not dict"):
        processor(images={"image": 1})
    with pytest.raises(UserError, match="text=, images= or both"):
        processor()
    with pytest.raises(UserError, match="drop, white"):
        VLEProcessor(processor.image_processor, processor.tokenizer, alpha="black")


def test_visible_part(processor: VLEProcessor) -> None:
    assert processor.visible_part(64, 64) == (0, 0, 64, 64)
    assert processor.visible_part(128, 64) == (32, 0, 96, 64)
    assert processor.visible_part(40, 121) == pytest.approx((0, 40, 40, 80), abs=1)
    wide = picture(63, 32)  # not resized: the visible part alone gives the same pixels
    part = processor.visible_part(63, 32)
    whole, cut = (processor(images=image, return_tensors="pt")["pixel_values"] for image in (wide, wide.crop(part)))
    assert torch.equal(whole, cut)
    processor.image_processor.do_center_crop = False
    assert processor.visible_part(128, 64) == (0, 0, 128, 64)


def test_missing_files(folder: Path) -> None:
    (folder / "spm.model").unlink()
    with pytest.raises(UserError, match=r"vle has no spm\.model \(and no tokenizer\.json\)"):
        VLEProcessor.from_pretrained(folder)
    write_spm(folder)
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(UserError, match=r"preprocessor_config\.json is missing"):
        VLEProcessor.from_pretrained(folder)


def test_wrong_settings(folder: Path) -> None:
    (folder / "preprocessor_config.json").write_text('{"size": "big"}')
    with pytest.raises(UserError, match=r"preprocessor_config\.json: wrong settings .*big"):
        VLEProcessor.from_pretrained(folder)


def test_damaged_tokenizer_json(folder: Path) -> None:
    (folder / "spm.model").unlink()
    (folder / "tokenizer.json").write_text('{"version": "1.0"}')
    with pytest.raises(UserError, match=r"tokenizer\.json is damaged"):
        VLEProcessor.from_pretrained(folder)


def test_truncated_models(tmp_path: Path) -> None:
    content, path = TRAINED.read_bytes(), tmp_path / "spm.model"
    for length in range(0, 1500, 7):
        path.write_bytes(content[:length])
        try:
            assert build_tokenizer(path).token_to_id("[UNK]") == 3  # ended between two pieces
        except UserError as error:
            assert "spm.model" in str(error)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"PK\x03\x04 no model", "no sentencepiece model"),
        (spm_bytes([("a", -1.0, NORMAL)]), "no sentencepiece model"),
        (spm_bytes([("[UNK]", 0.0, UNKNOWN)], model_type=2), "not a unigram model"),
        (spm_bytes([("<unk>", 0.0, UNKNOWN), ("[PAD]", 0.0, CONTROL)]), r"has no \[CLS\], \[SEP\], \[UNK\]"),
        (
            spm_bytes([("[UNK]", 0.0, UNKNOWN), *((f"[{n}]", 0.0, CONTROL) for n in ("PAD", "CLS", "SEP"))], b"123"),
            r"spm\.model",
        ),
    ],
)
def test_refused_models(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "spm.model"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        build_tokenizer(path)


def test_added_token_with_another_id(folder: Path) -> None:
    (folder / "added_tokens.json").write_text('{"[MASK]": 128000}')
    with pytest.raises(UserError, match=r"gives \[MASK\] the id 128000"):
        VLEProcessor.from_pretrained(folder)


def test_single_characters_are_pieces(processor: VLEProcessor) -> None:
    assert processor.tokenizer.unk_token_id not in processor(CHARACTERS)["input_ids"]
