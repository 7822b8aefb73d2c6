"""Options that change how a step is computed, but not its result."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from common.errors import UserError
from tests.helpers.tiny import make_batch, make_captioner, run_mode, write_splits
from tests.model.test_language_families import FAMILIES


@pytest.fixture(scope="module")
def keys(tmp_path_factory) -> dict[str, object]:
    keys = write_splits(tmp_path_factory.mktemp("splits"))
    return {**keys, "name": "run", "trainer.epochs": 1}


SMALLEST = {"model.text.config.n_layer": 1, "model.contrastive.enabled": False, "model.vad.enabled": False}


def weights(folder):
    return load_file(next((folder / "run" / "checkpoints").glob("step-*")) / "model.safetensors")


def test_gradient_checkpointing_gives_equal_weights(keys, tmp_path):
    found = []
    for switch in (False, True):
        folder = tmp_path / str(switch)
        run_mode("train", {**keys, "trainer.exp_dir": folder, "trainer.gradient_checkpointing": switch})
        found.append(weights(folder))
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_failed_compilation_is_explained(keys, tmp_path, monkeypatch):
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", ("/no/compiler",))
    monkeypatch.setattr("torch._inductor.config.force_disable_caches", True)
    torch._dynamo.reset()
    with pytest.raises(UserError, match=r"torch\.compile failed .*needs a C\+\+ compiler.*trainer\.compile=false"):
        run_mode("train", {**keys, "trainer.exp_dir": tmp_path, "trainer.compile": True, **SMALLEST})


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_compiled_blocks_give_equal_output(template, tmp_path, family):
    """Traces only; torch tests its compiler backends."""
    torch._dynamo.reset()
    captioner = make_captioner(template, gates=0.7, text__config=FAMILIES[family], contrastive__enabled=False)
    batch = make_batch(tmp_path, template, captioner)
    before = captioner(batch).hidden
    seen = []
    for block in captioner.language.blocks:
        block.compile(dynamic=True, backend=lambda graph, _: seen.append(graph) or graph.forward)
    torch.testing.assert_close(captioner(batch).hidden, before)
    assert seen, "nothing was traced"
