"""The part of a network from pictures to the inputs of its language model, as an ONNX file."""

from __future__ import annotations

import warnings
from importlib.util import find_spec
from pathlib import Path

import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from common.errors import UserError, shorten
from common.files import write_json
from common.reading import expand_user
from data.image_files import find_images
from data.images import ImageError, build_transform, open_image
from model.captioner import Captioner
from trainer.runs.console import print_status

BRIDGE, PREPROCESS = "bridge.onnx", "bridge.json"
PACKAGES = ("onnx", "onnxruntime", "onnxscript")
INPUT = "pictures"
CHECKED = 8  # pictures with which the file is compared with the network
TOLERANCE = 1e-4  # largest difference, as a share of the largest value of that output


def require_packages() -> None:
    """Raise UserError unless all packages for ONNX are installed."""
    if missing := [name for name in PACKAGES if find_spec(name) is None]:
        raise UserError(f"--onnx needs {', '.join(missing)}, not installed here: pip install {' '.join(PACKAGES)}")


class Bridge(nn.Module):
    """pictures (B, 3, H, W), transformed → tokens (B, P, Dv), and prefix (B, D) and latents (B, Q, Dv) of these."""

    def __init__(self, captioner: Captioner) -> None:
        super().__init__()
        self.vision, self.mapper, self.resampler = captioner.vision, captioner.mapper, captioner.resampler

    @property
    def outputs(self) -> list[str]:
        return ["tokens", *["prefix"] * (self.mapper is not None), *["latents"] * (self.resampler is not None)]

    def forward(self, pictures: Tensor) -> tuple[Tensor, ...]:
        tokens = self.vision(pictures[:, None])
        mask = tokens.new_ones(tokens.shape[:2], dtype=torch.bool)
        prefix = () if self.mapper is None else (self.mapper(tokens, mask)[:, 0],)
        latents = () if self.resampler is None else (self.resampler(tokens, mask),)
        return tokens[:, 0], *prefix, *latents


def write_bridge(folder: Path, captioner: Captioner, config: DictConfig, pictures: str | None) -> None:
    """Write bridge.onnx, with any number of pictures as its input, and bridge.json, which says how to prepare them.

    Args:
        captioner: on the CPU, in eval mode.
        pictures: file or folder with which the file is checked; None: the validation pictures of the configuration.

    Raises:
        UserError: a network of videos, no pictures, an operation that ONNX lacks, or results that differ.
    """
    if config.dataset.name == "mlslt":
        raise UserError("--onnx: bridge.onnx is for pictures, and this network reads videos")
    frames = read_pictures(config, captioner, pictures)
    bridge = Bridge(captioner).eval()
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # of the exporter, about its own parts
            program = torch.onnx.export(
                bridge,
                (torch.zeros(2, *frames.shape[1:]),),  # the size of a batch of one would be fixed
                dynamo=True,
                input_names=[INPUT],
                output_names=bridge.outputs,
                dynamic_shapes={INPUT: {0: "batch"}},
                verbose=False,
            )
        program.save(folder / BRIDGE)
    except (RuntimeError, TypeError, ValueError) as error:
        tower = type(captioner.vision.visual).__name__
        raise UserError(f"--onnx: torch cannot export this network with its {tower} ({shorten(error)})") from error
    _check(folder / BRIDGE, bridge, frames)
    preprocess = {**captioner.vision.preprocess, "size": list(frames.shape[2:])}
    write_json(folder / PREPROCESS, {"input": INPUT, "outputs": bridge.outputs, "preprocess": preprocess})


def read_pictures(config: DictConfig, captioner: Captioner, pictures: str | None) -> Tensor:
    """Return up to CHECKED pictures, transformed: (B, 3, H, W)."""
    place = pictures or config.dataset.validation_ds.visual_dir
    if place is None or not expand_user(place).exists():
        raise UserError(f"--onnx compares results on real pictures, but there is no {place}: add --pictures FOLDER")
    transform, found = build_transform(captioner.vision.preprocess), []
    for path in find_images(expand_user(place)).images:
        try:
            found.append(transform(open_image(path, max_pixels=config.dataset.max_pixels)))
        except ImageError:
            continue
        if len(found) == CHECKED:
            break
    if not found:
        raise UserError(f"--onnx: none of the pictures in {place} could be read: add --pictures FOLDER")
    return torch.stack(found)


def _check(path: Path, bridge: Bridge, frames: Tensor) -> None:
    """Print the largest differences between onnxruntime and torch; raise UserError if one is above the tolerance."""
    import onnxruntime  # imported here: an optional package

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    with torch.no_grad():
        expected = bridge(frames)
    found = session.run(None, {INPUT: frames.numpy()})
    pairs = [(torch.from_numpy(one), other) for one, other in zip(found, expected, strict=True)]
    shares = [float((one - other).abs().max() / other.abs().max()) for one, other in pairs]
    text = ", ".join(f"{name} {share:.1e}" for name, share in zip(bridge.outputs, shares, strict=True))
    print_status(
        f"{BRIDGE}: {len(frames)} pictures, largest difference to torch as a share of the largest value: {text}"
    )
    if not max(shares) <= TOLERANCE:  # NaN too
        raise UserError(f"--onnx: onnxruntime and torch differ by more than {TOLERANCE:.0e} ({text}): leave out --onnx")
