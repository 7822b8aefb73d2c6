"""SPICE (Anderson et al., 2016): F-score of the objects, attributes and relations in captions and references.

pycocoevalcap ships the program, which needs the JavaScript engine of Java 8 to 14. Its parser (Stanford CoreNLP 3.6.0)
is not downloaded: an error names the two files if they are missing. Parses are not cached on disk.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from common.progress import progress
from trainer.metrics.java import Java, JavaError, find_java, run_java

PARSER = ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar")
SOURCE = "https://nlp.stanford.edu/software/stanford-corenlp-full-2015-12-09.zip"
NEWEST_JAVA = 14  # the last with a JavaScript engine, which SPICE 1.0 needs to write its result
MEMORY = "-Xmx4G"
THREADS = 8  # at most; each parses one sentence at a time, and needs memory for it
IMAGES_AT_ONCE = 1000  # bounds the memory; the parser is loaded again for each lot, which takes some seconds
SECONDS = 300.0  # per lot, to load the parser
SECONDS_PER_TEXT = 0.5

Texts = dict[str, list[str]]  # image id -> its texts


def spice_scores(hypotheses: Texts, targets: Texts, *, parser: Path | None = None) -> tuple[float, list[float]]:
    """Return the mean over the images, and each image's score in the order of `targets`; an empty caption scores 0.

    Args:
        parser: folder of the two files of PARSER; None is pycocoevalcap's own folder.

    Raises:
        JavaError: the parser or a Java of version 8 to 14 is missing, or the program fails, times out or writes
            unexpected output.
    """
    java = find_java(newest=NEWEST_JAVA)
    if java is None:
        raise JavaError(f"it needs Java 8 to {NEWEST_JAVA}; put one on PATH")
    class_path = _class_path(parser)
    items = {image: [t for t in texts if t] for image, texts in targets.items() if hypotheses[image][0]}
    scored = [(image, hypotheses[image][0], texts) for image, texts in items.items() if texts]
    scores = dict.fromkeys(targets, 0.0)
    with progress(len(scored), "SPICE", unit="image") as bar:
        for start in range(0, len(scored), IMAGES_AT_ONCE):
            lot = scored[start : start + IMAGES_AT_ONCE]
            scores |= zip((image for image, *_ in lot), _run(java, class_path, lot), strict=True)
            bar.update(len(lot))
    return sum(scores.values()) / len(scores), list(scores.values())


def _class_path(parser: Path | None) -> str:
    import pycocoevalcap.spice as installed

    home = Path(installed.__file__).parent
    folder = parser or home / "lib"
    if not all((folder / name).is_file() for name in PARSER):
        raise JavaError(f"put {PARSER[0]} and {PARSER[1]} (from {SOURCE}) into {folder}")
    parts = [home / "spice-1.0.jar", home / "lib" / "*", *(folder / name for name in PARSER)]
    return os.pathsep.join(map(str, parts))


def _run(java: Java, class_path: str, lot: Sequence[tuple[str, str, list[str]]]) -> list[float]:
    """Return the F-scores of (image, caption, references)."""
    try:
        with tempfile.TemporaryDirectory(prefix="spice-") as name:
            folder = Path(name)
            items = [{"image_id": str(i), "test": text, "refs": refs} for i, (_, text, refs) in enumerate(lot)]
            (folder / "in.json").write_text(json.dumps(items), encoding="utf-8")
            arguments = [MEMORY, f"-Djava.io.tmpdir={folder}", "-cp", class_path, "edu.anu.spice.SpiceScorer"]
            arguments += [str(folder / "in.json"), "-out", str(folder / "out.json"), "-silent"]
            arguments += ["-threads", str(min(os.cpu_count() or 1, THREADS))]
            texts = sum(1 + len(references) for *_, references in lot)
            run_java(java, arguments, seconds=SECONDS + SECONDS_PER_TEXT * texts)
            found = json.loads((folder / "out.json").read_text(encoding="utf-8"))
            by_id = {item["image_id"]: float(item["scores"]["All"]["f"]) for item in found}
            scores = [by_id[str(i)] for i in range(len(lot))]
    except OSError as error:
        raise JavaError(f"no result: {error}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise JavaError(f"unexpected result ({type(error).__name__}: {error})") from None
    return [score if math.isfinite(score) else 0.0 for score in scores]
