"""A large picture of any mode takes no more memory than its decoder and the result."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.helpers.tiny import ROOT

SIDE = 4000
DECODED = {"gray.png": 1, "transparent.png": 1, "deep.png": 2, "int.tiff": 4, "float.tiff": 4, "la.png": 4,
           "rgba.png": 4, "rgb.jpg": 4, "cmyk.jpg": 4}  # fmt: skip
RESULT, SPARE = 4, 1  # bytes a pixel in Pillow; what strips and the allocator may add
MEASURE = """
import json, sys
from pathlib import Path
from data.images import open_image

def peak():
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024

found = {}
for path in map(Path, sys.argv[1:]):
    Path("/proc/self/clear_refs").write_text("5")
    before = peak()
    picture = open_image(path)
    found[path.name] = (peak() - before) / (picture.width * picture.height)
    del picture
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("large")
    values = np.zeros((SIDE, SIDE), np.uint8)
    values[:, ::7] = 200
    gray = Image.fromarray(values)
    pictures = {
        "gray.png": gray,
        "transparent.png": gray,
        "deep.png": Image.fromarray(values.astype(np.uint16) * 257),
        "int.tiff": Image.fromarray(values.astype(np.int32) * 70_000),
        "float.tiff": Image.fromarray(values.astype(np.float32) / 255),
        "la.png": Image.merge("LA", (gray, gray)),
        "rgba.png": Image.merge("RGBA", (gray, gray, gray, gray)),
        "rgb.jpg": gray.convert("RGB"),
        "cmyk.jpg": gray.convert("CMYK"),
    }
    for name, picture in pictures.items():
        more = {"compression": "tiff_deflate"} if name.endswith("tiff") else {"compress_level": 1}
        picture.save(folder / name, **more, **({"transparency": 0} if name.startswith("trans") else {}))
    return [str(folder / name) for name in pictures]


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc to measure memory")
def test_no_copies_of_a_large_picture(files: list[str]) -> None:
    done = subprocess.run([sys.executable, "-c", MEASURE, *files], cwd=ROOT, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert {Path(file).name for file in files} == {*found} == {*DECODED}
    too_much = {name: used for name, used in found.items() if used > DECODED[name] + RESULT + SPARE}
    assert not too_much
    assert found["rgb.jpg"] < RESULT + SPARE  # not converted at all
