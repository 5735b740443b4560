"""The server of `spad app`: the page, and what it asks for."""

from __future__ import annotations

import asyncio
import contextlib
import html
import json
import secrets
import socket
import webbrowser
from collections.abc import AsyncIterator, Callable
from importlib.resources import files
from types import FrameType
from typing import TypeVar

import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

import spad
from spad.app.camera_files import FORMATS, read_camera_files, write_camera_file, zip_of_views
from spad.app.config import AppConfig
from spad.app.guard import Guard
from spad.app.messages import (
    MOST_VIEWS,
    DrawRequest,
    ExportRequest,
    FilesRequest,
    ViewsRequest,
    camera_fields,
)
from spad.app.rigs import rigs
from spad.app.work import Studio
from spad.app.work_queue import Emit, Job, Message, QueueFull, WorkQueue
from spad.files import parse_json
from spad.hub.registry import check_files, model_info

T = TypeVar("T")

_STATIC = {
    "app.js": "text/javascript",
    "style.css": "text/css",
    "three.js": "text/javascript",
    "three-license.txt": "text/plain",
}
# A stream that is silent for so long sends an empty line, which finds closed tabs.
_HEARTBEAT_S = 1.0


class AppServer:
    """Answers of the page's requests; one per process.

    Args:
        config: as the command line has it.

    Raises: ValueError: there is no such model.
    """

    def __init__(self, config: AppConfig):
        model = model_info(config.model)
        check_files(model)
        self.config = config
        self.token = secrets.token_urlsafe(24)
        self.studio = Studio(model, config.device, config.dtype)
        self._queue: WorkQueue | None = None
        self._is_closing = False

    def close(self) -> None:
        """End all streams within a second, so that the server can end."""
        self._is_closing = True

    def app(self) -> Starlette:
        """The server as an ASGI application."""
        routes = [
            Route("/", self.page),
            Route("/static/{name}", self.static),
            Route("/api/model", self.model),
            *(
                Route(f"/api/{name}", answer, methods=["POST"])
                for name, answer in {
                    "read": self.read,
                    "draw": self.draw,
                    "build": self.build,
                    "import": self.import_cameras,
                    "export": self.export,
                    "zip": self.zip,
                }.items()
            ),
        ]
        local = {"localhost", "127.0.0.1", "::1", self.config.host.lower()}
        hosts = local if self.config.is_local else None
        guard = Middleware(Guard, token=self.token, hosts=hosts, password=self.config.secret)
        return Starlette(
            routes=routes,
            middleware=[guard],
            lifespan=self._lifespan,
            exception_handlers={ValueError: _refuse, QueueFull: _refuse_full},
        )

    @contextlib.asynccontextmanager
    async def _lifespan(self, _app: Starlette) -> AsyncIterator[None]:
        self._queue = WorkQueue(self.config.waiting)
        worker = asyncio.create_task(self._queue.run())
        yield
        worker.cancel()

    async def page(self, _request: Request) -> Response:
        """The page, which carries the token."""
        text = _static_file("index.html").decode()
        return Response(text.replace("__TOKEN__", html.escape(self.token)), media_type="text/html")

    async def static(self, request: Request) -> Response:
        """A file of the page, by its exact name."""
        name = request.path_params["name"]
        if name not in _STATIC:
            return Response("no such file", 404)
        return Response(_static_file(name), media_type=_STATIC[name])

    async def model(self, _request: Request) -> Response:
        """What the page must know of the model."""
        model, defaults = self.studio.model, self.studio.model.defaults
        return JSONResponse(
            {
                "name": model.name,
                "description": model.description,
                "spad": spad.__version__,
                "image_size": model.image_size,
                "image_multiple": model.image_multiple,
                "max_steps": model.max_steps,
                "steps": defaults.num_inference_steps,
                "guidance_scale": defaults.guidance_scale,
                "radius": defaults.radius,
                "fov": defaults.fov_deg,
                "captions": model.captions(),
                "rigs": rigs(defaults),
                "most_views": MOST_VIEWS,
                "formats": FORMATS,
            }
        )

    async def read(self, request: Request) -> Response:
        """How the model reads a prompt."""
        asked = await _body(request, dict)
        read_as, notes = self.studio.read(str(asked.get("prompt", ""))[:1000])
        return JSONResponse({"read_as": read_as, "notes": notes})

    async def draw(self, request: Request) -> Response:
        """Views, as a stream of messages."""
        asked = await _body(request, DrawRequest)
        return self._stream(lambda emit: self.studio.draw(asked, emit))

    async def build(self, request: Request) -> Response:
        """A 3D model of views, as a stream of messages."""
        asked = await _body(request, ViewsRequest)
        return self._stream(lambda emit: self.studio.build(asked, emit))

    async def import_cameras(self, request: Request) -> Response:
        """Cameras of files, at the model's image size."""
        asked = await _body(request, FilesRequest)
        size, multiple = self.studio.model.image_size, self.studio.model.image_multiple
        cameras = await asyncio.to_thread(read_camera_files, asked.files, size, size)
        longer = max(cameras.height, cameras.width)
        height, width = (
            max(1, round(size * side / longer / multiple)) * multiple
            for side in (cameras.height, cameras.width)
        )
        return JSONResponse(camera_fields(cameras.resized(height, width)))

    async def export(self, request: Request) -> Response:
        """Cameras as a file."""
        asked = await _body(request, ExportRequest)
        data = await asyncio.to_thread(write_camera_file, asked.cameras.cameras(), asked.format)
        return Response(data, media_type="application/octet-stream")

    async def zip(self, request: Request) -> Response:
        """Views, cameras and the record as a zip."""
        asked = await _body(request, ViewsRequest)
        data = await asyncio.to_thread(zip_of_views, asked)
        return Response(data, media_type="application/zip")

    def _stream(self, work: Callable[[Emit], Message]) -> Response:
        assert self._queue is not None
        job = self._queue.submit(work)
        return StreamingResponse(self._lines(job), media_type="application/x-ndjson")

    async def _lines(self, job: Job) -> AsyncIterator[bytes]:
        """Messages as JSON lines; a reader that leaves stops the job."""
        assert self._queue is not None
        try:
            async for message in job.messages(_HEARTBEAT_S):
                if self._is_closing:
                    return
                yield b"\n" if message is None else json.dumps(message).encode() + b"\n"
        finally:
            self._queue.leave(job)


def run_app(config: AppConfig, announce: Callable[[str], None]) -> None:
    """Serve the page until Ctrl-C.

    Args:
        announce: called with the address once the server listens.

    Raises: ValueError: there is no such model or address. OSError: the port is in use.
    """
    server = AppServer(config)
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    with socket.socket(family) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((config.host, config.port))
        except socket.gaierror as error:
            raise ValueError(f"expected a --host of this machine, got {config.host}") from error
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or error
            raise OSError(
                f"cannot listen on {config.host}, port {config.port}: {reason}; try another --port"
            ) from error
        shown = f"[{config.host}]" if ":" in config.host else config.host
        address = f"http://{shown}:{listener.getsockname()[1]}/"
        listener.listen(128)
        announce(address)
        if config.browser:
            webbrowser.open(address)
        settings = uvicorn.Config(
            server.app(), log_level="warning", timeout_graceful_shutdown=3, access_log=False
        )
        # Ctrl-C is how it ends; uvicorn raises the signal again once it has closed.
        with contextlib.suppress(KeyboardInterrupt):
            _Uvicorn(settings, server).run(sockets=[listener])


class _Uvicorn(uvicorn.Server):
    """uvicorn that ends open streams before it waits for them."""

    def __init__(self, config: uvicorn.Config, served: AppServer):
        super().__init__(config)
        self._served = served

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._served.close()
        super().handle_exit(sig, frame)


async def _body(request: Request, kind: type[T]) -> T:
    data = await request.body()
    return await asyncio.to_thread(parse_json, data, kind, "the request")


def _static_file(name: str) -> bytes:
    return files("spad.app").joinpath("static").joinpath(name).read_bytes()


async def _refuse(_request: Request, error: Exception) -> Response:
    return JSONResponse({"message": str(error).removeprefix("the request: ")}, 400)


async def _refuse_full(_request: Request, _error: Exception) -> Response:
    message = "as many requests wait as may; try again when one is done"
    return JSONResponse({"message": message}, 429, {"retry-after": "2"})
