"""Import SEVLM's checkpoints in their published layout and use the runs."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from safetensors.torch import load_file, save_file

from data.emotions import EMOTIONS
from model.captioner import Text
from model.checkpoint_import.sevlm import read_sevlm
from tests.helpers import sevlm_reference as reference
from tests.helpers.tiny import (
    run_mode,
    write_artemis,
    write_lexicon,
    write_open_clip,
    write_pictures,
    write_tokenizer,
)
from tests.helpers.weight_files import Call, anonymous_memory, error_of
from trainer.runs.checkpoint import find_checkpoint
from trainer.setup.import_checkpoint import main
from trainer.setup.parts import build_parts

LAYERS, WIDTH, HEADS = 2, 64, 4
TOWER = {"image_size": 32, "patch_size": 16, "width": WIDTH, "layers": 2, "head_width": 64, "mlp_ratio": 2.0}
NAMES = (  # prefixes: ours, theirs
    ("language.lm.transformer.h.0.lm_block.", "transformer.h.0."),
    ("language.lm.transformer.h.1.lm_block.", "transformer.h.1."),
    ("language.lm.", ""),
    ("fusion.linear.", "transformer.VAD_linear."),
    ("vad_head.", "VAD_head."),
    ("contrastive.", "sim_mlp."),
)


class Official:
    """A folder in the published layout, copied for each test."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.out = folder.parent / "runs" / "sevlm"
        self.lexicon = folder.parent / "lexicon.csv"

    @property
    def weights(self) -> Path:
        return self.folder / "nle_model_best-res" / "pytorch_model.bin"

    @property
    def stats(self) -> Path:
        return self.folder / "ckpt_stats_best-res.tar"

    def change_config(self, **changes) -> None:
        path = self.folder / "nle_model_best-res" / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | changes), encoding="utf-8")

    def rewrite(self, path: Path, change: Callable[[dict], object]) -> None:
        content = torch.load(path, weights_only=False)
        change(content)
        torch.save(content, path)

    def run(self, *options: object) -> int:
        return main(["sevlm", str(self.folder), "--out", str(self.out), *map(str, options)])

    def parts(self, **keys: object):
        checkpoint = find_checkpoint(str(self.out), Path())
        for key, value in keys.items():
            checkpoint.config.model.vision[key] = value
        return build_parts(checkpoint.config, checkpoint=checkpoint)


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("official")
    tokenizer = write_tokenizer(folder / "tokenizer")
    vocabulary = len(json.loads((tokenizer / "vocab.json").read_text(encoding="utf-8"))) + 4
    generator = torch.Generator().manual_seed(0)
    state = reference.random_state(generator, n_layer=LAYERS, d=WIDTH, vocabulary=vocabulary, positions=40)
    emo = reference.random_vad_encoder(generator)
    reference.write_official(folder / "official", state, emo, tokenizer=tokenizer, heads=HEADS)
    write_lexicon(folder / "lexicon.csv")
    write_open_clip(folder / "clip", vision=TOWER)
    return folder


@pytest.fixture
def official(written, tmp_path) -> Official:
    shutil.copytree(written, tmp_path, dirs_exist_ok=True)
    return Official(tmp_path / "official")


def refusal(official: Official, capsys, *options: object) -> str:
    return error_of(lambda: official.run(*options), official.folder.parent, capsys)


# --- imported runs ----------------------------------------------------------------------------------------------------


def test_every_weight_is_imported(official):
    assert official.run("--lexicon", official.lexicon) == 0
    stored = load_file(find_checkpoint(str(official.out), Path()).folder / "model.safetensors")
    theirs = torch.load(official.weights, weights_only=True)
    emo = torch.load(official.stats, weights_only=False)["emo_encoder_state_dict"]
    found = set()
    for name, tensor in stored.items():
        if name.startswith("vad_encoder."):
            wanted = emo[name.removeprefix("vad_encoder.")]
        else:
            ours, prefix = next(pair for pair in NAMES if name.startswith(pair[0]))
            found.add(prefix + name.removeprefix(ours))
            wanted = theirs[prefix + name.removeprefix(ours)]
        assert torch.equal(tensor, wanted), name
    buffers = {name for name in theirs if name.endswith(("attn.bias", "crossattention.bias", "masked_bias"))}
    assert found == set(theirs) - {n for n in buffers if not n.endswith("_attn.bias")} - {"lm_head.weight"}


def test_logits_equal_the_reference(official):
    assert official.run() == 0
    captioner = official.parts(pretrained_name=str(official.folder.parent / "clip")).captioner.eval()
    state = torch.load(official.weights, weights_only=True)
    emo = torch.load(official.stats, weights_only=False)["emo_encoder_state_dict"]
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, 300, (2, 11), generator=generator)
    segment = (torch.arange(11) >= 5).long().expand(2, -1)
    vad = torch.rand(2, 11, 3, generator=generator) * 2 - 1
    images = torch.randn(2, 4, WIDTH, generator=generator)
    vocabulary = len(state["transformer.wte.weight"])
    with torch.no_grad():
        visual = captioner.look(torch.empty(0), torch.ones(2, 1, dtype=torch.bool), images[:, None])
        text = Text(ids, segment, vad, torch.ones(2, 11, dtype=torch.bool), None)
        hidden = captioner.read(visual, text)
        u = reference.vad_encoder(emo, vad)
        wanted = reference.hidden_states(state, ids, segment + vocabulary - 2, images, u, heads=HEADS)
    assert torch.allclose(hidden, wanted, atol=1e-4)
    assert torch.allclose(captioner.language.logits(hidden), reference.logits(state, wanted), atol=1e-4)


def test_the_run_records_its_origin(official, capsys):
    assert official.run("--lexicon", official.lexicon) == 0
    checkpoint = find_checkpoint(str(official.out), Path())
    origin = checkpoint.info["import"]
    assert (origin["name"], origin["best_acc"], origin["best_res"]) == ("best-res", 0.625, 0.0625)
    assert [file["name"] for file in origin["files"]] == ["config.json", "pytorch_model.bin", "ckpt_stats_best-res.tar"]
    assert all(len(file["sha256"]) == 64 and file["bytes"] > 100 for file in origin["files"])
    assert (checkpoint.info["state"]["step"], checkpoint.info["state"]["epoch"]) == (7, 12)
    config = checkpoint.config
    assert config.model.architecture == "sevlm" and config.model.text.pretrained_name is None
    assert config.model.vision.pretrained_name == "openai/clip-vit-base-patch16"
    assert (config.model.contrastive.depth, config.model.vad.encoder_layers) == (4, 3)
    assert config.dataset.vad_lexicon == str(official.lexicon.resolve()) and config.trainer.exp_name == "sevlm"
    assert "SEVLM, best-res: " in capsys.readouterr().out


def test_the_run_works_in_test_and_predict(official):
    assert official.run("--lexicon", official.lexicon, "--vision", official.folder.parent / "clip") == 0
    json_path, images = write_artemis(official.folder.parent / "data", 3)
    keys: dict[str, object] = {"preset": "sevlm", "pretrained_name": official.out, "trainer.device": "cpu"}
    files = {"json_path": json_path, "visual_dir": images, "batch_size": 2, "num_workers": 0}
    tested = keys | {f"dataset.test_ds.{key}": value for key, value in files.items()}
    run_mode("test", tested | {"trainer.test.metrics": "[rouge_l]", "trainer.test.novelty": False})
    rows = (official.out / "test" / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(rows) == 3 and (official.out / "test" / "metrics.json").is_file()
    pictures = write_pictures(official.folder.parent / "pictures", 2)
    run_mode("predict", keys | {"image": pictures[0].parent, "emotion": EMOTIONS[1]})
    rows = json.loads((official.out / "predict" / "predictions.json").read_text(encoding="utf-8"))
    assert [row["emotion"] for row in rows] == [EMOTIONS[1]] * 2


def test_other_sizes_and_half_precision_are_imported(official):
    tokenizer = official.folder.parent / "tokenizer"
    generator = torch.Generator().manual_seed(3)
    vocabulary = len(json.loads((tokenizer / "vocab.json").read_text(encoding="utf-8"))) + 4
    state = reference.random_state(generator, n_layer=1, d=32, vocabulary=vocabulary, positions=50)
    state = {name: tensor.half() for name, tensor in state.items()}
    emo = reference.random_vad_encoder(generator)
    folder = official.folder.parent / "other"
    reference.write_official(folder, state, emo, tokenizer=tokenizer, heads=2, name="best-acc")
    save_file(
        {k: v.clone() for k, v in state.items()}, folder / "nle_model_best-acc" / "model.safetensors"
    )  # as transformers writes it today
    (folder / "nle_model_best-acc" / "pytorch_model.bin").unlink()
    (folder / "nle_model_best-acc" / "config.json").write_text('{"n_head": 2}', encoding="utf-8")
    assert main(["sevlm", str(folder), "--out", str(official.out)]) == 0
    text = find_checkpoint(str(official.out), Path()).config.model.text.config
    assert (text.n_layer, text.n_embd, text.n_positions, text.n_head) == (1, 32, 50, 2)
    stored = load_file(find_checkpoint(str(official.out), Path()).folder / "model.safetensors")
    words = stored["language.lm.transformer.wte.weight"]
    assert words.dtype == torch.float32 and torch.equal(words, state["transformer.wte.weight"].float())


# --- selection of a checkpoint, optional parts ------------------------------------------------------------------------


def test_best_res_is_preferred_unless_another_is_named(official, capsys):
    for part in ("nle_model_{}", "ckpt_stats_{}.tar"):
        old = official.folder / part.format("best-res")
        (shutil.copytree if old.is_dir() else shutil.copy)(old, official.folder / part.format("best-acc"))
    assert read_sevlm(official.folder).facts["name"] == "best-res"
    assert read_sevlm(official.folder, name="best-acc").facts["name"] == "best-acc"
    shutil.rmtree(official.folder / "nle_model_best-res")
    assert read_sevlm(official.folder).facts["name"] == "best-acc"
    (official.folder / "nle_model_best-acc").rename(official.folder / "nle_model_3")
    (official.folder / "ckpt_stats_best-acc.tar").rename(official.folder / "ckpt_stats_3.tar")
    assert read_sevlm(official.folder).facts["name"] == "3"
    shutil.copytree(official.folder / "nle_model_3", official.folder / "nle_model_4")
    assert "holds several checkpoints (3, 4): choose one with --name" in refusal(official, capsys)


def test_a_trained_image_encoder_is_imported(official, capsys):
    torch.manual_seed(5)
    clip = open_clip.CLIP(
        embed_dim=48, vision_cfg=TOWER, quick_gelu=True,
        text_cfg={"context_length": 4, "vocab_size": 8, "width": 16, "heads": 2, "layers": 1},
    )  # fmt: skip
    visual = clip.visual.half().float().eval()
    half = {f"encoder.{name}": tensor.half() for name, tensor in visual.state_dict().items()}
    official.rewrite(official.stats, lambda stats: stats.update(encoder_state_dict=half))
    assert "leave --vision" in refusal(official, capsys, "--vision", "openai/clip-vit-base-patch16")
    assert official.run() == 0
    vision = official.parts().captioner.vision
    pictures = torch.randn(2, 1, 3, 32, 32)
    wanted = visual.forward_intermediates(
        pictures[:, 0], indices=1, normalize_intermediates=True, intermediates_only=True, output_fmt="NLC"
    )
    with torch.no_grad():
        assert torch.allclose(vision(pictures)[:, 0], wanted["image_intermediates"][-1], atol=1e-5)
    assert vision.preprocess["mean"] == open_clip.constants.IMAGENET_MEAN


PARTS = {
    "no VAD head": (("VAD_head.",), False, {"model.vad.enabled": True, "model.loss_weights.vad": 0.0}),
    "no contrastive head": (("sim_mlp.",), False, {"model.contrastive.enabled": False}),
    "no VAD encoder": ((), True, {"model.vad.enabled": True, "model.vad.fusion": "off", "model.vad.encoder": "none"}),
    "no VAD at all": (("VAD_head.", "transformer.VAD_linear."), True, {"model.vad.enabled": False}),
}


@pytest.mark.parametrize("case", PARTS)
def test_untrained_parts_are_switched_off(official, case):
    absent, without_encoder, settings = PARTS[case]
    official.rewrite(
        official.weights, lambda state: [state.pop(name) for name in [*state] if name.startswith(absent or "\0")]
    )
    official.change_config(use_cl_loss=True, use_VAD_loss=None)  # flags are ignored
    if without_encoder:
        official.rewrite(official.stats, lambda stats: stats.pop("emo_encoder_state_dict"))
    imported = read_sevlm(official.folder)
    assert settings.items() <= imported.settings.items()
    assert official.run() == 0
    assert official.parts(pretrained_name=str(official.folder.parent / "clip")).captioner is not None


# --- refused files ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("nle_model_best-res", "official/nle_model_best-res is missing: give the folder that holds it"),
        ("nle_model_best-res/config.json", "nle_model_best-res/config.json is missing"),
        ("nle_model_best-res/pytorch_model.bin", "nle_model_best-res/pytorch_model.bin is missing"),
        ("ckpt_stats_best-res.tar", "ckpt_stats_best-res.tar is missing"),
        ("nle_gpt2_tokenizer_0", "nle_gpt2_tokenizer_0 is missing"),
        ("nle_gpt2_tokenizer_0/vocab.json", "neither vocab.json and merges.txt nor tokenizer.json"),
    ],
)
def test_missing_files_are_named(official, capsys, missing, message):
    path = official.folder / missing
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert message in refusal(official, capsys)


def test_the_parent_folder_is_refused_with_a_hint(official, capsys):
    deeper = official.folder / "SELVM_on_artEmis-V2"
    deeper.mkdir()
    for path in [path for path in official.folder.iterdir() if path != deeper]:
        path.rename(deeper / path.name)
    assert f"did you mean {deeper}?" in refusal(official, capsys)


def put(name: str, value: torch.Tensor) -> Callable[[dict], object]:
    return lambda state: state.__setitem__(name, value)


WEIGHTS = {
    "missing": (lambda state: state.pop("transformer.h.1.ln_2.bias"), "transformer.h.1.ln_2.bias is missing"),
    "no words": (lambda state: state.pop("transformer.wte.weight"), "transformer.wte.weight is missing"),
    "shape": (
        put("transformer.h.0.crossattention.q_attn.bias", torch.zeros(3)),
        "transformer.h.0.crossattention.q_attn.bias is 3 instead of 64",
    ),
    "fusion": (
        put("transformer.VAD_linear.weight", torch.zeros(64, 64)),
        "transformer.VAD_linear.weight is 64×64 instead of 64×67",
    ),
    "depth": (lambda state: state.pop("sim_mlp.pred.4.weight"), "sim_mlp.pred.4.weight is missing"),
    "left over": (
        put("distribution_head.weight", torch.zeros(9, 64)),
        "holds distribution_head.weight, which is no part of such a model",
    ),
    "name like a buffer": (
        put("transformer.h.0.attn.q_attn.bias", torch.zeros(64)),
        "holds transformer.h.0.attn.q_attn.bias, which is no part",
    ),
    "head": (put("lm_head.weight", torch.zeros(5, 64)), "lm_head.weight differs from transformer.wte.weight"),
    "prefix": (
        put("transformer.clip_project.model.0.weight", torch.zeros(384, 768)),
        "it has a visual prefix (len_prefix=0, clip_project), which cannot be imported",
    ),
    "integers": (
        put("transformer.ln_f.bias", torch.zeros(64, dtype=torch.int64)),
        "transformer.ln_f.bias holds torch.int64 instead of weights",
    ),
}


@pytest.mark.parametrize("case", WEIGHTS)
def test_the_first_wrong_tensor_is_named(official, capsys, case):
    change, message = WEIGHTS[case]
    official.rewrite(official.weights, change)
    sentence = refusal(official, capsys)
    assert message in sentence and ("pytorch_model.bin" in sentence or case == "prefix")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_head": 5}, "config.json: n_head=5 does not divide the width 64"),
        ({"len_prefix": 2}, "it has a visual prefix (len_prefix=2"),
        ({"scale_attn_weights": False}, "scale_attn_weights=False, but only scale_attn_weights=True is computed"),
        ({"activation_function": "swish9"}, "transformers cannot build this GPT-2"),
    ],
)
def test_unsupported_configurations_are_refused(official, capsys, change, message):
    official.change_config(**change)
    assert message in refusal(official, capsys)


STATS = {
    "VAD encoder": (
        lambda stats: stats["emo_encoder_state_dict"].pop("norm.weight"),
        "emo_encoder_state_dict: norm.weight is missing",
    ),
    "width": (
        lambda stats: stats["emo_encoder_state_dict"].update({"encoder.layers.1.fc.0.weight": torch.zeros(64, 3)}),
        "encoder.layers.1.fc.0.weight is 64×3 instead of 128×3",
    ),
    "no tensors": (
        lambda stats: stats.update(emo_encoder_state_dict=[1]),
        "emo_encoder_state_dict holds no tensors by name",
    ),
    "image encoder": (
        lambda stats: stats.update(encoder_state_dict={"encoder.conv1.weight": torch.zeros(1)}),
        "encoder_state_dict: encoder.positional_embedding is missing",
    ),
}


@pytest.mark.parametrize("case", STATS)
def test_wrong_training_states_are_refused(official, capsys, case):
    change, message = STATS[case]
    official.rewrite(official.stats, change)
    assert message in refusal(official, capsys)


def test_a_vad_encoder_without_its_fusion_is_refused(official, capsys):
    official.rewrite(
        official.weights, lambda state: [state.pop(f"transformer.VAD_linear.{end}") for end in ("weight", "bias")]
    )
    assert "has no transformer.VAD_linear for it" in refusal(official, capsys)


def test_another_tokenizer_is_refused(official, capsys):
    path = official.folder / "nle_gpt2_tokenizer_0" / "added_tokens.json"
    added = json.loads(path.read_text(encoding="utf-8"))
    swapped = {**added, "<emotion>": added["<explanation>"], "<explanation>": added["<emotion>"]}
    path.write_text(json.dumps(swapped), encoding="utf-8")
    assert "<emotion> is token" in refusal(official, capsys)
    for file in path.parent.iterdir():  # GPT-2's own
        if file.name not in ("vocab.json", "merges.txt"):
            file.unlink()
    assert "give the tokenizer of their training" in refusal(official, capsys)


@pytest.mark.parametrize("file", ["weights", "stats"])
def test_no_pickled_call_is_executed(official, capsys, file):
    marker = official.folder.parent / "marker"
    path = getattr(official, file)
    official.rewrite(path, lambda content: content.update(evil=Call(os.system, f"touch {marker}")))
    assert f"{path.name} is refused, and nothing in it was run: it holds the name '" in refusal(official, capsys)
    torch.load(path, weights_only=False)
    assert marker.exists()  # unsafe loading executes it, so the test can fail


@pytest.mark.parametrize("file", ["weights", "stats"])
def test_truncated_files_are_refused(official, capsys, file):
    path = getattr(official, file)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert f"{path.name} cannot be read as a file of torch.save" in refusal(official, capsys)


def test_a_failed_write_leaves_nothing_behind(official, capsys):
    out = official.folder.parent / "file"
    out.write_text("not a folder", encoding="utf-8")
    official.out = out / "run"
    assert "cannot be written" in refusal(official, capsys)


def test_the_lexicon_is_checked_before_anything_is_written(official, capsys):
    assert "lexicon" in refusal(official, capsys, "--lexicon", official.folder.parent / "lexicon.txt")


def test_scores_can_be_numpy_scalars_or_missing(official):
    official.rewrite(official.stats, lambda stats: (stats.pop("best_res"), stats.update(best_acc=np.float32(0.5))))
    facts = read_sevlm(official.folder).facts
    assert facts == {"name": "best-res", "best_acc": 0.5}


def test_the_optimizer_state_is_not_read(official):
    """It is all but 71 kB of the published 802 MB."""
    moments = {"state": {0: {"exp_avg": torch.zeros(64 << 18)}}}  # 64 MiB
    official.rewrite(official.stats, lambda stats: stats.update(optimizer_state_dict=moments))
    moments.clear()
    read_sevlm(official.folder)  # imports modules
    before = anonymous_memory()
    imported = read_sevlm(official.folder)
    assert anonymous_memory() - before < 16 << 20 and imported.step == 7
