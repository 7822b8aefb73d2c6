"""Initialize SEVLM's decoder from NLX-GPT (Sammani et al., CVPR 2022, arXiv 2203.05081).

    pretrain_model_14/      config.json, pytorch_model.bin: GPT-2 with cross-attention in every block
    pretrain_tokenizer_0/   optional, next to it: added_tokens.json, <pad> <question> <answer> <explanation>

SEVLM was trained from NLX-GPT's captioning weights. The network is SEVLM's without fusion and heads. Its four added
tokens become SEVLM's: <question> becomes <prefix>, <answer> becomes <emotion>. Its cross-attention lies inside the
blocks, so only preset=sevlm can use it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import GPT2Config

from common.errors import UserError
from common.reading import expand_user
from model.weights.gpt2_layout import gpt2_layout, gpt2_of, is_gpt2_buffer, read_gpt2_settings, tied_head
from model.weights.layout import Tensors
from model.weights.plain import read_object, read_state, weights_file

TOKENS = ("<pad>", "<question>", "<answer>", "<explanation>")  # in the order of SEVLM's tokens
TOKENIZERS = ("pretrain_tokenizer_0", "nle_gpt2_tokenizer_0")
GPT2 = "transformer."


def is_nlxgpt(folder: str | Path) -> bool:
    """Return whether the config.json of `folder` is of a GPT-2 with cross-attention; False if there is none."""
    path = expand_user(folder) / "config.json"
    try:
        return path.is_file() and read_object(path).get("add_cross_attention") is True
    except UserError:
        return False


def nlxgpt_error(folder: str | Path) -> UserError:
    """Return the error for an architecture other than SEVLM's."""
    return UserError(
        f"model.text.pretrained_name: {folder} holds NLX-GPT, whose cross-attention lies inside GPT-2's blocks; only "
        "preset=sevlm (model.architecture=sevlm) can start from it"
    )


def nlxgpt_settings(folder: str | Path) -> dict[str, Any]:
    """Return the keys of model.text.config for the decoder in `folder`.

    Raises:
        UserError: a file is missing, damaged or refused, or the weights are not those of such a decoder.
    """
    folder = expand_user(folder)
    _, gpt2 = _tensors(folder)
    return read_gpt2_settings(gpt2, folder / "config.json")


def nlxgpt_state(folder: str | Path, *, vocab_size: int) -> dict[str, Tensor]:
    """Return the decoder's weights by the names of a model.language.LanguageModel with inner cross-attention.

    The output layer is the word embedding, so it is left out. The tensors are memory-mapped.

    Args:
        vocab_size: number of tokens of SEVLM's tokenizer: GPT-2's tokens, then its own four.

    Raises:
        UserError: see `nlxgpt_settings`; or the vocabulary has another size.
    """
    folder = expand_user(folder)
    tensors, gpt2 = _tensors(folder)
    if gpt2.vocab_size != vocab_size:
        raise UserError(
            f"model.text.pretrained_name: {folder} has {gpt2.vocab_size} tokens, four of them its own, but "
            f"dataset.tokenizer has {vocab_size} with SEVLM's four: give the tokenizer that NLX-GPT was trained with"
        )
    weights = tensors.match(gpt2_layout(gpt2, GPT2, "lm.transformer."))
    rows = _token_rows(folder, gpt2.vocab_size)
    if rows != sorted(rows):
        words = weights["lm.transformer.wte.weight"]
        weights["lm.transformer.wte.weight"] = torch.cat([words[: -len(rows)], words[rows]])
    return weights


def _tensors(folder: Path) -> tuple[Tensors, GPT2Config]:
    path = weights_file(folder)
    tensors = Tensors(str(path), read_state(path)).without(matching=is_gpt2_buffer)
    if tensors.has(f"{GPT2}VAD_linear.") or tensors.has("sim_mlp."):
        raise UserError(
            f"model.text.pretrained_name: {folder} holds SEVLM itself, not NLX-GPT; import it as a run with "
            "`python -m model.checkpoint_import sevlm` and start from that (pretrained_name=RUN)"
        )
    tensors = tied_head(tensors, "lm_head.weight", f"{GPT2}wte.weight")
    return tensors, gpt2_of(tensors, GPT2, cross_attention=True)


def _token_rows(folder: Path, vocabulary: int) -> list[int]:
    """Return the rows of TOKENS in the word embedding; raise UserError if they are not the last four."""
    last = list(range(vocabulary - len(TOKENS), vocabulary))
    for place in (folder, *(folder.parent / name for name in TOKENIZERS)):
        if (path := place / "added_tokens.json").is_file():
            added = read_object(path)
            rows = [added.get(token) for token in TOKENS]
            if len(added) != len(TOKENS) or set(rows) != set(last):
                raise UserError(
                    f"{path}: {', '.join(TOKENS)} are not the last four of {vocabulary} tokens, so this is not the "
                    f"tokenizer of {folder}"
                )
            return rows
    return last
