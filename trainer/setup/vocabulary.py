"""The configured tokenizer, and whether it is the one that the language model was pretrained with."""

from __future__ import annotations

from omegaconf import DictConfig
from transformers import PreTrainedTokenizerFast
from transformers.configuration_utils import PretrainedConfig

from common.errors import UserError
from data.tokenizer import load_tokenizer
from data.tokenizer_files import bundled_tokenizer, resolve_tokenizer

PADDING = 0.05  # share of rows that an embedding may have beyond the tokenizer's tokens, or lack


def configured_tokenizer(config: DictConfig) -> PreTrainedTokenizerFast:
    """Load the tokenizer of a new network.

    Raises:
        UserError: see load_tokenizer; or its ids would select embeddings that the language model learned for others.
    """
    text = config.model.text
    name = resolve_tokenizer(config.dataset.tokenizer, text.pretrained_name)
    tokenizer = load_tokenizer(name)
    if config.dataset.tokenizer == "auto" or text.pretrained_name is None or text.new_vocabulary:
        return tokenizer
    if difference := _difference(tokenizer, text.pretrained_name):
        raise UserError(
            f"dataset.tokenizer={name} is not the tokenizer of model.text.pretrained_name={text.pretrained_name} "
            f"({difference}), so its tokens would have the embeddings of others: set dataset.tokenizer=auto, or "
            "model.text.new_vocabulary=true to learn them anew"
        )
    return tokenizer


def _difference(tokenizer: PreTrainedTokenizerFast, pretrained_name: str) -> str | None:
    """Return how a tokenizer differs from the language model's, except by tokens added at the end; None if it does not.

    Without the language model's tokenizer, the numbers of tokens are compared.
    """
    bundled = bundled_tokenizer(pretrained_name)
    if bundled == tokenizer.name_or_path:
        return None
    try:
        own = None if bundled is None else load_tokenizer(bundled)
    except UserError:
        own = None
    if own is not None:
        names = {index: token for token, index in own.get_vocab().items()}
        other = {i: token for token, i in tokenizer.get_vocab().items() if names.get(i, token) != token}
        first = min(other, default=None)
        return None if first is None else f"token {first} is {other[first]!r} instead of {names[first]!r}"
    try:
        size = PretrainedConfig.get_config_dict(pretrained_name)[0].get("vocab_size")
    except Exception:  # many kinds; the network's builder explains it
        size = None
    if not isinstance(size, int) or abs(len(tokenizer) - size) <= PADDING * size:
        return None
    return f"it has {len(tokenizer):,} tokens instead of {size:,}"
