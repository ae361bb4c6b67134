"""The HTTP routes of live runs and of models: JSON in, JSON out; an error is a status and a sentence."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from functools import wraps
from typing import Any

from aiohttp import web

from ..longlive_core.output.beats import beats_of
from ..longlive_core.schedule.cue import ScheduleError
from ..longlive_core.steering.live import LiveControl, LiveError
from . import host
from .growing import send_video
from .live import RUNS, LiveRun, NoSuchRun, TooManyPrompts
from .loaders import block_of
from .share import FORMATS, clip_of

MAX_BODY_BYTES = 64 * 1024
FIELDS = ("prompt", "policy", "blend")
WITH_IMAGE = (*FIELDS, "image")  # of this machine's files: not for the network
BACK_FIELDS = ("seconds", "block", *WITH_IMAGE, "seed", "keep")
CLIPS = asyncio.Lock()  # one is made at a time: the model needs the CPU too
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Refused(Exception):
    """A request that cannot be read, and its HTTP status."""

    def __init__(self, status: int, sentence: str):
        super().__init__(sentence)
        self.status = status


STATUS_OF = {NoSuchRun: 404, LiveError: 409, ScheduleError: 400, TooManyPrompts: 429}


def answered(handler: Handler) -> Handler:
    """A handler whose errors become a status and a sentence."""

    @wraps(handler)
    async def answer(request: web.Request) -> web.StreamResponse:
        try:
            return await handler(request)
        except (Refused, *STATUS_OF) as error:
            status = error.status if isinstance(error, Refused) else STATUS_OF[type(error)]
            return web.json_response({"error": str(error)}, status=status)

    return answer


def named(request: web.Request) -> LiveRun:
    return RUNS.get(request.match_info["run"])


@answered
async def list_runs(request: web.Request) -> web.Response:
    return web.json_response({"runs": RUNS.snapshots()})


@answered
async def show_run(request: web.Request) -> web.Response:
    return web.json_response(named(request).snapshot())


@answered
async def send_prompt(request: web.Request) -> web.Response:
    run = named(request)
    body = await fields_of(request, known=WITH_IMAGE)
    if body.get("image") is not None:
        await asyncio.to_thread(run.check_image, body["image"])
    return web.json_response(run.send(*map(body.get, WITH_IMAGE)), status=202)


@answered
async def take_back(request: web.Request) -> web.Response:
    run = named(request)
    body = known_fields(await json_of(request, MAX_BODY_BYTES), BACK_FIELDS)
    if body.get("image") is not None:
        await asyncio.to_thread(run.check_image, body["image"])
    return web.json_response(run.take_back(**body), status=202)


def commanded(command: Callable[[LiveControl], None]) -> Handler:
    """A handler that calls a method of a run's control and answers with the snapshot."""

    @answered
    async def handle(request: web.Request) -> web.Response:
        run = named(request)
        command(run.control)
        return web.json_response(run.snapshot())

    return handle


@answered
async def show_schedule(request: web.Request) -> web.Response:
    return web.json_response(named(request).frozen())


@answered
async def show_video(request: web.Request) -> web.StreamResponse:
    run = named(request)
    return await send_video(request, run.path, lambda: run.is_closed, num_cuts=lambda: run.num_cuts)


@answered
async def make_clip(request: web.Request) -> web.Response:
    run, kind = named(request), request.query.get("format", FORMATS[0])
    if kind not in FORMATS:
        raise Refused(400, f"there is no clip of format {kind[:40]!r}; choose {' or '.join(FORMATS)}")
    try:
        async with CLIPS:
            clip = await asyncio.to_thread(clip_of, run, kind)
    except (OSError, ValueError):
        raise Refused(404, "the video of this run is gone or has no frames yet; run it again") from None
    headers = {"Content-Disposition": f'attachment; filename="longlive_{run.id}.{kind}"'}
    content_type = "video/mp4" if kind == "mp4" else "image/webp"
    return web.Response(body=clip, content_type=content_type, headers=headers)


@answered
async def show_block(request: web.Request) -> web.Response:
    names = (request.query.get(name, "") for name in ("checkpoint", "family", "stock"))
    return web.json_response({"latent_frames": await asyncio.to_thread(block_of, *names)})


@answered
async def list_sounds(request: web.Request) -> web.Response:
    return web.json_response({"files": await asyncio.to_thread(host.sound_files)})


@answered
async def show_beats(request: web.Request) -> web.Response:
    try:
        path = host.sound_path(request.query.get("file", ""))
        return web.json_response({"times": await asyncio.to_thread(beats_of, path)})
    except ValueError as error:
        raise Refused(400, str(error)) from None


async def fields_of(
    request: web.Request, max_bytes: int = MAX_BODY_BYTES, known: Sequence[str] = FIELDS
) -> dict[str, Any]:
    """The JSON object of a prompt; Refused if it is none, too large, or of another content type."""
    body = await json_of(request, max_bytes)
    if "prompt" not in body:
        raise Refused(400, 'the body names no prompt; send {"prompt": "..."}')
    return known_fields(body, known)


def known_fields(body: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """The same; Refused where there is a field of another name."""
    if unknown := [name[:40] for name in body if name not in names]:
        raise Refused(400, f"unknown field {unknown[0]!r}; known are {', '.join(names)}")
    return body


async def json_of(request: web.Request, max_bytes: int) -> dict[str, Any]:
    """A JSON object; Refused if it is none, too large, or of another content type."""
    if request.content_type != "application/json":
        raise Refused(415, f"the body came as {request.content_type}; send it as application/json")
    try:
        body = json.loads(await body_of(request, max_bytes))
    except (ValueError, RecursionError) as error:
        raise Refused(400, f'the body is not JSON ({error}); send {{"prompt": "..."}}') from None
    if not isinstance(body, dict):
        raise Refused(400, 'the body names no prompt; send {"prompt": "..."}')
    return body


async def body_of(request: web.Request, max_bytes: int) -> bytes:
    """The body; Refused as soon as it is larger than the limit."""
    body = b""
    while part := await request.content.readany():
        body += part
        if len(body) > max_bytes:
            raise Refused(413, f"the body has more than {max_bytes} bytes; a prompt is shorter")
    return body


ROUTES = (
    ("GET", "/longlive/runs", list_runs),
    ("GET", "/longlive/runs/{run}", show_run),
    ("POST", "/longlive/runs/{run}/prompt", send_prompt),
    ("POST", "/longlive/runs/{run}/back", take_back),
    ("POST", "/longlive/runs/{run}/pause", commanded(LiveControl.pause)),
    ("POST", "/longlive/runs/{run}/resume", commanded(LiveControl.resume)),
    ("POST", "/longlive/runs/{run}/stop", commanded(LiveControl.stop)),
    ("GET", "/longlive/runs/{run}/schedule", show_schedule),
    ("GET", "/longlive/runs/{run}/video", show_video),
    ("POST", "/longlive/runs/{run}/clip", make_clip),
    ("GET", "/longlive/block", show_block),
    ("GET", "/longlive/sounds", list_sounds),
    ("GET", "/longlive/beats", show_beats),
)


def register() -> None:
    """Add the routes to the server, once, before it starts."""
    host.add_routes(ROUTES)
