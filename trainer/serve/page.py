"""The page of mode=serve, made of Gradio's components."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr
import torch
from omegaconf import DictConfig

from common.errors import UserError
from common.html import percent, render
from data.emotion_colors import colors_of
from data.images import suffixes
from trainer.interface import EmoScribe, Explanation
from trainer.serve.worker import Worker, decode

if TYPE_CHECKING:
    from trainer.interface.vle import Vle

TEMPLATES = Path(__file__).parent / "templates"
THEME = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"])  # nothing from other hosts
CSS = "h3 {margin: .8rem 0 .4rem; font-size: 1rem} #reason {padding: .8rem; font-size: 1.15rem}"
MOST_FILES = 100
FUSED, LANGUAGE, EXPERT = "both", "language model", "expert"
SOURCES = {LANGUAGE: "language_model", EXPERT: "student"}  # names in the rows of predictions.json
UNFAMILIAR = "\n\n*Unlike the pictures that the network was trained on: a guess.*"


class Page:
    """Handlers of the page's events; each waits for the worker and shows a UserError as a message.

    Args:
        settings: the section `serve`.
        vle: answers questions about pictures, in a tab of their own.
    """

    def __init__(self, worker: Worker, settings: DictConfig, vle: Vle | None = None) -> None:
        self.worker, self.settings, self.vle = worker, settings, vle

    def open(self, path: str) -> Any:
        return decode(Path(path), max_pixels=self.settings.max_pixels)

    def wait(self, request: Callable[[], Future]) -> Any:
        try:
            return request().result(self.settings.timeout)
        except TimeoutError:
            raise gr.Error("This takes longer than serve.timeout.", print_exception=False) from None
        except UserError as error:
            raise gr.Error(str(error), print_exception=False) from None

    def explain(self, path: str | None, emotion: str | None, count: int) -> tuple[Explanation | None, str, str]:
        """Return the explanation, its text, and the point of its VAD."""
        if not path:
            return None, "", ""
        found = self.wait(lambda: self.worker.explain(self.open(path), emotion=emotion, n=int(count)))
        return found, texts_of(found), vad_plane(found)

    def maps(self, found: Explanation | None) -> str:
        """Return the maps of the words of an explanation."""
        if found is None or not found.text:
            return ""

        def look(model: EmoScribe) -> str:
            maps = model.attention(found.picture, text=found.text, emotion=found.emotion)
            return f"<h3>What each word looked at</h3>{maps._repr_html_()}"

        try:
            return self.worker.call(look).result(self.settings.timeout)
        except UserError as error:  # no cross-attention: the rest is shown all the same
            return str(error)

    def several(self, paths: Sequence[str] | None) -> list[tuple[str, str]]:
        """Return the pictures with their emotions and explanations."""
        shown = []
        for path in gr.Progress().tqdm([*(paths or ())][:MOST_FILES], unit="picture"):
            if Path(path).suffix.lower() in suffixes():
                found = self.wait(lambda path=path: self.worker.explain(self.open(path)))
                shown.append((path, str(found)))
        return shown

    def answer(self, path: str | None, question: str) -> dict[str, float]:
        """Return VLE's likeliest answers with their probabilities."""
        if not path or not question.strip():
            return {}
        row = self.wait(lambda: self.worker.call(lambda model: self.vle.ask(self.open(path), question)))
        return {some["answer"]: some["score"] for some in row["candidates"]}


def texts_of(found: Explanation) -> str:
    """Return the explanations as Markdown in which no character has a meaning."""
    texts = [found.text, *found.others] if found.text is not None else []
    lines = [escape(text) or "(no words)" for text in texts]
    listed = lines[0] if len(lines) == 1 else "\n".join(f"{i}. {line}" for i, line in enumerate(lines, 1))
    return (listed if lines else "") + UNFAMILIAR * found.unfamiliar


def escape(text: str) -> str:
    return "".join(f"\\{c}" if c in "\\`*_{}[]()#+-.!|<>$&~" else c for c in text.replace("\n", " "))


def vad_plane(found: Explanation) -> str:
    return "" if found.vad is None else render(TEMPLATES / "vad_plane.html.j2", vad=found.vad)


def shares_of(found: Explanation | None, source: str, temperature: float) -> dict[str, float]:
    """Return the probabilities of a source, its logits divided by the temperature, the largest first."""
    if found is None or not found.emotions:
        return {}
    given = (found.row.get("sources") or {}).get(SOURCES.get(source))
    shares: Mapping[str, float] = dict(zip(found.emotions, given, strict=True)) if given else found.emotions
    logs = torch.tensor([*shares.values()], dtype=torch.float64).clamp(min=1e-30).log()
    found = dict(zip(shares, (logs / temperature).softmax(dim=0).tolist(), strict=True))
    return dict(sorted(found.items(), key=lambda pair: -pair[1]))


def bars_of(found: Explanation | None, source: str, temperature: float) -> str:
    shares = shares_of(found, source, temperature)
    return render(TEMPLATES / "bars.html.j2", shares=shares, colors=colors_of([*shares])) if shares else ""


def choices_of(found: Explanation | None, source: str) -> Any:
    """Return the radio buttons: every emotion with its probability, the explained one selected."""
    shares = shares_of(found, source, 1.0)
    names = [(f"{name} {percent(share)} %", name) for name, share in shares.items()]
    return gr.Radio(choices=names, value=found.emotion if found else None)


def picture_input() -> gr.Image:
    """Return an input whose value is the path of the upload; gr.Image itself would open it, whatever its format."""
    component = gr.Image(type="filepath", label="Picture", sources=["upload", "clipboard"])
    component.preprocess = lambda payload: payload and payload.path
    return component


def build_page(page: Page, examples: Sequence[Path]) -> gr.Blocks:
    """Return the page.

    Args:
        examples: pictures to start with.
    """
    with gr.Blocks(title="EmoScribe", analytics_enabled=False, delete_cache=(600, 600)) as blocks:
        gr.Markdown("# EmoScribe\nWhich emotion does a picture evoke, and why? Drop a picture, then choose an emotion.")
        with gr.Tab("One picture"):
            _one_picture(page, examples)
        with gr.Tab("Several pictures"):
            files = gr.File(file_count="directory", label="A folder of pictures")
            more = gr.File(file_count="multiple", file_types=["image"], label="Or pictures")
            gallery = gr.Gallery(label="Emotions and reasons", columns=3, object_fit="contain", height="auto")
            for source in (files, more):
                source.upload(page.several, source, gallery)
        if page.vle is not None:
            with gr.Tab("Questions"), gr.Row():
                with gr.Column():
                    picture = picture_input()
                    question = gr.Textbox(label="Question", placeholder="What is in the picture?")
                    ask = gr.Button("Ask", variant="primary")
                answers = gr.Label(label="Answers")
                gr.on([ask.click, question.submit], page.answer, [picture, question], answers)
    return blocks


def _one_picture(page: Page, examples: Sequence[Path]) -> None:
    found = gr.State()
    with gr.Row():
        with gr.Column(min_width=280):
            picture = picture_input()
            if examples:
                gr.Examples([str(path) for path in examples], picture, label="Examples")
            count = gr.Slider(1, 5, value=1, step=1, label="Reasons")
            with_expert = page.worker.model.predictor.expert is not None
            source = gr.Radio([FUSED, LANGUAGE, EXPERT], value=FUSED, label="Probabilities of", visible=with_expert)
            temperature = gr.Slider(0.25, 4, value=1, step=0.05, label="Temperature of the probabilities")
        with gr.Column(min_width=320):
            emotion = gr.Radio([], label="Emotion to explain", interactive=True)
            reason = gr.Markdown(elem_id="reason", container=True)
            vad, bars = gr.HTML(elem_id="vad"), gr.HTML(elem_id="bars")
    maps = gr.HTML(elem_id="maps")
    shown = [found, source, temperature]
    first = picture.change(lambda path, n: page.explain(path, None, n), [picture, count], [found, reason, vad])
    first = first.success(choices_of, [found, source], emotion).success(bars_of, shown, bars)
    again = gr.on([emotion.input, count.release], page.explain, [picture, emotion, count], [found, reason, vad])
    for event in (first, again):
        event.success(page.maps, found, maps)
    gr.on([source.input, temperature.release], bars_of, shown, bars)
