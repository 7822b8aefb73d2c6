"""mode=serve: load a run and listen."""

from __future__ import annotations

import os
import socket
import tempfile
from contextlib import suppress
from itertools import islice
from pathlib import Path

import torch
from omegaconf import DictConfig

from common.config.rules import VLE_STAGES, VLM
from common.errors import UserError
from common.ranks import world_size
from data.images import ImageError, open_image
from trainer.interface import EmoScribe
from trainer.prediction.resume import Rows
from trainer.runs.checkpoint import Checkpoint, find_checkpoint
from trainer.runs.console import print_status
from trainer.setup.from_checkpoint import complete_from_checkpoint

EXAMPLES = 6
SHUTDOWN = 10  # seconds for the requests that are being answered


def serve(config: DictConfig) -> None:
    """Answer requests until SIGINT or SIGTERM; see trainer.serve.api and trainer.serve.page.

    Raises:
        UserError: no such run, one of another stage, a package is missing, or the address is in use.
    """
    try:
        import uvicorn

        from trainer.serve.api import build_api
    except ModuleNotFoundError as error:
        raise UserError(f"mode=serve needs the package {error.name}: pip install 'gradio>=6'") from error
    if world_size() > 1:
        raise UserError("mode=serve is one process: start it without a launcher")
    checkpoint = find_checkpoint(config.pretrained_name, Path(config.trainer.exp_dir))
    settings, config = config.serve, complete_from_checkpoint(config, checkpoint)
    if config.stage in (*VLE_STAGES, VLM):
        too = ", and this one as serve.vle" if config.stage in VLE_STAGES else ""
        raise UserError(f"{checkpoint.folder} is of stage={config.stage}: name a captioner's run{too}")
    listening = _listen(settings)
    with listening, tempfile.TemporaryDirectory(prefix="emoscribe-") as uploads:
        from trainer.serve.worker import Worker

        leave_a_core()
        worker = Worker(EmoScribe(config, checkpoint), waiting=settings.waiting, batch_size=settings.batch_size)
        app = build_api(worker, settings)
        if settings.page:
            os.environ["GRADIO_TEMP_DIR"] = uploads  # where the page keeps uploads for some minutes
            app = _with_page(app, worker, config, checkpoint, settings)
        host, port = listening.getsockname()[:2]
        address = f"http://{f'[{host}]' if ':' in host else host}:{port}/"
        print_status(address + ("" if settings.page else "predict") + "  (Ctrl-C ends it)")
        server = uvicorn.Server(
            uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=SHUTDOWN, access_log=False)
        )
        server.run(sockets=[listening])


def leave_a_core() -> None:
    """Compute with one thread less than there are cores, unless OMP_NUM_THREADS is set.

    Threads that wait for the next product of matrices spin, and would keep HTTP from its turn: on two cores the service
    gave a third of the rate.
    """
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, torch.get_num_threads() - 1))


def _listen(settings: DictConfig) -> socket.socket:
    """Return the listening socket, before the network is loaded."""
    try:
        family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
        return socket.create_server((settings.host, settings.port), family=family, backlog=128)
    except OSError as error:
        raise UserError(
            f"serve.host={settings.host} serve.port={settings.port}: cannot listen there ({error.strerror or error}); "
            "choose another serve.port"
        ) from error


def _with_page(app, worker, config: DictConfig, checkpoint: Checkpoint, settings: DictConfig):
    import gradio

    from trainer.serve.page import CSS, THEME, Page, build_page

    vle = None
    if settings.vle is not None:
        vle = EmoScribe.from_pretrained(settings.vle, device=config.trainer.device)
        if vle.config.stage != "vle_vqa":
            raise UserError(f"serve.vle={settings.vle} is no run of stage=vle_vqa, which answers questions")
    blocks = build_page(Page(worker, settings, vle), examples(checkpoint, max_pixels=settings.max_pixels))
    size = f"{settings.max_megabytes:g}mb"
    return gradio.mount_gradio_app(
        app, blocks, path="/", theme=THEME, css=CSS, max_file_size=size, footer_links=[], ssr_mode=False
    )


def examples(checkpoint: Checkpoint, *, max_pixels: int) -> list[Path]:
    """Return some pictures of the run's last test, if it was tested here; other files that it may name are left out."""
    path, found = checkpoint.run / "test" / "predictions.jsonl", []
    for row in islice(Rows(path), EXAMPLES) if path.is_file() else ():
        with suppress(ImageError):
            open_image(Path(row["image"]), max_pixels=max_pixels)
            found.append(Path(row["image"]))
    return found
