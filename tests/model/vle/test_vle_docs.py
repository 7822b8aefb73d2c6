"""The code of docs/vle.md runs; its first block is the published code's, with another import."""

from __future__ import annotations

import re

import pytest
from PIL import Image

from common.reading import ROOT
from model.vle.heads import VLEForPreTraining, VLEForVQA
from tests.helpers.vle import tiny_model, write_processor

BLOCKS = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs/vle.md").read_text(encoding="utf-8"), re.M | re.S)


@pytest.mark.parametrize("code", BLOCKS, ids=range(len(BLOCKS)))
def test_code_of_the_page(code: str, tmp_path) -> None:
    for name, kind in (("hfl/vle-base-for-vqa", VLEForVQA), ("hfl/vle-base", VLEForPreTraining)):
        folder = write_processor(tmp_path / name)
        tiny_model(kind).save_pretrained(folder)
        code = code.replace(f'"{name}"', repr(str(folder)))
    Image.new("RGB", (60, 40), "green").save(tmp_path / "dogs.png")
    found: dict = {}
    exec(compile(code.replace('"dogs.png"', repr(str(tmp_path / "dogs.png"))), "docs/vle.md", "exec"), found)
    if "outputs" in found:
        width = 2 * found["model"].config.hidden_size
        assert found["outputs"].pooler_output.shape == (1, width) and found["outputs"].image_embeds.shape[1] == 17
    else:
        assert len(found["answers"]) == 5 and [len(some) for some in found["several"]] == [1, 1]
        assert found["match"]["match"] in ("True", "False") and len(found["regions"]["score"]) == 16
        assert found["regions"]["image"].size == (60, 40)


def test_there_are_two_blocks() -> None:
    assert len(BLOCKS) == 2
