"""HTTP interface of a network: POST a picture to /predict."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, HTTPException, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse
from omegaconf import DictConfig

from common.errors import UserError
from trainer.interface import Explanation
from trainer.serve.worker import Busy, Worker, decode

NOT_SENT = ("id", "image")
STATUS: dict[type[Exception], tuple[int, dict[str, str]]] = {
    UserError: (400, {}),
    Busy: (503, {"Retry-After": "1"}),
    TimeoutError: (504, {}),
}


def build_api(worker: Worker, settings: DictConfig) -> FastAPI:
    """Return the application; the worker is closed when it shuts down.

    Args:
        settings: the section `serve`.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await run_in_threadpool(worker.close)

    app = FastAPI(title="EmoScribe", lifespan=lifespan, docs_url=None, redoc_url=None)

    @app.get("/health")
    async def health() -> dict[str, Any]:
        checkpoint = worker.model.checkpoint
        return {"status": "ok", "run": checkpoint.run.name, "step": checkpoint.info["state"]["step"]}

    @app.post("/predict")
    async def predict(request: Request, emotion: str | None = None, n: int = 1) -> dict[str, Any]:
        """Explain the picture that is the body of the request; emotion and n as in EmoScribe.explain."""
        async with asyncio.timeout(settings.timeout):
            content = await _read(request, round(settings.max_megabytes * 1e6))
            picture = await run_in_threadpool(decode, content, max_pixels=settings.max_pixels)
            return as_json(await asyncio.wrap_future(worker.explain(picture, emotion=emotion, n=n)))

    for kind, (status, headers) in STATUS.items():
        app.add_exception_handler(kind, _answer(status, headers))
    return app


def _answer(status: int, headers: dict[str, str]) -> Any:
    async def answer(request: Request, error: Exception) -> JSONResponse:
        detail = "the request took longer than serve.timeout" if isinstance(error, TimeoutError) else str(error)
        return JSONResponse({"detail": detail}, status, headers)

    return answer


async def _read(request: Request, limit: int) -> bytes:
    """Return the body; raise HTTPException with status 413 as soon as it is longer than `limit` bytes."""
    content = bytearray()
    async for part in request.stream():
        content += part
        if len(content) > limit:
            raise HTTPException(413, f"the picture is larger than {limit / 1e6:g} MB (serve.max_megabytes)")
    return bytes(content)


def as_json(explanation: Explanation) -> dict[str, Any]:
    """Return the row of predictions.json, without paths, and the further explanations."""
    row = {key: value for key, value in explanation.row.items() if key not in NOT_SENT}
    return {**row, "others": [*explanation.others]} if explanation.others else row
