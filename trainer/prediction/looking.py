"""Does the network look at the picture? What mode=test measures with the network at hand and adds to the rows.

"match": {"rank", "of"}: rank of the image's own picture among `of` pictures of the same predicted emotion, by the
likelihood of the image's explanation. "swap": {"right", "blind"}: whether an annotator's sentence is likelier than the
same sentence with another subject, with the picture and without it. "nearest": an explanation of the nearest training
picture. "match_vle": as "match", by the network of trainer.test.vle, see prediction.vle_match.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from omegaconf import DictConfig
from torch import Tensor
from torch.utils.data import DataLoader

from common.errors import UserError, shorten
from common.progress import progress
from common.reading import expand_user
from data.collate import collate_texts
from data.readers.facts import read_facts
from data.schema import Batch
from data.workers import ignore_foreign_signals
from model.captioner import Visual
from model.decoding.scoring import text_log_probs
from trainer.prediction.build import ranks_by_vle
from trainer.prediction.matching import blocks_of, rank_of, swapped_sentences
from trainer.prediction.nearest import add_nearest
from trainer.prediction.vle_match import add_vle_matches
from trainer.prediction.writer import computing
from trainer.runtime.processes import grouped
from trainer.setup.parts import Parts

if TYPE_CHECKING:
    from trainer.prediction.judge import Judge

Row = dict[str, Any]
FIELDS = ("nearest", "match", "swap", "match_vle", "pointing", "group")  # all that mode=test adds
LATER_WORDS = "the network reads later words (model.vad.encoder=bidirectional), so texts have no probability"


@dataclass(slots=True)
class Looking:
    """Reads images again once all rows are complete.

    Args:
        loader: of the test images.
        training: of the training images, or the reason why these are not read.
        judge: the network of trainer.test.vle.
    """

    config: DictConfig
    parts: Parts
    accelerator: Accelerator
    loader: DataLoader[Batch]
    training: DataLoader[Batch] | str
    judge: Judge | None = None

    def add_to(self, rows: Sequence[Row]) -> list[str]:
        """Replace FIELDS in the rows; return notes on what is left out. An error costs no more than its measure."""
        for row in rows:
            for field in FIELDS:
                row.pop(field, None)
        known = {sample.id for sample in self.loader.dataset.samples}
        rows = [row for row in rows if row["explanation"] is not None and row["id"] in known]
        if not rows:
            return []
        notes = []
        measures = {"match": self._add_matches, "swap": self._add_swaps, "nearest training picture": self._add_nearest}
        measures["match by VLE"] = self._add_vle_matches
        for name, add in measures.items():
            try:
                with computing(self.parts.captioner.language, self.accelerator):
                    note = add(rows)
            except Exception as error:  # must not discard hours of predicting
                note = f"left out: {error if isinstance(error, UserError) else shorten(error)}"
            if note:
                notes.append(f"{name} {note}")
        return notes

    def _add_matches(self, rows: Sequence[Row]) -> str | None:
        count = self.config.trainer.test.match_images
        if not count or not self.parts.captioner.causal:
            return f"left out: {LATER_WORDS}" if count else None
        by_id = {row["id"]: row for row in rows if row["emotion"] is not None or not self.parts.with_emotions}
        blocks, chosen = blocks_of([*by_id.values()], count=count, seed=self.config.seed)
        if not blocks:
            return "left out: no two images have the same predicted emotion"
        for batch in self._read(blocks, "match"):
            visual, size = self._look(batch), len(batch.ids)
            scores: dict[str, Tensor] = {}  # an explanation is often written more than once
            for own, row in enumerate(by_id[id] for id in batch.ids):
                if row["id"] in chosen and "match" not in row and size > 1:
                    text = row["explanation"]
                    if text not in scores:
                        scores[text] = self._log_probs(visual, [(text, row["emotion"])] * size, row.get("language", ""))
                    row["match"] = {"rank": rank_of(own, scores[text]), "of": size}
        return None

    def _add_swaps(self, rows: Sequence[Row]) -> str | None:
        path = self.config.dataset.facts
        if path is None or not self.parts.captioner.causal:
            return f"left out: {LATER_WORDS}" if path else None
        pairs = swapped_sentences(rows, read_facts(expand_user(path)), seed=self.config.seed)
        if not pairs:
            return f"left out: no annotator's text names the one subject that {path} gives for its image"
        by_id = {row["id"]: row for row in rows}
        for batch in self._read(grouped(pairs, self.loader.batch_size), "swap"):
            twice = torch.arange(len(batch.ids), device=batch.frame_mask.device).repeat(2)
            visual = self._look(batch).rows(twice)
            texts = [(pairs[id][side], pairs[id][2]) for side in (0, 1) for id in batch.ids]
            seen, blind = (self._log_probs(view, texts).view(2, -1) for view in (visual, visual.without_picture()))
            for i, id in enumerate(batch.ids):
                by_id[id]["swap"] = {"right": bool(seen[0, i] > seen[1, i]), "blind": bool(blind[0, i] > blind[1, i])}
        return None

    def _add_nearest(self, rows: Sequence[Row]) -> str | None:
        if isinstance(self.training, str):
            return f"left out: {self.training}"

        def read(ids: Sequence[str], *, training: bool) -> Iterator[Batch]:
            loader, what = (self.training, "training pictures") if training else (self.loader, "nearest")
            return self._read(grouped(ids, loader.batch_size), what, loader)

        add_nearest(rows, self.training.dataset.samples, read, self.parts.captioner, seed=self.config.seed)
        trained = self.config.model.vision.trainable
        return "by features of the image encoder that was trained in this run" if trained else None

    def _add_vle_matches(self, rows: Sequence[Row]) -> str | None:
        test = self.config.trainer.test
        if self.judge is None or not test.match_images:
            return None
        return add_vle_matches(
            rows,
            self.judge,
            count=test.match_images,
            seed=self.config.seed,
            max_pixels=self.config.dataset.max_pixels,
            chosen=ranks_by_vle(self.config),
        )

    def _read(
        self, groups: Iterable[Sequence[str]], what: str, loader: DataLoader[Batch] | None = None
    ) -> Iterator[Batch]:
        """Yield a batch for each group of image ids, without those that can no longer be read."""
        loader = loader or self.loader
        index = {sample.id: i for i, sample in enumerate(loader.dataset.samples)}
        keys = [[(0, index[id]) for id in group] for group in groups]
        again = DataLoader(
            loader.dataset,
            batch_sampler=keys,
            num_workers=loader.num_workers,
            collate_fn=loader.collate_fn,
            worker_init_fn=ignore_foreign_signals,
            generator=torch.Generator(),
        )
        with progress(sum(map(len, keys)), what, unit="image") as bar:
            for batch, group in zip(again, keys, strict=True):
                if batch.ids:
                    yield batch.to(self.accelerator.device)
                bar.update(len(group))

    def _look(self, batch: Batch) -> Visual:
        return self.parts.captioner.look(batch.frames, batch.frame_mask, batch.tokens)

    def _log_probs(self, visual: Visual, texts: Sequence[tuple[str, str | None]], language: str = "") -> Tensor:
        """Return (N,) on the CPU: see text_log_probs; texts: explanation and emotion of each row of `visual`."""
        template, known = self.parts.template, self.parts.with_emotions
        emotions = [template.labels.index(name) if known and name else None for _, name in texts]
        languages = [language] * len(texts)
        explanations = [text for text, _ in texts]
        batch = collate_texts(explanations, emotions, languages, template=template, aligner=self.parts.aligner)
        return text_log_probs(self.parts.captioner, visual, batch.to(self.accelerator.device)).cpu()
