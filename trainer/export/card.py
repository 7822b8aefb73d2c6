"""The model card of an export: README.md with the front matter of the Hugging Face hub, and a figure."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jinja2
import open_clip
from huggingface_hub import EvalResult, ModelCardData
from omegaconf import DictConfig, OmegaConf
from safetensors import safe_open

from common.cli import CONTROL
from common.errors import UserError
from common.files import write_text
from common.html.figures import INK, new_figure
from common.html.tables import Table
from common.reading import GPT2_NAMES, expand_user, read_json
from data.emotions import EMOTIONS, labels_of
from model.decoding.int8 import SCALE
from model.weights.clip import HUGGING_FACE_NAMES, is_hub_name
from trainer.export.bridge import BRIDGE
from trainer.export.public import FILES, LEXICON, is_local, public_config, without_folders
from trainer.prediction.expert import describe_expert
from trainer.runs.checkpoint import Checkpoint
from trainer.runs.console import print_status
from trainer.runs.hub import HUB
from trainer.runs.record import RECORD
from trainer.score.looking_tables import blind_sentences, looking_tables
from trainer.score.tables import interval_legend, score_tables

CARD, FIGURE = "README.md", "recall.png"
TEMPLATE = Path(__file__).parent / "templates" / "card.md.j2"
BAR = "#4a7fb5"
SHOWN = ("emotion", "captions", "bootstrap", "intervals", "images", "tokenizer", "captions_scored", "baselines")
TITLES = ("Baselines", "Lead of the model over the baselines")  # of trainer.score.looking_tables
GPT2 = {name: f"openai-community/{name}" for name in GPT2_NAMES} | {"distilgpt2": "distilbert/distilgpt2"}
# Sections and keys of metrics.json, with the hub's name of the metric.
METRICS = {
    ("emotion", "accuracy"): "accuracy",
    ("emotion", "macro_f1"): "f1",
    ("captions", "BLEU-4"): "bleu",
    ("captions", "METEOR"): "meteor",
    ("captions", "ROUGE-L"): "rouge",
    ("captions", "CIDEr"): "cider",
}


def write_card(
    folder: Path, source: Checkpoint, config: DictConfig, *, license: str | None, repository: str | None
) -> None:
    """Write README.md, and the figure if the run was tested.

    Args:
        folder: of the export, which holds its other files already.
        source: the exported checkpoint, with the configuration that it was trained with.
        config: of the export.

    Raises:
        UserError: RUN/test/metrics.json cannot be read.
    """
    metrics = read_metrics(source)
    emotion = (metrics or {}).get("emotion") or {}
    figure = bool(emotion.get("count"))
    if figure:
        plot_recall(emotion, folder / FIGURE)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATE.parent),
        autoescape=False,  # Markdown; all values are the author's own
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"cell": cell, "table": markdown_table}
    name = repository.rpartition("/")[2] if repository else str(source.config.name)
    parts = towers(source.config, config)
    needed = [part["key"] for part in parts if part["missing"]] + [LEXICON] * bool(config.model.vad.enabled)
    shapes = shapes_of(folder / "model.safetensors")
    values = {
        "name": name,
        "front": front_matter(source, metrics, name=name, license=license),
        "place": f"{HUB}{repository}" if repository else "FOLDER",
        "keys": dict.fromkeys(needed, "PATH"),
        "config": public_config(config),
        "labels": config.dataset.labels or EMOTIONS,
        "towers": parts,
        "weights": count_weights(shapes),
        "int8": any(name.endswith(SCALE) for name in shapes),
        "onnx": (folder / BRIDGE).exists(),
        "step": source.info["state"]["step"],
        "commit": source.info.get("git") or "unknown",
        "versions": ", ".join(f"{name} {number}" for name, number in (source.info.get("versions") or {}).items()),
        "expert": describe_expert(source.info["expert"]) if source.info.get("expert") else None,
        "images": (source.info.get("made_of") or {}).get("dataset.train_ds.visual_dir", {}).get("images"),
        "preset": preset_of(source.run),
        "metrics": metrics,
        "tables": shown_tables(metrics) if metrics else [],
        "blind": blind_sentences(metrics) if metrics else "",
        "intervals": interval_legend(metrics) if metrics else "",
        "figure": FIGURE if figure else None,
        "date": datetime.now(UTC).date().isoformat(),
    }
    write_text(folder / CARD, CONTROL.sub("", environment.get_template(TEMPLATE.name).render(values)))


def read_metrics(source: Checkpoint) -> dict[str, Any] | None:
    """Return the scores of this checkpoint without folders; None if it was not tested, or another step was."""
    path = source.run / "test" / "metrics.json"
    if not path.is_file():
        return None
    try:
        metrics = without_folders(dict(read_json(path)))
    except (OSError, TypeError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}): test the run again, or remove the file") from error
    if metrics.get("step") != (step := source.info["state"]["step"]):
        print_status(f"warning: {path} is not of step {step}, which is exported: the card has no scores")
        return None
    return metrics


def shown_tables(metrics: Mapping[str, Any]) -> list[Table]:
    """Return the tables of emotions and texts, and those of the baselines beside them."""
    shown = {key: metrics.get(key) for key in SHOWN}
    return [*score_tables(shown), *(table for table in looking_tables(shown) if table.title in TITLES)]


def front_matter(source: Checkpoint, metrics: Mapping[str, Any] | None, *, name: str, license: str | None) -> str:
    """Return the card's YAML: what the hub shows and searches."""
    data, found = source.config.dataset.name, []
    for (section, key), metric in METRICS.items():
        value = ((metrics or {}).get(section) or {}).get(key)
        if value is not None:
            rule = f", {metrics['emotion']['rule'].replace('_', ' ')}" if section == "emotion" else ""
            found.append(
                EvalResult(
                    task_type="image-to-text",
                    dataset_type=data,
                    dataset_name=data,
                    dataset_split="test",
                    metric_type=metric,
                    metric_name=f"{section} {key.replace('_', ' ')}{rule}",
                    metric_value=value,
                )
            )
    emotions = ["emotion"] if source.config.dataset.emotions else []
    card = ModelCardData(
        language="en" if data != "mlslt" else None,
        license=license,
        library_name="emoscribe",
        pipeline_tag="image-to-text",
        tags=["emoscribe", "image-captioning", *emotions, *(["art"] if data == "artemis" else [])],
        base_model=base_models(source.config) or None,
        metrics=[result.metric_type for result in found] or None,
        model_name=name if found else None,
        eval_results=found or None,
    )
    return card.to_yaml()


def base_models(config: DictConfig) -> list[str]:
    """Return the repositories of the hub with the pretrained image encoder and language model, if they are there."""
    vision, text = (_published(config.model[part].pretrained_name) for part in ("vision", "text"))
    names = [vision and _vision_repository(vision), GPT2.get(text, text)]
    return [name for name in names if name and "/" in name]


def _published(name: str | None) -> str | None:
    """Return the name unless it is of a file or folder."""
    return None if name is None or expand_user(name).is_absolute() or expand_user(name).exists() else name


def _vision_repository(name: str) -> str | None:
    if "hf-hub:" in name:
        return name.rpartition("hf-hub:")[2].partition("@")[0]
    if name in HUGGING_FACE_NAMES or name.startswith("timm/") or is_hub_name(name):
        return name
    architecture, _, tag = name.rpartition("/")  # open_clip's
    return open_clip.get_pretrained_cfg(architecture, tag).get("hf_hub", "").strip("/") or None


def towers(trained: DictConfig, exported: DictConfig) -> list[dict[str, Any]]:
    """Return for image encoder and language model: key, name, and where its weights are."""
    found = []
    for what, key in zip(("image encoder", "language model"), FILES[:2], strict=True):
        name = OmegaConf.select(trained, key)
        local = name is not None and is_local(name)
        shown = None if name is None else Path(name).name if local else name
        included = OmegaConf.select(exported, key) is None
        found.append({"what": what, "key": key, "name": shown, "included": included, "missing": local and not included})
    return found


def shapes_of(path: Path) -> dict[str, list[int]]:
    """Return the shape of each tensor in a file of safetensors."""
    with safe_open(path, framework="pt") as file:
        return {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118 -- it is no mapping


def count_weights(shapes: Mapping[str, list[int]]) -> str:
    """Return the number of weights, scales left out: "38.2 million"."""
    count = sum(math.prod(shape) for name, shape in shapes.items() if not name.endswith(SCALE))
    return f"{count / 1e6:.1f} million" if count >= 1e5 else f"{count:,}"


def preset_of(run: Path) -> str | None:
    """Return the preset on the command line of the training, if it is recorded there."""
    try:
        words = shlex.split(read_json(run / RECORD)["starts"][0]["command"])
    except (OSError, KeyError, IndexError, TypeError, ValueError):
        return None
    return next((word.removeprefix("preset=") for word in words if word.startswith("preset=")), None)


def markdown_table(table: Table) -> str:
    """Return a table with its intervals; without headings, the explanations of its rows are the last column."""
    rows: list[list[str]] = [["", *(table.columns or ("", ""))]]
    rows.append(["---"] * len(rows[0]))
    for row in table.rows:
        values = [f"{one.value} {one.interval}".strip() for one in row.cells]
        rows.append([row.name.strip(), *values, *([] if table.columns else [row.about])])
    return "\n".join(f"| {' | '.join(map(cell, row))} |" for row in rows)


def cell(text: str) -> str:
    """Return a text for a cell of a Markdown table."""
    return " ".join(text.replace("|", "\\|").split())


def plot_recall(emotion: Mapping[str, Any], path: Path) -> None:
    """Write a bar for each emotion that is a label of test images: the share of them for which it is predicted.

    Args:
        emotion: of metrics.json.
    """
    rows = [row for row in zip(labels_of(emotion), emotion["recall"], emotion["support"], strict=True) if row[2]][::-1]
    figure, axes = new_figure(5.6, 0.8 + 0.3 * len(rows))
    axes.grid(visible=False, axis="y")
    axes.barh([f"{name} ({count})" for name, _, count in rows], [100 * share for _, share, _ in rows], color=BAR)
    axes.set(xlim=(0, 100), xlabel="predicted for its pictures, percent")
    axes.set_title("recall by emotion (number of pictures)", color=INK, fontsize=10)
    figure.savefig(path, dpi=150, facecolor="white")
