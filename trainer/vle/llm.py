"""Answers in a sentence: caption, question and VLE's candidates → a prompt → a language model.

The language model does not receive the picture. It is behind an OpenAI-compatible API or on this machine. After the
workflow "VQA + LLM" of github.com/iflytek/VLE; the prompts are in other words.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from accelerate import Accelerator
from omegaconf import DictConfig

from common.config.rules import VLE_STAGES
from common.endpoint import Endpoint, Failed, Refused, Words
from common.errors import UserError, shorten
from common.progress import progress
from common.reading import expand_user
from data.image_files import id_of
from data.samples import Samples
from data.schema import Sample
from trainer.prediction.command import predict_all, results
from trainer.runs.checkpoint import find_checkpoint
from trainer.runs.console import print_status
from trainer.setup.from_checkpoint import complete_from_checkpoint

LETTERS = "ABCD"  # of the candidates
LETTER = re.compile(  # "B", "(b)", "B. ship", "The right answer is B", and not "A ship"
    rf"\W*(?:the\s+)?(?:correct\s+|right\s+)?(?:answer|option)?(?:\s+is)?\W*([{LETTERS}])(?:\W*|\s*[).:,\]*\n–-].*)",
    re.IGNORECASE | re.DOTALL,
)
TIMEOUT, RETRIES, PARALLEL = 120.0, 3, 4  # seconds of a request; of a failed request; concurrent requests
WORDS = Words(
    endpoint="vle.llm.endpoint",
    model="vle.llm.model",
    sent="questions",
    encrypted="use https, or a server on this machine",
    too_large="shorten the question or the caption",
    rejected="check vle.llm.model={model} and vle.llm.max_tokens",
)
SHORT = """{picture}Question about the picture: {question}
One of these answers is right:
{candidates}
Reply with the letter of the right answer only.
Answer:"""
LONG = """{picture}Question about the picture: {question}
An image recognition model proposes these answers, each with its confidence:
{candidates}
They may all be wrong. Write one sentence that answers the question correctly, in agreement with everything above.
Answer:"""

Keep = Callable[[int, str], None]  # number of a prompt, and the answer to it
Captions = Mapping[str, str]  # by path of the picture


def check_settings(config: DictConfig, pictures: int) -> None:
    """Raise UserError if the keys vle.llm contradict each other, the stage, or the number of pictures."""
    settings = config.vle.llm
    if config.stage != "vle_vqa":
        raise UserError(f"vle.llm.style={settings.style} needs a run of stage=vle_vqa, not {config.stage}")
    if settings.model is None:
        raise UserError(
            f"vle.llm.style={settings.style} needs vle.llm.model: a folder or name of a causal language model, or with "
            "vle.llm.endpoint=URL the model's name there"
        )
    if settings.caption is not None and settings.captioner is not None:
        raise UserError("vle.llm.caption and vle.llm.captioner both give the caption: leave one of them out")
    if settings.caption is not None and pictures > 1:
        raise UserError(
            f"vle.llm.caption is of one picture, and image={config.image} has {pictures}: use vle.llm.captioner=RUN"
        )


def read_captions(config: DictConfig, pictures: Sequence[Path], accelerator: Accelerator) -> Captions:
    """Return the captions of the pictures that could be read; {} without a captioner, and in all ranks but the first.

    Raises:
        UserError: see complete_from_checkpoint and predict_all; the run is none of a captioner.
    """
    settings = config.vle.llm
    if settings.caption is not None:
        return {id_of(path): settings.caption for path in pictures}
    if settings.captioner is None:
        return {}
    checkpoint = find_checkpoint(settings.captioner, Path(config.trainer.exp_dir), key="vle.llm.captioner")
    stage = checkpoint.config.get("stage", "caption")
    if stage in VLE_STAGES:
        raise UserError(f"vle.llm.captioner={settings.captioner} is of stage={stage}: name a captioner's run")
    config = complete_from_checkpoint(config, checkpoint)
    config.stage, config.emotion, config.top_emotions, config.dataset.feature_cache = stage, None, 1, None
    labels = tuple(config.dataset.labels)
    samples = Samples.pack((Sample(id=id_of(path), path=path.resolve(), texts=()) for path in pictures), labels)
    with TemporaryDirectory() as folder:
        unfinished, *_ = predict_all(config, checkpoint, samples, Path(folder), accelerator, overwrite=True)
        if not accelerator.is_main_process:
            return {}
        rows = results(unfinished, [], none=f"image={config.image}: none of its pictures could be read")
        return {row["id"]: row["text"] for row in rows if row["text"]}


def write_prompt(style: str, question: str, candidates: Sequence[Mapping[str, Any]], caption: str | None) -> str:
    """Return the prompt.

    Args:
        style: "short" asks for the letter of a candidate; "long" for a sentence, and gives the candidates' scores.
        candidates: {"answer": text, "score": probability}, best first; those beyond LETTERS are left out.
    """
    if style == "short":
        lines = [f"{letter}. {some['answer']}" for letter, some in zip(LETTERS, candidates, strict=False)]
    else:
        lines = [f"- {some['answer']}: {some['score']:.0%}" for some in candidates[: len(LETTERS)]]
    picture = f"Description of a picture: {caption}\n" if caption else ""
    return (SHORT if style == "short" else LONG).format(picture=picture, question=question, candidates="\n".join(lines))


def read_choice(text: str, candidates: Sequence[Mapping[str, Any]]) -> str | None:
    """Return the candidate whose letter the text names; None if it is no letter of theirs."""
    found = LETTER.fullmatch(text)
    number = LETTERS.index(found[1].upper()) if found else len(candidates)
    return candidates[number]["answer"] if number < len(candidates) else None


def add_answers(
    rows: Sequence[dict[str, Any]], captions: Captions, config: DictConfig, device: torch.device
) -> UserError | None:
    """Add "caption", "llm_answer" and, in the short style, "llm_choice" to the rows; None where there is none.

    Returns:
        the fault that ended it; the answers so far are in the rows.
    """
    settings, short = config.vle.llm, config.vle.llm.style == "short"
    for row in rows:
        caption = captions.get(id_of(row["image"]))
        row |= {"caption": caption, "llm_answer": None} | ({"llm_choice": None} if short else {})
    prompts = [write_prompt(settings.style, row["question"], row["candidates"], row["caption"]) for row in rows]
    try:
        answer = open_model(settings, device)
        with progress(len(rows), "language model", unit="answer") as bar:

            def keep(number: int, text: str) -> None:
                rows[number]["llm_answer"] = text.strip() or None
                if short:
                    rows[number]["llm_choice"] = read_choice(text, rows[number]["candidates"])
                bar.update()

            answer(prompts, keep)
    except UserError as error:
        return error
    _print_counts(rows, short=short)
    return None


def _print_counts(rows: Sequence[Mapping[str, Any]], *, short: bool) -> None:
    if missing := sum(row["llm_answer"] is None for row in rows):
        print_status(f"the language model gives no answer for {missing} of {len(rows)} pictures")
    if short and (other := sum(bool(row["llm_answer"]) and row["llm_choice"] is None for row in rows)):
        print_status(f"{other} of {len(rows)} answers of the language model are no letter of a candidate")


def open_model(settings: DictConfig, device: torch.device) -> Callable[[Sequence[str], Keep], None]:
    """Return the function that passes the answer to each prompt to `keep`.

    Raises:
        UserError: see Endpoint and load_language_model.
    """
    if settings.endpoint is None:
        return partial(write_answers, settings, *load_language_model(settings.model, device))
    options = {"timeout": TIMEOUT, "retries": RETRIES, "max_tokens": settings.max_tokens, "words": WORDS}
    return partial(request_answers, Endpoint(settings.endpoint, model=settings.model, **options))


def request_answers(endpoint: Endpoint, prompts: Sequence[str], keep: Keep) -> None:
    """Request the answers in parallel; a prompt that the model refuses has none.

    Raises:
        UserError: the endpoint cannot be used.
    """
    remaining = iter([*enumerate(prompts)])

    async def work() -> None:
        for number, prompt in remaining:
            try:
                reply = await endpoint.complete([{"role": "user", "content": prompt}])
            except Refused:
                continue
            keep(number, reply.text)

    async def work_in_parallel() -> None:
        async with endpoint.client:
            await asyncio.gather(*(work() for _ in range(PARALLEL)))

    try:
        asyncio.run(work_in_parallel())
    except Failed as error:
        raise UserError(str(error)) from None


def write_answers(settings: DictConfig, tokenizer: Any, model: Any, prompts: Sequence[str], keep: Keep) -> None:
    """Decode the answers of a local model greedily, in its chat template if it has one.

    Raises:
        UserError: a prompt is too long for the model.
    """
    longest = getattr(model.config, "max_position_embeddings", None) or 1 << 30
    padding = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    for number, prompt in enumerate(prompts):
        if chat := bool(tokenizer.chat_template):
            turns = [{"role": "user", "content": prompt}]
            prompt = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
        inputs = tokenizer(prompt, add_special_tokens=not chat, return_tensors="pt").to(model.device)
        length = inputs["input_ids"].shape[1]
        if length >= longest:
            raise UserError(
                f"vle.llm.model={settings.model} reads at most {longest} tokens, and a prompt has {length}: shorten "
                "the question or the caption"
            )
        found = model.generate(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            max_new_tokens=min(settings.max_tokens, longest - length),
            pad_token_id=padding,
            do_sample=False,
            **dict.fromkeys(("temperature", "top_p", "top_k")),  # of a stored configuration: warned of, without effect
        )
        keep(number, tokenizer.decode(found[0, length:], skip_special_tokens=True))


def load_language_model(name: str, device: torch.device) -> tuple[Any, Any]:
    """Return tokenizer and model of a folder, or of the hub or its cache; code that comes with them is not executed.

    Raises:
        UserError: it cannot be found or read, or is no causal language model.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer  # imported here: an endpoint does without

    path = expand_user(name)
    place = str(path) if path.is_dir() else name
    try:
        tokenizer = AutoTokenizer.from_pretrained(place, trust_remote_code=False)
        model = AutoModelForCausalLM.from_pretrained(place, dtype="auto", trust_remote_code=False)
    except Exception as error:  # transformers, huggingface_hub and the file formats raise many kinds
        raise UserError(
            f"vle.llm.model={name}: no causal language model can be loaded ({shorten(error)}); name a folder with its "
            "weights and tokenizer, or give vle.llm.endpoint=URL"
        ) from error
    return tokenizer, model.to(device).eval()
