"""Pretrain the demo's frozen backbones on its own world: a small CLIP (open_clip) and a small GPT-2 (transformers).

    python -m data.demo.pretrain clip --out data/demo/backbones
    python -m data.demo.pretrain gpt2 --out data/demo/backbones

Both see scenes whose palette, subject, composition and brushwork are drawn independently, from a stream of their own:
no picture of the demo, and nothing about which emotion prefers what. docs/data.md has what they cost and reach.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from tqdm import tqdm
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from common.files import write_json
from data.demo.backbones import write_checksums
from data.demo.facts import PHRASES, facts_of
from data.demo.paint import paint
from data.demo.scenes import ODDS, PLACED, Scene, stream
from data.demo.sentences import explain
from data.emotions import EMOTIONS

IMAGE_SIZE = 64
VISION = {"image_size": IMAGE_SIZE, "patch_size": 8, "width": 128, "layers": 4, "head_width": 32, "mlp_ratio": 2.0}
TEXT = {"context_length": 32, "width": 64, "heads": 2, "layers": 2, "mlp_ratio": 2.0, "pool_type": "last"}
EMBED_DIM = 64
LANGUAGE = {"n_layer": 4, "n_head": 4, "n_embd": 128, "n_positions": 96}
LANGUAGE |= dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
BATCH_SIZE = 128  # pictures
VOCABULARY = 1200  # tokens: few enough to split rare words, as GPT-2 does in real annotations
END_OF_TEXT = "<|endoftext|>"
CAPTIONS = {  # of one part of a picture; the whole caption joins all parts that have a phrase
    "subject": "a painting of {}",
    "place": "it is {}",
    "composition": "it is {}",
    "palette": "the colors are {}",
    "brushwork": "painted with {}",
}


def neutral_scene(seed: int, index: int) -> Scene:
    """Return a scene whose attributes do not depend on an emotion or on each other."""
    r = stream(seed, "pretrain", index, "scene")
    attributes = {name: r.choice([*table[EMOTIONS[0]]]) for name, table in ODDS.items()}
    place = r.choice(PLACED.get(attributes["composition"], ("left", "middle", "right")))
    return Scene("", **attributes, place=place, likelihood=())


def _picture(index: int, *, seed: int) -> tuple[np.ndarray, dict[str, str]]:
    scene = neutral_scene(seed, index)
    picture, boxes = paint(scene, stream(seed, "pretrain", index, "paint"), image_size=IMAGE_SIZE)
    return np.asarray(picture), facts_of(scene, boxes)


def paint_pictures(count: int, seed: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Return pictures (N, 3, H, W) uint8, and for each kind the index (N,) of its value in PHRASES, −1 for none."""
    with ProcessPoolExecutor() as pool:
        painted = pool.map(partial(_picture, seed=seed), range(count), chunksize=64)
        pictures, facts = zip(*tqdm(painted, "painting", total=count, unit="picture"), strict=True)
    values = {kind: {value: i for i, value in enumerate(PHRASES[kind])} for kind in CAPTIONS}
    labels = {kind: torch.tensor([found.get(fact[kind], -1) for fact in facts]) for kind, found in values.items()}
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous(), labels


def train_tokenizer(texts: Iterator[str]) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE of VOCABULARY tokens, as GPT-2's."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END_OF_TEXT, pad_token=END_OF_TEXT)


def sentences(count: int, seed: int) -> Iterator[str]:
    """Yield texts as the captioner reads them, about neutral scenes, with every emotion equally often."""
    for index in range(count):
        emotion, r = EMOTIONS[index % len(EMOTIONS)], stream(seed, "pretrain", index, "text")
        yield f" the emotion is {emotion} because {explain(neutral_scene(seed, index), emotion, r)}"


# --- CLIP ------------------------------------------------------------------------------------------------------------


def captions_of(labels: Mapping[str, Tensor], rows: Tensor, r: random.Random) -> list[str]:
    """Return a caption of all parts of each picture, in random phrases and order."""
    texts = []
    for row in rows.tolist():
        kinds = [kind for kind in CAPTIONS if labels[kind][row] >= 0]
        r.shuffle(kinds)
        found = [[*PHRASES[kind].values()][labels[kind][row]] for kind in kinds]
        texts.append(", ".join(CAPTIONS[kind].format(r.choice(some)) for kind, some in zip(kinds, found, strict=True)))
    return texts


def part_captions(kind: str, r: random.Random) -> list[str]:
    """Return a caption of each value of a kind, in a random phrase."""
    return [CAPTIONS[kind].format(r.choice(phrases)) for phrases in PHRASES[kind].values()]


def clip_losses(clip, tokenize, pictures: Tensor, labels: Mapping[str, Tensor], rows: Tensor, r: random.Random):
    """Return open_clip's contrastive loss of whole captions, and for each kind that of its values' captions.

    A contrastive loss alone learns the palette, which tells most pictures apart; each kind by itself cannot.
    """
    images, texts, scale = clip(normalize(pictures[rows]), tokenize(captions_of(labels, rows, r)))[:3]
    losses = {"captions": open_clip.ClipLoss()(images, texts, scale)}
    for kind in CAPTIONS:
        values = clip.encode_text(tokenize(part_captions(kind, r)), normalize=True)
        losses[kind] = F.cross_entropy(scale * images @ values.T, labels[kind][rows], ignore_index=-1)
    return losses


def normalize(pictures: Tensor) -> Tensor:
    """uint8 → open_clip's normalized input."""
    mean, std = (
        torch.tensor(values)[:, None, None] for values in (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)
    )
    return (pictures.float() / 255 - mean) / std


@torch.no_grad()
def zero_shot(clip, tokenize, pictures: Tensor, labels: Mapping[str, Tensor]) -> dict[str, float]:
    """Return the share of pictures whose value of each kind has the likeliest captions (mean over its phrases)."""
    images = torch.cat([clip.encode_image(normalize(part), normalize=True) for part in pictures.split(256)])
    found = {}
    for kind in CAPTIONS:
        values = [
            clip.encode_text(tokenize([CAPTIONS[kind].format(phrase) for phrase in phrases]), normalize=True).mean(
                dim=0
            )
            for phrases in PHRASES[kind].values()
        ]
        known = labels[kind] >= 0
        best = (images[known] @ F.normalize(torch.stack(values), dim=-1).T).argmax(dim=1)
        found[kind] = round((best == labels[kind][known]).float().mean().item(), 4)
    return found


def pretrain_clip(folder: Path, *, seed: int, pictures: int, epochs: int, held_out: int = 1000) -> dict:
    """Train a CLIP, write it as open_clip's folder, and return its zero-shot accuracies on `held_out` new pictures."""
    torch.manual_seed(seed)
    r = random.Random(seed)
    seen, labels = paint_pictures(pictures + held_out, seed)
    tokenizer = train_tokenizer(", ".join(part_captions(kind, r)) for _ in range(200) for kind in CAPTIONS)
    config = {"embed_dim": EMBED_DIM, "vision_cfg": VISION, "text_cfg": {**TEXT, "vocab_size": len(tokenizer)}}
    clip = open_clip.CLIP(**config)
    config["text_cfg"]["hf_tokenizer_name"] = "."  # in the folder itself

    def tokenize(texts: list[str]) -> Tensor:
        options = {"padding": "max_length", "truncation": True, "max_length": TEXT["context_length"]}
        return tokenizer(texts, return_tensors="pt", **options).input_ids

    def batches() -> Iterator[Tensor]:
        for _ in range(epochs):
            yield from torch.randperm(pictures)[: pictures // BATCH_SIZE * BATCH_SIZE].split(BATCH_SIZE)

    def losses_of(rows: Tensor) -> dict[str, Tensor]:
        clip.logit_scale.data.clamp_(max=4.6052)  # log 100, as in CLIP
        return clip_losses(clip, tokenize, seen, labels, rows, r)

    fit(clip, losses_of, batches(), epochs * (pictures // BATCH_SIZE), lr=1e-3, weight_decay=0.1)
    tokenizer.save_pretrained(folder)
    preprocess = {"mean": open_clip.OPENAI_DATASET_MEAN, "std": open_clip.OPENAI_DATASET_STD}
    write_json(folder / "open_clip_config.json", {"model_cfg": config, "preprocess_cfg": preprocess})
    _save(clip.state_dict(), folder / "open_clip_model.safetensors")
    return zero_shot(
        clip.eval(), tokenize, seen[pictures:], {kind: values[pictures:] for kind, values in labels.items()}
    )


# --- GPT-2 -----------------------------------------------------------------------------------------------------------


def pretrain_gpt2(folder: Path, *, seed: int, texts: int, epochs: int, held_out: int = 2000) -> dict:
    """Train a GPT-2 on sentences, write it as transformers' folder, and return its perplexity on `held_out` others."""
    torch.manual_seed(seed)
    every = [*sentences(texts + held_out, seed)]
    tokenizer = train_tokenizer(iter(every[:texts]))
    eos, length = tokenizer.eos_token_id, LANGUAGE["n_positions"]
    model = GPT2LMHeadModel(GPT2Config(**LANGUAGE, vocab_size=len(tokenizer), bos_token_id=eos, eos_token_id=eos))

    def blocks_of(texts: list[str]) -> Tensor:
        """Return the texts end to end, cut into blocks (N, length)."""
        tokens = [token for ids in tokenizer(texts).input_ids for token in (eos, *ids)]
        return torch.tensor(tokens[: len(tokens) // length * length]).view(-1, length)

    def batches() -> Iterator[Tensor]:
        for _ in range(epochs):
            yield from blocks[torch.randperm(len(blocks))].split(32)

    blocks, others = blocks_of(every[:texts]), blocks_of(every[texts:])
    steps = epochs * -(-len(blocks) // 32)
    fit(model, lambda ids: {"words": model(ids, labels=ids).loss}, batches(), steps, lr=2e-3, weight_decay=0.01)
    with torch.no_grad():
        loss = model.eval()(others, labels=others).loss
    tokenizer.save_pretrained(folder)
    model.config.save_pretrained(folder)
    state = {name: tensor for name, tensor in model.state_dict().items() if name != "lm_head.weight"}  # tied
    _save(state, folder / "model.safetensors")
    return {"perplexity": round(loss.exp().item(), 4)}


def fit(
    model: nn.Module,
    losses_of: Callable[[Tensor], Mapping[str, Tensor]],
    batches: Iterator[Tensor],
    steps: int,
    *,
    lr: float,
    weight_decay: float,
) -> None:
    """Minimize the sum of the losses with AdamW over `steps` batches, on one cycle of the learning rate."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.98), weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps, pct_start=0.1)
    for batch in (bar := tqdm(batches, type(model).__name__, total=steps, unit="step")):
        losses = losses_of(batch)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        bar.set_postfix_str(", ".join(f"{name} {loss.item():.2f}" for name, loss in losses.items()), refresh=False)


# --- files -----------------------------------------------------------------------------------------------------------


def _save(state: Mapping[str, Tensor], path: Path) -> None:
    save_file(
        {name: t.half().contiguous() if t.is_floating_point() else t for name, t in state.items()},
        path,
        {"format": "pt"},
    )


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m data.demo.pretrain", description=__doc__.split("\n")[0])
    parser.add_argument("backbone", choices=["clip", "gpt2"])
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="gets the folders clip and gpt2")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--pictures", type=int, default=31_000, help="clip: pictures to paint (%(default)s)")
    parser.add_argument("--texts", type=int, default=60_000, help="gpt2: sentences to write (%(default)s)")
    parser.add_argument("--epochs", type=int, help="passes over them (clip 12, gpt2 2)")
    options = parser.parse_args()
    folder = options.out / options.backbone
    folder.mkdir(parents=True, exist_ok=True)
    if options.backbone == "clip":
        reached = pretrain_clip(folder, seed=options.seed, pictures=options.pictures, epochs=options.epochs or 12)
    else:
        reached = pretrain_gpt2(folder, seed=options.seed, texts=options.texts, epochs=options.epochs or 2)
    write_json(folder / "reached.json", reached)
    write_checksums(options.out)
    print(reached)
    return 0


if __name__ == "__main__":
    sys.exit(main())
