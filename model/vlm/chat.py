"""Messages as inputs of a model: its chat template, its processor, and which tokens are the answer.

A message has a role and a list of parts, {"type": "text", "text": …} or {"type": "image"}.
A conversation has one picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jinja2 import TemplateError
from PIL import Image
from torch import Tensor
from transformers import ProcessorMixin

from common.errors import UserError, shorten

Messages = Sequence[dict[str, Any]]
MARK = "THE-ANSWER"  # stands for the answer while the template is rendered
IGNORED = -100  # label of a token that is not learned


class Chat:
    """Renders conversations and tokenizes them.

    Args:
        name: of the model, for messages.

    Raises:
        UserError: the template fails, or it leaves out the answer or the picture.
    """

    def __init__(self, processor: ProcessorMixin, name: str) -> None:
        self.processor, self.name = processor, name
        question = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "?"}]}]
        if self.render(question) == self.render([{**question[0], "content": question[0]["content"][1:]}]):
            raise UserError(f"vlm.pretrained_name={name}: its chat template leaves out the picture")

    def render(self, messages: Messages) -> tuple[str, str]:
        """Return the text before the answer, and the text after it, which ends with the end of a turn."""
        turns = [*messages, {"role": "assistant", "content": [{"type": "text", "text": MARK}]}]
        try:
            try:
                text = self.processor.apply_chat_template(turns, tokenize=False)
            except TemplateError:  # without a system role: its text goes to the user's turn
                text = self.processor.apply_chat_template(_without_system(turns), tokenize=False)
        except (TemplateError, TypeError, ValueError) as error:
            raise UserError(f"vlm.pretrained_name={self.name}: its chat template fails ({shorten(error)})") from error
        before, found, after = text.rpartition(MARK)
        if not found:
            raise UserError(f"vlm.pretrained_name={self.name}: its chat template leaves out the answer")
        return before, after.strip() or self.processor.tokenizer.eos_token

    def inputs(self, texts: Sequence[str], pictures: Sequence[Image.Image], *, side: str, **options: Any) -> dict:
        """Return the processor's tensors: one picture per text; `side`: where shorter texts are padded."""
        return dict(
            self.processor(
                text=[*texts],
                images=[[picture] for picture in pictures],
                padding=True,
                padding_side=side,
                return_tensors="pt",
                **options,
            )
        )

    def training_inputs(
        self, talks: Sequence[tuple[Messages, str]], pictures: Sequence[Image.Image]
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Return inputs of N conversations with their answers, padded on the right, and labels (N, L).

        Only the answer and the end of its turn have labels, and a token that joins the prompt's end with the answer.
        """
        texts, ends = [], []
        for messages, answer in talks:
            before, after = self.render(messages)
            texts.append(before + answer + after)
            ends.append(len(answer + after))
        inputs = self.inputs(texts, pictures, side="right", return_offsets_mapping=True)
        offsets = inputs.pop("offset_mapping")  # (N, L, 2), in characters of the text with the picture's tokens
        starts = offsets[..., 1].amax(dim=1) - torch.tensor(ends)
        answers = (offsets[..., 1] > starts[:, None]) & inputs["attention_mask"].bool()
        return inputs, torch.where(answers, inputs["input_ids"], IGNORED)

    def continuations(self, messages: Messages, answers: Sequence[str]) -> tuple[list[Tensor], int]:
        """Return the tokens of each answer with the end of its turn, and how many tokens of the prompt they replace.

        Text is tokenized as a whole, so that an answer has the tokens that it has in training: where a tokenizer joins
        the end of the prompt with the answer, those tokens are part of all continuations.
        """
        before, after = self.render(messages)
        ids = self.processor.tokenizer([before, *(before + answer + after for answer in answers)])["input_ids"]
        common = next((i for i, tokens in enumerate(zip(*ids, strict=False)) if len({*tokens}) > 1), len(ids[0]))
        return [torch.tensor(some[common:]) for some in ids[1:]], len(ids[0]) - common

    def end_of_turn(self) -> int:
        """Return the token that ends an answer."""
        (ids,), _ = self.continuations([{"role": "user", "content": [{"type": "text", "text": "?"}]}], [""])
        return int(ids[0])


def _without_system(turns: Messages) -> list[dict[str, Any]]:
    system, user, *others = turns if turns[0]["role"] == "system" else [None, *turns]
    return [*([{**user, "content": [*system["content"], *user["content"]]}] if system else [user]), *others]
