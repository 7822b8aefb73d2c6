"""What a checkpoint keeps of its training pictures, see prediction.familiar and prediction.others."""

from __future__ import annotations

from pathlib import Path

import torch
from accelerate import Accelerator
from omegaconf import DictConfig
from safetensors.torch import save

from common.files import write_bytes
from common.progress import progress
from data.loaders import drop_empty_batches
from data.samples import Samples
from trainer.prediction import familiar, others
from trainer.prediction.familiar import Familiar, describe
from trainer.runs.checkpoint import find_in_run
from trainer.runs.retention import write_sums
from trainer.setup.loading import Features, split_loader
from trainer.setup.parts import build_parts

MOST, LEAST = 1500, 100  # pictures; 1 % of fewer is no picture


@torch.no_grad()
def write_training_pictures(config: DictConfig, run: Path, accelerator: Accelerator, samples: Samples) -> None:
    """Describe training pictures with the run's best checkpoint and store both files there; called in one process.

    Does nothing if they are there already, or with fewer than LEAST pictures.

    Raises:
        UserError: the file cannot be written.
    """
    count, files = min(len(samples), MOST), (familiar.FILE, others.FILE)
    checkpoint = find_in_run(run, prefer="best") if count >= LEAST else None
    if checkpoint is None or all((checkpoint.folder / name).exists() for name in files):
        return
    config = config.copy()
    config.dataset.feature_cache = None  # the pixels are needed
    parts = build_parts(config, checkpoint=checkpoint)  # the network of the training may be split or another step's
    captioner = parts.captioner.to(accelerator.device).eval()
    samples = samples.pick(i * len(samples) // count for i in range(count))
    features = Features(config, captioner, accelerator)
    loader, _ = split_loader(config, "train_ds", samples, parts, features, texts=0, shuffle=False)
    described, chosen, by_id = [], others.Chosen(), {sample.id: sample for sample in samples}
    with progress(count, "describe training pictures", unit="image") as bar:
        for batch in drop_empty_batches(loader, [], strict=False):
            batch = batch.to(accelerator.device)
            with accelerator.autocast():
                visual = captioner.look(batch.frames, batch.frame_mask)
            described.append(describe(batch.frames, batch.frame_mask, visual.mean))
            chosen.add([by_id[id] for id in batch.ids], visual)
            bar.update(len(batch.ids))
    if described:
        found = Familiar.fit(*map(torch.cat, zip(*described, strict=True)))
        write_bytes(checkpoint.folder / familiar.FILE, [save(vars(found))], durable=True)
        write_bytes(checkpoint.folder / others.FILE, [save(chosen.tensors())], durable=True)
        write_sums(checkpoint.folder)
