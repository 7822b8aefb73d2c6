"""SEVLM's decoder (Zhang et al., ECCV 2024) from its formulas alone, and checkpoints in its published layout.

The reference for model/sevlm.py and the import; it uses neither the project nor transformers. Weights are raw state
dicts with the published names; "Conv1D" weights are (in, out). No dropout.

Axes: N texts, L positions, P patches, D width, V vocabulary, h heads.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

State = dict[str, Tensor]
BLOCK = 6  # positions 0..5 count as the emotion, the others as the explanation, wherever "because" is
LENGTH = 30  # positions of a training text
STEPS = 25  # tokens generated at inference, always
IGNORED = -100
SPECIAL = ("<pad>", "<prefix>", "<emotion>", "<explanation>")  # after the base vocabulary, in this order


# ---------------------------------------------------------------------------------------------------- the network


def layer_norm(x: Tensor, state: State, name: str) -> Tensor:
    centred = x - x.mean(dim=-1, keepdim=True)
    scale = (centred.square().mean(dim=-1, keepdim=True) + 1e-5).sqrt()
    return centred / scale * state[f"{name}.weight"] + state[f"{name}.bias"]


def linear(x: Tensor, state: State, name: str) -> Tensor:
    return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]


def conv1d(x: Tensor, state: State, name: str) -> Tensor:
    return x @ state[f"{name}.weight"] + state[f"{name}.bias"]


def gelu_new(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def attend(queries: Tensor, keys: Tensor, values: Tensor, *, heads: int, causal: bool) -> Tensor:
    """Three (N, L, D) → (N, L, D); masked scores are −10000."""
    queries, keys, values = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (queries, keys, values))
    scores = queries @ keys.transpose(-1, -2) / math.sqrt(queries.shape[-1])
    if causal:
        future = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
        scores = torch.where(future, torch.tensor(-10000.0), scores)
    return (scores.softmax(dim=-1) @ values).transpose(1, 2).flatten(2)


def vad_encoder(emo: State, vad: Tensor) -> Tensor:
    """VAD of the tokens (N, L, 3) → u (N, L, 3); every position attends to all, including padding."""
    x = layer_norm(vad + emo["pos_encoder.weight"][: vad.shape[1]], emo, "norm")
    layers = len({name.split(".")[2] for name in emo if name.startswith("encoder.layers.")})
    for i in range(layers):
        at = f"encoder.layers.{i}"
        query, key, value = (linear(x, emo, f"{at}.self_attention.{name}") for name in ("query", "key", "value"))
        seen = (query @ key.transpose(-1, -2) / math.sqrt(3)).softmax(dim=-1) @ value
        y = layer_norm(x + seen, emo, f"{at}.norm1")
        y = layer_norm(y + linear(linear(y, emo, f"{at}.fc.0").clamp(min=0), emo, f"{at}.fc.2"), emo, f"{at}.norm2")
        x = x + y
    return x


def hidden_states(state: State, ids: Tensor, segments: Tensor, images: Tensor, u: Tensor, *, heads: int) -> Tensor:
    """H (N, L, D) after the final norm.

    Args:
        ids, segments: (N, L), indices of the word embeddings.
        images: G (N, P, D), the patches of each text's image after the encoder's final norm.
        u: (N, L, 3), return value of vad_encoder.
    """
    words, positions = state["transformer.wte.weight"], state["transformer.wpe.weight"]
    h = words[ids] + positions[: ids.shape[1]] + words[segments]
    fused = linear(torch.cat([h, u], dim=-1), state, "transformer.VAD_linear")
    h = torch.cat([h[:, :BLOCK], fused[:, BLOCK:]], dim=1)
    blocks = len({name.split(".")[2] for name in state if name.startswith("transformer.h.")})
    for i in range(blocks):
        at = f"transformer.h.{i}"
        mixed = conv1d(layer_norm(h, state, f"{at}.ln_1"), state, f"{at}.attn.c_attn").chunk(3, dim=-1)
        h = h + conv1d(attend(*mixed, heads=heads, causal=True), state, f"{at}.attn.c_proj")
        query = conv1d(layer_norm(h, state, f"{at}.ln_cross_attn"), state, f"{at}.crossattention.q_attn")
        key, value = conv1d(images, state, f"{at}.crossattention.c_attn").chunk(2, dim=-1)
        seen = attend(query, key, value, heads=heads, causal=False)
        h = h + conv1d(seen, state, f"{at}.crossattention.c_proj")
        inner = gelu_new(conv1d(layer_norm(h, state, f"{at}.ln_2"), state, f"{at}.mlp.c_fc"))
        h = h + conv1d(inner, state, f"{at}.mlp.c_proj")
    return layer_norm(h, state, "transformer.ln_f")


def logits(state: State, hidden: Tensor) -> Tensor:
    return hidden @ state["transformer.wte.weight"].T


def fit(state: State, image: Tensor, emotion: Tensor, explanation: Tensor) -> Tensor:
    """The ternary similarity of three (N, D) → (N,)."""
    x = torch.cat([image, emotion, explanation], dim=-1)
    for i in (0, 2, 4, 6):
        x = linear(x, state, f"sim_mlp.pred.{i}").clamp(min=0)
    return linear(x, state, "sim_mlp.pred.8").squeeze(-1)


# ---------------------------------------------------------------------------------------------------- training


@dataclass(frozen=True)
class Framed:
    """Training texts of LENGTH positions each."""

    ids: Tensor  # (N, L)
    segments: Tensor  # (N, L) ids of <emotion> and <explanation>
    labels: Tensor  # (N, L)


def frame(texts: Sequence[tuple[Sequence[int], Sequence[int]]], *, eos: int, base: int) -> Framed:
    """texts: pairs of (prompt words and emotion, "because" and explanation) in ids; base: size of the base vocabulary,
    which the four special tokens follow."""
    pad, _, emotion, explanation = range(base, base + len(SPECIAL))
    rows: list[tuple[list[int], list[int], list[int]]] = []
    for named, explanation_ids in texts:
        ids = [eos, *named, *explanation_ids, eos]
        pads = max(0, LENGTH - len(ids))
        segments = [emotion] * (1 + len(named)) + [explanation] * LENGTH
        labels = [IGNORED, *ids[1:]] + [IGNORED] * pads
        rows.append(((ids + [pad] * pads)[:LENGTH], segments[:LENGTH], labels[:LENGTH]))
    return Framed(*(torch.tensor(column) for column in zip(*rows, strict=True)))


@dataclass(frozen=True)
class Outcome:
    """Outputs and losses of one batch."""

    hidden: Tensor  # (N, L, D)
    logits: Tensor  # (N, L, V)
    vad: Tensor  # (N, L, 3) of the head; the state at t predicts the token at t + 1
    scores: Tensor  # (N, 3) true explanation, that of the same image's other text, that of another image
    caption_loss: Tensor
    vad_loss: Tensor
    contrastive_loss: Tensor

    @property
    def total(self) -> Tensor:
        return self.caption_loss + self.vad_loss + self.contrastive_loss


def outcome(
    state: State, emo: State, framed: Framed, images: Tensor, vad: Tensor, partner: Tensor, other: Tensor, *, heads: int
) -> Outcome:
    """images (N, P, D), one per text; vad (N, L, 3) of the tokens; partner, other: (N,) rows of the two false
    explanations."""
    hidden = hidden_states(state, framed.ids, framed.segments, images, vad_encoder(emo, vad), heads=heads)
    predicted = linear(hidden, state, "VAD_head")
    explanation = hidden[:, BLOCK:].mean(dim=1)  # includes padding
    image, emotion = images.mean(dim=1), hidden[:, :BLOCK].mean(dim=1)
    scores = torch.stack(
        [fit(state, image, emotion, x) for x in (explanation, explanation[partner], explanation[other])], dim=1
    )
    return Outcome(
        hidden=hidden,
        logits=logits(state, hidden),
        vad=predicted,
        scores=scores,
        caption_loss=caption_loss(logits(state, hidden), framed.labels),
        vad_loss=vad_loss(predicted, vad),
        contrastive_loss=contrastive_loss(scores),
    )


def caption_loss(scores: Tensor, labels: Tensor) -> Tensor:
    """Mean cross entropy: the state at t predicts the token at t + 1."""
    log_probs = scores[:, :-1] - scores[:, :-1].logsumexp(dim=-1, keepdim=True)
    rows, columns = torch.nonzero(labels[:, 1:] != IGNORED, as_tuple=True)
    return -log_probs[rows, columns, labels[rows, columns + 1]].mean()


def vad_loss(predicted: Tensor, vad: Tensor) -> Tensor:
    """States BLOCK − 1 … L − 2 against the tokens BLOCK … L − 1 that have a value; NaN if none has."""
    states, targets = predicted[:, BLOCK - 1 : -1], vad[:, BLOCK:]
    kept = (targets != 0).any(dim=-1)
    return (states[kept] - targets[kept]).square().mean()


def contrastive_loss(scores: Tensor, epsilon: float = 1e-8) -> Tensor:
    """scores (N, 3), the true one first; raw exponentials, as published."""
    powers = scores.exp()
    return -(epsilon + powers[:, 0] / (epsilon + powers.sum(dim=1))).log().mean()


# ---------------------------------------------------------------------------------------------------- writing


@dataclass(frozen=True)
class Writer:
    """Greedy generation that recomputes everything at each token.

    Args:
        vad_of: L ids → VAD of these tokens (L, 3).
        because: id of the token with which the explanation begins.
        base: as in `frame`.
    """

    state: State
    emo: State
    vad_of: Callable[[list[int]], Tensor]
    because: int
    base: int
    heads: int

    def following(self, image: Tensor, ids: list[int]) -> Tensor:
        """G (P, D) and the text so far → logits (V,) of the next token."""
        emotion, explanation = (self.base + SPECIAL.index(name) for name in ("<emotion>", "<explanation>"))
        before = ids.index(self.because) if self.because in ids else len(ids)
        segments = [emotion] * before + [explanation] * (len(ids) - before)
        u = vad_encoder(self.emo, self.vad_of(ids)[None])
        texts = torch.tensor([ids]), torch.tensor([segments])
        hidden = hidden_states(self.state, *texts, image[None], u, heads=self.heads)
        return logits(self.state, hidden)[0, -1]

    def write(self, image: Tensor, prompt: Sequence[int]) -> list[int]:
        """Return the STEPS most likely tokens after `prompt`, without stopping earlier."""
        ids = list(prompt)
        for _ in range(STEPS):
            ids.append(int(self.following(image, ids).argmax()))
        return ids[len(prompt) :]


def clean_up(text: str) -> str:
    """Clean up a decoded text as transformers did at the time."""
    for spaced in (" .", " ?", " !", " ,"):
        text = text.replace(spaced, spaced[1:])
    text = text.replace(" ' ", "'")
    for spaced in (" n't", " 'm", " 's", " 've", " 're"):
        text = text.replace(spaced, spaced[1:])
    return text


def read(tokens: Sequence[int], decode: Callable[[list[int]], str], *, eos: int, base: int) -> tuple[str, str, str]:
    """Return emotion, explanation and full text of STEPS tokens; without a special token the last is dropped."""
    special = {eos, *range(base, base + len(SPECIAL))}
    end = next((i for i, token in enumerate(tokens) if token in special), STEPS - 1)
    full = clean_up(decode(list(tokens[:end]))).lstrip()
    parts = full.split("because")
    explanation = parts[-1].strip() if len(parts) > 1 else " ".join(full.split()[2:])
    return parts[0].strip(), explanation or "<unk>", full


# ---------------------------------------------------------------------------------------------------- weights


def decoder_shapes(*, n_layer: int = 6, d: int = 768, vocabulary: int = 50261, positions: int = 1024) -> dict:
    """Return name → shape of every weight, without buffers and the output matrix, which is the word embedding."""
    shapes: dict[str, tuple[int, ...]] = {
        "transformer.wte.weight": (vocabulary, d),
        "transformer.wpe.weight": (positions, d),
        "transformer.VAD_linear.weight": (d, d + 3),
        "transformer.VAD_linear.bias": (d,),
    }
    maps = {"attn.c_attn": (d, 3 * d), "attn.c_proj": (d, d), "mlp.c_fc": (d, 4 * d), "mlp.c_proj": (4 * d, d)}
    maps |= {f"crossattention.{name}": (d, w) for name, w in (("c_attn", 2 * d), ("q_attn", d), ("c_proj", d))}
    for i in range(n_layer):
        for name in ("ln_1", "ln_2", "ln_cross_attn"):
            shapes |= {f"transformer.h.{i}.{name}.{end}": (d,) for end in ("weight", "bias")}
        for name, shape in maps.items():
            shapes |= {f"transformer.h.{i}.{name}.weight": shape, f"transformer.h.{i}.{name}.bias": shape[1:]}
    shapes |= {f"transformer.ln_f.{end}": (d,) for end in ("weight", "bias")}
    for i, (out, into) in {0: (d, 3 * d), 2: (d, d), 4: (d, d), 6: (d, d), 8: (1, d)}.items():
        shapes |= {f"sim_mlp.pred.{i}.weight": (out, into), f"sim_mlp.pred.{i}.bias": (out,)}
    return shapes | {"VAD_head.weight": (3, d), "VAD_head.bias": (3,)}


def vad_encoder_shapes(*, layers: int = 3, hidden: int = 128, positions: int = 5000) -> dict:
    shapes: dict[str, tuple[int, ...]] = {"pos_encoder.weight": (positions, 3), "norm.weight": (3,), "norm.bias": (3,)}
    maps = {f"self_attention.{name}": (3, 3) for name in ("query", "key", "value")}
    maps |= {"fc.0": (hidden, 3), "fc.2": (3, hidden), "norm1": (3,), "norm2": (3,)}
    for i in range(layers):
        for name, shape in maps.items():
            shapes |= {f"encoder.layers.{i}.{name}.weight": shape, f"encoder.layers.{i}.{name}.bias": shape[:1]}
    return shapes | {"decoder.weight": (1, 3), "decoder.bias": (1,)}


def random_state(
    generator: torch.Generator, *, n_layer: int, d: int, vocabulary: int, positions: int, spread: float = 0.2
) -> State:
    """Return a decoder; vocabulary includes the four special tokens."""
    shapes = decoder_shapes(n_layer=n_layer, d=d, vocabulary=vocabulary, positions=positions)
    return _random(shapes, generator, spread)


def random_vad_encoder(generator: torch.Generator, *, spread: float = 0.5) -> State:
    return _random(vad_encoder_shapes(), generator, spread) | {
        "pos_encoder.weight": torch.randn(5000, 3, generator=generator)
    }


def _random(shapes: dict, generator: torch.Generator, spread: float) -> State:
    """Return random weights, including norms, so that any exchange or omission is noticed."""
    state = {}
    for name, shape in shapes.items():
        noise = spread * torch.randn(shape, generator=generator)
        state[name] = 1 + noise if name.endswith("weight") and len(shape) == 1 else noise
    return state


def with_buffers(state: State) -> State:
    """Return the state as published: with causal masks, their constants and the tied output matrix."""
    out = dict(state)
    positions = len(state["transformer.wpe.weight"])
    for i in range(len({name.split(".")[2] for name in state if name.startswith("transformer.h.")})):
        for part in ("attn", "crossattention"):
            mask = torch.ones(positions, positions, dtype=torch.uint8).tril().view(1, 1, positions, positions)
            out |= {
                f"transformer.h.{i}.{part}.bias": mask,
                f"transformer.h.{i}.{part}.masked_bias": torch.tensor(-1e4),
            }
    return out | {"lm_head.weight": state["transformer.wte.weight"]}


# ---------------------------------------------------------------------------------------------------- files


def write_official(
    folder: Path, state: State, emo: State, *, tokenizer: Path, heads: int, name: str = "best-res"
) -> Path:
    """Write a folder in the published layout: the decoder, its tokenizer, and the rest of the training state.

    Args:
        tokenizer: folder with the base vocabulary's vocab.json and merges.txt.
        name: best-res or best-acc.
    """
    model = folder / f"nle_model_{name}"
    model.mkdir(parents=True, exist_ok=True)
    torch.save(with_buffers(state), model / "pytorch_model.bin")
    eos = json.loads((tokenizer / "vocab.json").read_text(encoding="utf-8"))["<|endoftext|>"]
    _write_json(model / "config.json", _config(state, heads, eos))
    _write_tokenizer(folder / "nle_gpt2_tokenizer_0", tokenizer)
    torch.save(_training(emo), folder / f"ckpt_stats_{name}.tar")
    return folder


def _config(state: State, heads: int, eos: int) -> dict:
    vocabulary, d = state["transformer.wte.weight"].shape
    positions = len(state["transformer.wpe.weight"])
    layers = len({name.split(".")[2] for name in state if name.startswith("transformer.h.")})
    return {
        "_name_or_path": "ckpts/captioning_pretrain/nle_model_0", "activation_function": "gelu_new",
        "add_cross_attention": True, "architectures": ["GPT2LMHeadModel"], "attn_pdrop": 0.1, "bos_token_id": eos,
        "embd_pdrop": 0.1, "encoder_dim": d, "eos_token_id": eos, "img_size": 224, "initializer_range": 0.02,
        "layer_norm_epsilon": 1e-05, "len_prefix": 0, "max_seq_len": 70, "model_type": "gpt2", "n_ctx": positions,
        "n_embd": d, "n_head": heads, "n_inner": None, "n_layer": layers, "n_positions": positions, "num_emotion": 9,
        "prefix_size": d, "resid_pdrop": 0.1, "scale_attn_weights": True, "torch_dtype": "float32",
        "transformers_version": "4.18.0", "use_VAD_loss": True, "use_cache": True, "use_cl_loss": True,
        "use_distribution_loss": False, "vocab_size": vocabulary,
    }  # fmt: skip


def _write_tokenizer(folder: Path, base: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for file in ("vocab.json", "merges.txt"):
        shutil.copy(base / file, folder / file)
    size = len(json.loads((base / "vocab.json").read_text(encoding="utf-8")))
    end = {"content": "<|endoftext|>", "lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
    roles = {"bos_token": end, "eos_token": end, "unk_token": end}
    _write_json(folder / "added_tokens.json", {token: size + i for i, token in enumerate(SPECIAL)})
    _write_json(
        folder / "special_tokens_map.json",
        roles | {"pad_token": SPECIAL[0], "additional_special_tokens": list(SPECIAL[1:])},
    )
    typed = {role: {"__type": "AddedToken", **token} for role, token in roles.items()}
    extra = {"add_prefix_space": False, "errors": "replace", "model_max_length": 1024, "name_or_path": "gpt2"}
    _write_json(folder / "tokenizer_config.json", typed | extra | {"tokenizer_class": "GPT2Tokenizer"})


def _training(emo: State) -> dict:
    moments = {"step": 7, "exp_avg": torch.zeros(3, 3), "exp_avg_sq": torch.zeros(3, 3)}
    group = {"lr": 4e-5, "betas": (0.9, 0.999), "eps": 1e-6, "weight_decay": 0.0, "correct_bias": True, "params": [0]}
    return {
        "epoch": 12,
        "optimizer_state_dict": {"state": {0: moments}, "param_groups": [group]},
        "scheduler": {"base_lrs": [4e-5], "last_epoch": 7, "_step_count": 8, "lr_lambdas": [None]},
        "best_acc": np.float64(0.625),
        "best_res": 0.0625,
        "emo_encoder_state_dict": emo,
    }


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")
