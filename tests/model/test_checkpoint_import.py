"""Shared parts of the importers of published checkpoints: safe reading, layouts, and the command."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from common.errors import UserError
from model.weights.gpt2_layout import is_gpt2_buffer, tied_head
from model.weights.layout import Tensors, weight_and_bias
from model.weights.plain import numpy_numbers, read_object, read_state, read_torch, weights_file
from tests.helpers.tiny import ROOT
from tests.helpers.weight_files import Call, anonymous_memory
from trainer.setup.import_checkpoint import main

# --- plain files ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("zipped", [True, False])
def test_plain_data_and_numpy_scalars_are_read(tmp_path, zipped):
    numbers = {"acc": np.float64(0.625), "res": np.float32(0.5), "step": np.int64(7)}
    content = {"epoch": 3, "state": {"w": torch.arange(6.0).reshape(2, 3), "mask": torch.ones(4, dtype=torch.uint8)}}
    torch.save(content | numbers, tmp_path / "a.tar", _use_new_zipfile_serialization=zipped)
    found = read_torch(tmp_path / "a.tar", allowed=numpy_numbers())
    assert torch.equal(found["state"]["w"], content["state"]["w"]) and found["state"]["mask"].dtype == torch.uint8
    assert {key: found[key] for key in numbers} == numbers and found["epoch"] == 3
    assert "numpy" not in str(torch.serialization.get_safe_globals())  # not allowed for the next file


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("place", ["entry", "nested", "key"])
def test_a_pickled_call_is_refused_and_not_executed(tmp_path, zipped, place):
    marker = tmp_path / "marker"
    evil = Call(os.system, f"touch {marker}")
    content = {"entry": {"a": evil}, "nested": {"a": [{"b": (torch.ones(1), evil)}]}, "key": {(1, evil): 1}}[place]
    torch.save(content, tmp_path / "evil.bin", _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError, match=r"evil\.bin is refused, and nothing in it was run: it holds the name '\w+\."):
        read_torch(tmp_path / "evil.bin")
    assert not marker.exists()


def test_allowing_numpy_scalars_allows_no_other_numpy_function(tmp_path):
    np.save(tmp_path / "there.npy", np.ones(1))
    torch.save({"acc": Call(np.load, str(tmp_path / "there.npy"))}, tmp_path / "evil.tar")
    with pytest.raises(UserError, match="is refused, and nothing in it was run: it holds the name 'numpy"):
        read_torch(tmp_path / "evil.tar", allowed=numpy_numbers())


@pytest.mark.parametrize("zipped", [True, False])
def test_truncated_files_are_refused(tmp_path, zipped):
    path = tmp_path / "a.bin"
    torch.save({"w": torch.randn(40)}, path, _use_new_zipfile_serialization=zipped)
    whole = path.read_bytes()
    for end in range(0, len(whole) - 1, len(whole) // 23):
        path.write_bytes(whole[:end])
        with pytest.raises(UserError, match=r"a\.bin (cannot be read|is refused)"):
            read_torch(path)


def test_safetensors_and_json_are_read_and_other_content_is_refused(tmp_path):
    save_file({"w": torch.ones(2)}, tmp_path / "model.safetensors")
    assert weights_file(tmp_path) == tmp_path / "model.safetensors"
    assert torch.equal(read_state(tmp_path / "model.safetensors")["w"], torch.ones(2))
    (tmp_path / "model.safetensors").write_bytes(b"junk")
    with pytest.raises(UserError, match="cannot be read as safetensors"):
        read_state(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"pytorch_model\.bin is missing"):
        weights_file(tmp_path)
    torch.save({"w": [1, 2]}, tmp_path / "list.bin")
    with pytest.raises(UserError, match=r"list\.bin holds no tensors by name"):
        read_state(tmp_path / "list.bin")
    for text, message in (("[]", "must hold a JSON object"), ("{", "cannot be read as JSON")):
        (tmp_path / "config.json").write_text(text, encoding="utf-8")
        with pytest.raises(UserError, match=message):
            read_object(tmp_path / "config.json")
    with pytest.raises(UserError, match=r"none\.json is missing"):
        read_object(tmp_path / "none.json")


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.uint8, torch.bool, torch.int64])
def test_tensors_of_each_dtype_are_read(tmp_path, zipped, dtype):
    wanted = torch.tensor([[0, 1, 1], [1, 0, 1]]).to(dtype)
    torch.save({"a": torch.randn(3), "w": wanted}, tmp_path / "a.pt", _use_new_zipfile_serialization=zipped)
    found = read_state(tmp_path / "a.pt")["w"]
    assert found.dtype == dtype and torch.equal(found, wanted)


def test_mapped_tensors_use_no_memory_and_never_change_the_file(tmp_path):
    torch.save({"a": torch.zeros(64 << 18), "b": torch.ones(5)}, tmp_path / "a.pt")  # 64 MiB
    before = (tmp_path / "a.pt").read_bytes()
    start = anonymous_memory()
    state = read_state(tmp_path / "a.pt")
    state["b"].zero_()
    assert state["a"].sum() == 0
    assert anonymous_memory() - start < 16 << 20
    assert (tmp_path / "a.pt").read_bytes() == before


# --- layouts ----------------------------------------------------------------------------------------------------------

LAYOUT = weight_and_bias("theirs", "ours", 2, 3)
GOOD = {"theirs.weight": torch.zeros(2, 3), "theirs.bias": torch.zeros(2)}


def test_a_layout_renames_tensors_and_reports_the_first_mismatch():
    assert set(Tensors("FILE", GOOD).match(LAYOUT)) == {"ours.weight", "ours.bias"}
    for change, message in (
        ({"theirs.bias": None}, "FILE: theirs.bias is missing"),
        ({"theirs.weight": torch.zeros(3, 2)}, "FILE: theirs.weight is 3×2 instead of 2×3"),
        ({"theirs.bias": torch.zeros(())}, "FILE: theirs.bias is a number instead of 2"),
        ({"theirs.bias": torch.zeros(2, dtype=torch.uint8)}, "FILE: theirs.bias holds torch.uint8 instead of weights"),
        ({"more": torch.zeros(1)}, "FILE holds more, which is no part of such a model"),
    ):
        state = {name: tensor for name, tensor in {**GOOD, **change}.items() if tensor is not None}
        with pytest.raises(UserError, match=message):
            Tensors("FILE", state).match(LAYOUT)


def test_gpt2_buffers_are_recognized_by_whole_names():
    buffers = {"h.0.attn.bias", "h.0.crossattention.bias", "h.0.attn.masked_bias", "h.0.crossattention.masked_bias"}
    weights = {"h.0.attn.c_attn.bias", "h.0.crossattention.q_attn.bias", "h.0.ln_cross_attn.bias", "VAD_head.bias"}
    assert {name for name in buffers | weights if is_gpt2_buffer(name)} == buffers


def test_an_untied_output_layer_is_refused():
    words = torch.randn(4, 2)
    kept = tied_head(Tensors("FILE", {"wte": words, "head": words.clone()}), "head", "wte")
    assert set(kept.state) == {"wte"}
    with pytest.raises(UserError, match="FILE: head differs from wte"):
        tied_head(Tensors("FILE", {"wte": words, "head": words + 1}), "head", "wte")


# --- the command ------------------------------------------------------------------------------------------------------


def test_help_does_not_import_torch():
    code = (
        "import sys; from trainer.setup.import_checkpoint import _parser; _parser().format_help()\n"
        "assert not {'torch', 'hydra', 'transformers', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


@pytest.mark.parametrize("command", ["sevlm", "perceiver"])
def test_an_existing_run_is_not_overwritten(tmp_path, capsys, command):
    out = tmp_path / "run"
    (out / "checkpoints").mkdir(parents=True)
    (out / "checkpoints" / "index.json").write_text("{}", encoding="utf-8")
    assert main([command, str(tmp_path / "nowhere"), "--out", str(out)]) == 2
    assert f"--out {out} already exists: give the name of a new folder" in capsys.readouterr().err
    assert [path.name for path in out.rglob("*")] == ["checkpoints", "index.json"]
