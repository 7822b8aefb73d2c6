"""The built-in demo: small painted pictures with annotated emotions and explanations, in SEVLM's JSON of ArtEmis.

    python -m data.demo --root datasets/demo [--sheet pictures.png]

Everything is generated from a seed, without a download, and in the format of real data: images/STYLE/NAME.png,
artEmisX_{train,val,test}.json, a VAD lexicon, facts.json (what each picture shows), and samples/. Each picture and its
texts depend on (seed, split, index) only.
"""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw

from common.errors import UserError
from common.reading import read_json
from data.demo.facts import PHRASES, facts_of
from data.demo.lexicon import lexicon_csv
from data.demo.paint import paint
from data.demo.scenes import GENERATOR_VERSION, SPLITS, Scene, scene_of, stream, votes_of
from data.demo.sentences import NOUNS, explain
from data.emotions import EMOTIONS
from data.readers.artemis import image_id

COUNTS = {"train": 4000, "val": 270, "test": 360}  # pictures
MANIFEST = "manifest.json"
GENERATOR = "emoscribe-demo"
STYLES = {  # folder of each brushwork, as WikiArt has one for each style
    "broad": "Broad_Impressionism",
    "dabs": "Dotted_Luminism",
    "drips": "Drip_Tonalism",
    "hatching": "Scratched_Expressionism",
    "smooth": "Veiled_Realism",
    "swirls": "Whirling_Romanticism",
}
TITLES = ("study-with-{}", "{}-no-2", "composition-with-{}", "untitled-{}", "{}-sketch", "view-with-{}", "{}-variation")


@dataclass(frozen=True, slots=True)
class Example:
    """An annotated picture before it is painted."""

    scene: Scene
    name: str  # "Style/file.png"
    emotions: list[str]
    explanations: list[str]

    @property
    def shares(self) -> list[float]:
        """The share of each of EMOTIONS."""
        counts = Counter(self.emotions)
        return [counts[emotion] / len(self.emotions) for emotion in EMOTIONS]


def example_of(seed: int, split: str, index: int) -> Example:
    """Return the scene, the name and the annotations of picture `index` of `split`."""
    scene, r = scene_of(seed, split, index), stream(seed, split, index, "text")
    noun = NOUNS[scene.subject][0][0].replace(" ", "-")
    serial = index * len(SPLITS) + SPLITS.index(split)
    name = f"{STYLES[scene.brush]}/demo_{r.choice(TITLES).format(noun)}-{serial:05d}.png"
    emotions = votes_of(scene, r)
    return Example(scene, name, emotions, [explain(scene, emotion, r) for emotion in emotions])


def write_demo(
    root: Path,
    *,
    seed: int = 2021,
    num_train: int = COUNTS["train"],
    num_val: int = COUNTS["val"],
    num_test: int = COUNTS["test"],
    image_size: int = 64,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write the demo to `root`, or return if it exists with the same settings.

    It is written to a temporary folder next to `root`, which is then renamed.

    Args:
        image_size: width and height in pixels.
        progress: called with (pictures painted, total pictures).

    Raises:
        UserError: a setting is out of range, `root` contains something else, or it cannot be written.
    """
    root = Path(root).resolve()
    counts = dict(zip(SPLITS, (num_train, num_val, num_test), strict=True))
    settings = {"generator": GENERATOR, "version": GENERATOR_VERSION}
    settings |= {"seed": seed, "counts": counts, "image_size": image_size}
    _check(settings)
    if _is_current(root, settings):
        return
    _check_replaceable(root)
    building = root.with_name(f".{root.name}.writing-{os.getpid()}")
    try:
        shutil.rmtree(building, ignore_errors=True)
        building.mkdir(parents=True)
        _build(building, settings, progress)
        _move_in(building, root, settings)
    except OSError as error:
        raise UserError(
            f"the demo cannot be written to {root}: {error.strerror or error}; set dataset.root to another folder"
        ) from error
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _check(settings: dict) -> None:
    for split, count in settings["counts"].items():
        if count < len(EMOTIONS):
            raise UserError(f"demo: num_{split}={count} is too small; use at least 9, one picture for each emotion")
    if not 16 <= settings["image_size"] <= 1024:
        raise UserError(f"demo: image_size={settings['image_size']} is out of range; use 16 to 1024 pixels")


def _read_manifest(root: Path) -> dict:
    """Return the manifest of the demo in `root`, empty if it contains no demo."""
    with suppress(OSError, ValueError):
        manifest = read_json(root / MANIFEST)
        if isinstance(manifest, dict) and manifest.get("generator") == GENERATOR:
            return manifest
    return {}


def _is_current(root: Path, settings: dict) -> bool:
    return _read_manifest(root).items() >= settings.items()


def _check_replaceable(root: Path) -> None:
    if root.exists() and not root.is_dir():
        raise UserError(f"{root} is a file; set dataset.root to a folder for the demo")
    if root.is_dir() and any(root.iterdir()) and not _read_manifest(root):
        raise UserError(
            f"{root} is not empty and contains no demo ({MANIFEST}), so it is not changed; set dataset.root to another "
            "folder, or empty it"
        )


def _build(folder: Path, settings: dict, progress: Callable[[int, int], None] | None) -> None:
    seed, counts = settings["seed"], settings["counts"]
    (folder / "samples").mkdir()
    for style in STYLES.values():
        (folder / "images" / style).mkdir(parents=True)
    done, labels, best, facts = 0, Counter(), {}, {}
    for split, count in counts.items():
        examples = [example_of(seed, split, index) for index in range(count)]
        for index, example in enumerate(examples):
            random = stream(seed, split, index, "paint")
            picture, boxes = paint(example.scene, random, image_size=settings["image_size"])
            picture.save(folder / "images" / example.name)
            facts[str(image_id(example.name))] = facts_of(example.scene, boxes)
            done += 1
            if progress:
                progress(done, sum(counts.values()))
        _write_json(folder / f"artEmisX_{split}.json", annotations(examples))
        labels.update(emotion for example in examples for emotion in example.emotions)
        if split == "test":
            best = clearest(examples)
    for example in best.values():
        shutil.copyfile(folder / "images" / example.name, folder / "samples" / Path(example.name).name)
    _write_json(folder / "facts.json", {"phrases": PHRASES, "images": facts})
    (folder / "vad_lexicon_synthetic.csv").write_text(lexicon_csv(), encoding="utf-8")
    _write_json(folder / MANIFEST, {**settings, "labels": {emotion: labels[emotion] for emotion in EMOTIONS}})


def annotations(examples: Iterable[Example]) -> dict[str, dict]:
    """Return SEVLM's JSON: by image id, the emotions with their explanations, the image name and the shares."""
    return {
        str(image_id(example.name)): {
            "emotions": example.emotions,
            "explanations": example.explanations,
            "image_name": example.name,
            "origin_emotion_distribution": example.shares,
            "image_emotion_distribution": example.shares,
        }
        for example in examples
    }


def clearest(examples: Sequence[Example]) -> dict[str, Example]:
    """Return for each emotion the example with the highest agreement of annotators (the first of equals)."""
    by_emotion = {emotion: [e for e in examples if e.scene.emotion == emotion] for emotion in EMOTIONS}
    return {
        emotion: max(found, key=lambda e: e.emotions.count(e.scene.emotion) / len(e.emotions))
        for emotion, found in by_emotion.items()
    }


def _write_json(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


def _move_in(building: Path, root: Path, settings: dict) -> None:
    """Rename the finished folder to `root`, unless another process has written the same demo there."""
    if _is_current(root, settings):
        return
    old = root.with_name(f".{root.name}.replaced-{os.getpid()}")
    replaced = root.is_dir()
    if replaced:
        root.rename(old)
    try:
        building.rename(root)
    except OSError:
        if not _is_current(root, settings):
            if replaced:
                old.rename(root)
            raise
    shutil.rmtree(old, ignore_errors=True)


def contact_sheet(*, seed: int, columns: int = 12, image_size: int = 96) -> Image.Image:
    """Paint the first `columns` training pictures of each emotion, one labeled row for each emotion."""
    margin, step = 92, image_size + 4
    sheet = Image.new("RGB", (margin + columns * step, len(EMOTIONS) * step), "white")
    draw = ImageDraw.Draw(sheet)
    for row, emotion in enumerate(EMOTIONS):
        draw.text((6, row * step + image_size // 2 - 6), emotion, fill="black")
    for index in range(columns * len(EMOTIONS)):
        scene = scene_of(seed, "train", index)
        picture, _ = paint(scene, stream(seed, "train", index, "paint"), image_size=image_size)
        sheet.paste(picture, (margin + index // len(EMOTIONS) * step, EMOTIONS.index(scene.emotion) * step))
    return sheet
