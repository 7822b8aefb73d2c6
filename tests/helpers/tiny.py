"""Small real parts for the tests: tokenizer, lexicon, networks, batches and folders of pictures."""

from __future__ import annotations

import json
import pickle
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from functools import cache
from pathlib import Path

import huggingface_hub
import open_clip
import pytest
import torch
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from PIL import Image
from safetensors.torch import save_file
from tokenizers import ByteLevelBPETokenizer
from transformers import GPT2Config, GPT2LMHeadModel, GPT2Tokenizer

from common.config.check import PARSER, check_config, check_overrides, default_config
from data.collate import collate
from data.emotions import EMOTIONS
from data.loaders import CaptionDataset
from data.schema import Batch, Sample
from data.text import Template
from data.vad.align import VadAligner
from data.vad.lexicon import Lexicon
from model.build import build_captioner
from model.captioner import Captioner

ROOT = Path(__file__).resolve().parents[2]
VISION = {"image_size": 32, "patch_size": 16, "width": 32, "layers": 2, "head_width": 16, "mlp_ratio": 2.0}
GPT2 = {"n_layer": 3, "n_head": 2, "n_embd": 32, "n_positions": 128}
PARTS = {
    "vision": {"pretrained_name": None, "config": VISION},
    "mapper": {"mlp_dim": 16, "depth": 1, "heads": 2, "dim_feedforward": 32},
    "resampler": {"depth": 2, "dim_head": 8, "heads": 2, "num_latents": 4, "num_time_embeds": 6},
    "text": {"pretrained_name": None, "config": GPT2, "xattn": {"dim_head": 8, "heads": 2, "gate_init": 0.0}},
    "vad": {"fusion_dim": 8},
    "contrastive": {"depth": 2},
}
RESNET = {"image_size": 64, "layers": [1, 1, 1, 1], "width": 16, "head_width": 16, "patch_size": None}
# fmt: off
WORDS = [
    "the", "tiny", "boat", "is", "lost", "under", "an", "enormous", "serene", "sky", "and", "a", "gloomy", "storm",
    "makes", "me", "feel", "small", ",", "calm", "or", "afraid",
]
# fmt: on
LEXICON = {
    "serene": (0.9, -0.7, 0.1),
    "storm": (-0.6, 0.8, -0.3),
    "gloomy": (-0.8, -0.2, -0.4),
    "calm": (0.8, -0.9, 0.2),
    "afraid": (-0.8, 0.6, -0.7),
    "awe": (0.6, 0.7, -0.3),
    "fear": (-0.9, 0.7, -0.6),
    "small": (0.0, 0.0, 0.0),  # known and neutral
}


def sentences(count: int, *, seed: int = 0) -> list[str]:
    rng = random.Random(seed)
    return [" ".join(rng.choices(WORDS, k=rng.randint(4, 12))) for _ in range(count)]


def write_tokenizer(folder: Path) -> Path:
    """Write vocab.json and merges.txt of a byte-level BPE trained on the words above."""
    folder.mkdir(parents=True, exist_ok=True)
    bpe = ByteLevelBPETokenizer()
    corpus = [f" the emotion is {e} because {s}" for e in EMOTIONS for s in sentences(20)]
    bpe.train_from_iterator(corpus, vocab_size=330, special_tokens=["<|endoftext|>"], show_progress=False)
    bpe.save_model(str(folder))
    return folder


def make_template(folder: Path, *, max_length: int = 40) -> Template:
    return Template(GPT2Tokenizer.from_pretrained(str(write_tokenizer(folder))), max_length=max_length)


def make_aligner(template: Template) -> VadAligner:
    return VadAligner(Lexicon(dict(LEXICON)), template.tokenizer)


def model_config(**changes) -> dict:
    """Return the section `model` with small random backbones and all parts on; changes: keys with __ for dots."""
    config = default_config().model
    switches = {"vad": {"enabled": True}, "contrastive": {"enabled": True, "negatives": "read"}}
    config = OmegaConf.merge(config, PARTS, switches, {"text": {"segments": True}})
    for key, value in changes.items():
        OmegaConf.update(config, key.replace("__", "."), value, merge=not isinstance(value, dict), force_add=True)
    return OmegaConf.to_container(config)


def make_captioner(template: Template, *, seed: int = 0, gates: float = 0.0, **changes) -> Captioner:
    """gates: value of every gate; at 0, cross-attention has no effect."""
    torch.manual_seed(seed)
    captioner = build_captioner(model_config(**changes), vocab_size=len(template.tokenizer), eos_id=template.eos_id)
    for name, parameter in captioner.named_parameters():
        if name.endswith(("alpha_attn", "alpha_ffw", "fusion.gate")):
            torch.nn.init.constant_(parameter, gates)
    return captioner.eval()


def write_pictures(folder: Path, count: int, *, size: int = 40, seed: int = 0) -> list[Path]:
    """Write pictures of one color each, cycling through nine colors: picture i shows emotion i % 9."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(seed)
    paths = []
    for i in range(count):
        hue = i % len(EMOTIONS)
        color = tuple(min(255, max(0, c + rng.randint(-9, 9))) for c in (28 * hue, 255 - 28 * hue, (97 * hue) % 256))
        paths.append(folder / f"picture-{i:03d}.png")
        Image.new("RGB", (size, size), color).save(paths[-1])
    return paths


def write_artemis(root: Path, count: int, *, seed: int = 0) -> tuple[Path, Path]:
    """Write a folder of pictures and its SEVLM-style JSON: three of four annotators report emotion i % 9."""
    paths = write_pictures(root / "images" / "Style", count, seed=seed)
    entries = {}
    for i, path in enumerate(paths):
        main, other = i % len(EMOTIONS), (i + 4) % len(EMOTIONS)
        shares = [0.0] * len(EMOTIONS)
        shares[main], shares[other] = 0.75, 0.25
        entries[str(1000 + i)] = {
            "emotions": [EMOTIONS[main]] * 3 + [EMOTIONS[other]],
            "explanations": sentences(4, seed=seed * 1000 + i),
            "image_name": f"Style/{path.name}",
            "origin_emotion_distribution": shares,
        }
    json_path = root / "annotations.json"
    json_path.write_text(json.dumps(entries), encoding="utf-8")
    return json_path, root / "images"


def make_samples(folder: Path, count: int) -> list[Sample]:
    paths = write_pictures(folder, count)
    samples = []
    for i, path in enumerate(paths):
        emotions = (i % 9, (i + 4) % 9, i % 9)
        histogram = tuple(emotions.count(e) / 3 for e in range(9))
        samples.append(Sample(f"id{i}", path, tuple(sentences(3, seed=i)), emotions, histogram))
    return samples


def make_dataset(folder: Path, template: Template, captioner: Captioner, count: int, **changes) -> CaptionDataset:
    settings = {"texts_per_image": 2, "seed": 0, "max_frames": 4, **changes}
    return CaptionDataset(
        make_samples(folder, count),
        preprocess=captioner.vision.preprocess,
        template=template,
        aligner=make_aligner(template),
        **settings,
    )


def make_batch(folder: Path, template: Template, captioner: Captioner, count: int = 3) -> Batch:
    dataset = make_dataset(folder, template, captioner, count)
    return collate([dataset[0, i] for i in range(count)])


def video_batch(batch: Batch, lengths: list[int]) -> Batch:
    """Return the batch with clips of different lengths instead of pictures; padding frames hold noise."""
    video = deepcopy(batch)
    generator = torch.Generator().manual_seed(7)
    frames = torch.randn(len(lengths), max(lengths), 3, *batch.frames.shape[-2:], generator=generator)
    video.frames = frames
    video.frame_mask = torch.arange(max(lengths))[None, :] < torch.tensor(lengths)[:, None]
    return video


def write_lexicon(path: Path) -> Path:
    rows = [f"{word},{v},{a},{d}" for word, (v, a, d) in LEXICON.items()]
    path.write_text("\n".join(["word,valence,arousal,dominance", *rows]) + "\n", encoding="utf-8")
    return path


def write_splits(root: Path, *, train: int = 8, val: int = 4, test: int = 5) -> dict[str, object]:
    """Write ArtEmis-style folders, tokenizer and lexicon; return the keys of a short training on the CPU.

    Runs go into root/runs; texts are short and greedy, for speed.
    """
    keys: dict[str, object] = {f"model.{part}.{key}": v for part, keys in PARTS.items() for key, v in keys.items()}
    keys |= {"preset": "none", "dataset.name": "artemis", "dataset.max_length": 40}
    keys |= {"dataset.tokenizer": write_tokenizer(root / "tokenizer")}
    keys |= {"dataset.vad_lexicon": write_lexicon(root / "lexicon.csv")}
    for seed, (split, count) in enumerate({"train": train, "validation": val, "test": test}.items()):
        json_path, images = write_artemis(root / split, count, seed=seed)
        files = {"json_path": json_path, "visual_dir": images, "batch_size": 4, "num_workers": 0}
        keys |= {f"dataset.{split}_ds.{key}": value for key, value in files.items()}
    keys |= {"trainer.exp_dir": root / "runs", "trainer.device": "cpu", "trainer.num_validation_images": 0}
    keys |= {"trainer.num_validation_captions": 0}
    return keys | {"trainer.epochs": 1, "trainer.test.decoding_strategy": "greedy", "trainer.test.max_length": 6}


def run_mode(mode: str, keys: Mapping[str, object]) -> None:
    """Run `python run.py mode=MODE KEY=VALUE …` in this process."""
    from trainer import commands

    with libyaml():
        config = composed(mode, keys, return_hydra_config=True)
        HydraConfig.instance().set_config(config)
        try:
            with open_dict(config):
                del config["hydra"]
            check_config(config)
            getattr(commands, mode)(config)
        finally:
            HydraConfig.instance().cfg = None


def composed(mode: str, keys: Mapping[str, object], **options: bool) -> DictConfig:
    """Return the configuration of `python run.py mode=MODE KEY=VALUE …`, not yet checked.

    Hydra composes each preset once; the other keys are set as it does (test_config_check.py compares).
    """
    overrides = check_overrides(arguments({"mode": mode, **keys}))
    parsed = [_parsed(override) for override in overrides]
    with libyaml():
        preset = tuple(one.input_line for one in parsed if one.key_or_group == "preset")
        config: DictConfig = pickle.loads(_with_preset(preset, **options))
        for one in parsed:
            if one.key_or_group != "preset":
                OmegaConf.update(config, one.key_or_group, one.value(), force_add=one.is_force_add())
        if options:
            with read_write(config.hydra):
                config.hydra.overrides.task = overrides
    return config


_parsed = cache(PARSER.parse_override)


@cache
def _with_preset(overrides: tuple[str, ...], **options: bool) -> bytes:
    with initialize_config_dir(version_base="1.3", config_dir=str(ROOT)):
        return pickle.dumps(compose("config", overrides=[*overrides], **options))


@contextmanager
def libyaml() -> Iterator[None]:
    """Read YAML with libyaml: the same values, several times faster."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(yaml, "SafeLoader", yaml.CSafeLoader)
        yield


def write_run(keys: Mapping[str, object], name: str) -> Path:
    """Train with these keys; return the folder of the run."""
    run_mode("train", {**keys, "name": name})
    return Path(keys["trainer.exp_dir"]) / name


def arguments(keys: Mapping[str, object]) -> list[str]:
    """Return KEY=VALUE arguments for the command line; a test leaves out METEOR, which takes seconds to start Java."""
    if keys.get("mode") == "test":
        keys = {"trainer.test.metrics": "[bleu,rouge_l,cider]", **keys}
    return [f"{key}={_typed(value)}" for key, value in keys.items()]


def _typed(value: object) -> str:
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{_typed(item)}" for key, item in value.items()) + "}"
    return str(value).lower() if isinstance(value, bool) else "null" if value is None else str(value)


def write_gpt2(folder: Path, *, vocab_size: int, seed: int = 0, **changes) -> Path:
    """Write config.json and model.safetensors of a small GPT-2."""
    torch.manual_seed(seed)
    GPT2LMHeadModel(GPT2Config(**{**GPT2, **changes}, vocab_size=vocab_size)).save_pretrained(str(folder))
    return folder


def write_open_clip(folder: Path, *, vision: dict | None = None, seed: int = 0, **preprocess) -> Path:
    """Write open_clip_config.json and open_clip_model.safetensors of a small CLIP."""
    torch.manual_seed(seed)
    text = {"context_length": 4, "vocab_size": 8, "width": 16, "heads": 2, "layers": 1}
    model_cfg = {"embed_dim": 24, "vision_cfg": dict(vision or VISION), "text_cfg": text}
    folder.mkdir(parents=True, exist_ok=True)
    config = {"model_cfg": model_cfg, "preprocess_cfg": preprocess}
    (folder / "open_clip_config.json").write_text(json.dumps(config), encoding="utf-8")
    weights = {k: v.contiguous() for k, v in open_clip.CLIP(**model_cfg).state_dict().items()}
    save_file(weights, folder / "open_clip_model.safetensors")
    return folder


def go_offline(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    """Switch huggingface_hub to offline mode with an empty cache."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
