"""What a VLM answers: the probability of given answers, generated ones, and the tokens of the picture.

Axes: B pictures, C answers, P tokens of a prompt, L tokens of the longest answer, D width of the language model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from common.errors import UserError
from model.vlm.chat import Chat, Messages

CACHE = ("cache", "past_key_values")  # transformers' name of the keys and values: since 5.24, and before


class Scored(NamedTuple):
    log_probs: Tensor  # (C,) of the answers
    picture: Tensor  # (D,) mean of the picture's tokens as the language model receives them


class Answerer:
    """Answers questions about pictures, one conversation per picture.

    Args:
        network: as loaded by model.vlm.loading, possibly with LoRA.
    """

    def __init__(self, network: nn.Module, chat: Chat) -> None:
        self.network, self.chat = network, chat

    @property
    def base(self) -> nn.Module:
        return self.network.get_base_model() if hasattr(self.network, "get_base_model") else self.network

    @property
    def width(self) -> int:
        return self.base.config.get_text_config().hidden_size

    @property
    def image_token(self) -> int:
        return getattr(self.base.config, "image_token_id", None) or self.chat.processor.image_token_id

    @torch.no_grad()
    def score(self, picture: Image.Image, messages: Messages, answers: Sequence[str]) -> Scored:
        """Return log p(answer and end of turn | prompt) of each answer, and the picture's mean token.

        The prompt is read once; the answers continue from its keys and values. A picture at a time, hence without
        padding, so that the result depends on nothing else.
        """
        continuations, cut = self.chat.continuations(messages, answers)
        inputs = self._moved(self.chat.inputs([self.chat.render(messages)[0]], [picture], side="left"))
        inputs = _shortened(inputs, cut)
        with _Received(self.base, inputs["input_ids"] == self.image_token) as received:
            first = self.network(**inputs, use_cache=True, logits_to_keep=1)
        ids = pad_sequence(continuations, batch_first=True).to(first.logits.device)  # (C, L)
        lengths = torch.tensor([len(some) for some in continuations], device=ids.device)
        logits = first.logits.expand(len(ids), -1, -1)
        if ids.shape[1] > 1:
            key = next(name for name in CACHE if name in first)
            first[key].batch_repeat_interleave(len(ids))
            rest = self.network(input_ids=ids[:, :-1], **{key: first[key]})  # unmasked: padding comes last
            logits = torch.cat([logits, rest.logits], dim=1)
        log_probs = logits.float().log_softmax(dim=-1).gather(-1, ids[..., None])[..., 0]
        real = torch.arange(ids.shape[1], device=ids.device) < lengths[:, None]
        return Scored((log_probs * real).sum(dim=1), received.mean)

    @torch.no_grad()
    def picture_token(self, picture: Image.Image, messages: Messages) -> Tensor:
        """Return the picture's mean token (D,) without running the language model."""
        inputs = self._moved(self.chat.inputs([self.chat.render(messages)[0]], [picture], side="left"))
        with _Received(self.base, inputs["input_ids"] == self.image_token, stop=True) as received:
            self.network(**inputs, use_cache=False, logits_to_keep=1)
        return received.mean

    @torch.no_grad()
    def generate(self, pictures: Sequence[Image.Image], messages: Sequence[Messages], **options: Any) -> list[str]:
        """Return the answer to each picture's messages; options: of transformers' generate."""
        texts = [self.chat.render(some)[0].rstrip(" ") for some in messages]  # a space is part of the answer's token
        inputs = self._moved(self.chat.inputs(texts, pictures, side="left"))
        stop, tokenizer = self.base.generation_config.eos_token_id, self.chat.processor.tokenizer
        stop = {self.chat.end_of_turn(), *(stop if isinstance(stop, list) else [stop])} - {None}
        pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else min(stop)
        made = self.network.generate(**inputs, eos_token_id=sorted(stop), pad_token_id=pad, **options)
        texts = tokenizer.batch_decode(made[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        return [text.strip() for text in texts]

    def _moved(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Return the inputs on the network's device, pixels in its precision."""
        parameter = next(self.network.parameters())
        return {
            name: value.to(parameter.device, parameter.dtype if value.is_floating_point() else None)
            for name, value in inputs.items()
        }


def _shortened(inputs: Mapping[str, Tensor], cut: int) -> dict[str, Tensor]:
    """Return the inputs without the last `cut` tokens of the prompt."""
    shape = inputs["input_ids"].shape
    return {k: v[:, : shape[1] - cut] if cut and v.shape[:2] == shape else v for k, v in inputs.items()}


class _Stop(Exception):
    pass


class _Received:
    """Context that keeps the mean of the embeddings which the language model receives at the picture's tokens.

    Any family of transformers puts the visual tower's merged tokens there, so the mean is that of the whole picture,
    whatever the number of its tiles or patches.

    Args:
        where: (1, P) True at the picture's tokens.
        stop: end the forward pass there.
    """

    def __init__(self, base: nn.Module, where: Tensor, *, stop: bool = False) -> None:
        self.decoder, self.where, self.stop, self.mean = base.get_decoder(), where, stop, None

    def __enter__(self) -> _Received:
        self._hook = self.decoder.register_forward_pre_hook(self._keep, with_kwargs=True)
        return self

    def __exit__(self, kind: type | None, *_: object) -> bool:
        self._hook.remove()
        return kind is _Stop

    def _keep(self, module: nn.Module, args: tuple, options: dict[str, Any]) -> None:
        embeddings = options.get("inputs_embeds")
        if embeddings is None or not self.where.any():
            raise UserError("vlm.pretrained_name: this model does not read pictures as tokens among its words")
        self.mean = embeddings[0][self.where[0]].float().mean(dim=0)
        if self.stop:
            raise _Stop
