"""The stage: a page with the video of one node's runs and a prompt box, for a phone, a second screen, or OBS.

This machine needs nothing but the address. Opened to the network, the stage gets a server of its own, which
has these routes and nothing else, and every request from another address needs the token of its link. All
state is of the server's thread.
"""

import asyncio
import hmac
import json
import secrets
import socket
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from aiohttp import web

from . import host
from .growing import send_video
from .live import RUNS, LiveRun, NoSuchRun, TooManyPrompts
from .routes import Handler, Refused, answered, fields_of, json_of

PACK = Path(__file__).parents[1]
HTML = PACK / "web" / "stage" / "stage.html"
SCRIPTS = {path.relative_to(PACK / "web" / "js").as_posix(): path for path in PACK.glob("web/js/**/*.js")}
TEXTS = {path.parent.name: path for path in PACK.glob("locales/*/main.json")}
PAGE = "/longlive/stage"
EVENT = "longlive.stage"
COOKIE = "longlive_stage"
PORT = 8199  # if it is free, else any
LOOPBACK = ("127.0.0.1", "::1")
LOCAL_HOSTS = ("localhost", *LOOPBACK)
PROXY_HEADERS = ("Forwarded", "X-Forwarded-For", "X-Real-IP")
TOKEN_BYTES = 24
MAX_CONNECTIONS, MAX_STREAMS, MAX_STREAMS_OF_ADDRESS = 128, 64, 12  # a page has two streams: events, video
CLOSE_SECONDS = 0.1  # for answers under way; not 0, which is no limit
BACKLOG = 64  # that are accepted at once, before they are counted
MAX_PROMPTS, RATE_SECONDS = 4, 4.0  # of an address
MAX_CHARACTERS, MAX_BODY_BYTES = 1000, 8 * 1024
EVENT_SECONDS, BEAT_SECONDS = 0.25, 15.0
SHOWN = ("run", "state", "pace", "num_frames", "block_latent_frames", "cues", "pending", "taken_back")
SHOWN_CUES = 8
WATCH_SECONDS, ALONE_SECONDS = 5.0, 60.0
HEADERS = {
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'self'; media-src 'self' blob:; img-src 'self' data:; "
    "style-src 'self' 'unsafe-inline'; base-uri 'none'; form-action 'self'; frame-ancestors 'self'",
}
NEEDS_TOKEN = "the stage is closed to this address, or its link has changed; ask for the newest link"


class Place(NamedTuple):
    """A node of a workflow, whose runs are shown."""

    node: str
    workflow: str | None


@dataclass(eq=False)
class Stream:
    """An answer that goes on: events, one for each page that is open, or the video."""

    address: str
    since: float
    transport: asyncio.Transport | None
    place: Place | None
    is_page: bool
    needs_token: bool


class Refusing(asyncio.Protocol):
    """A connection beyond the limit: it is cut at once."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport.abort()


class Stage:
    """Who may see and steer the runs of which node; closed until `open`."""

    def __init__(self):
        self.place: Place | None = None
        self.link, self.may_pause = "", False
        self.app: web.Application | None = None
        self.streams: list[Stream] = []
        self._token = ""
        self._sent: dict[str, deque[float]] = defaultdict(lambda: deque(maxlen=MAX_PROMPTS))
        self._runner: web.AppRunner | None = None
        self._server: asyncio.Server | None = None
        self._watch: asyncio.Task | None = None

    async def open(self, place: Place, may_pause: bool, address: str, port: int) -> None:
        """Show the runs of a node to who has the link, in place of what was shown.

        Pages find it at `address`; without one, at a server of its own on a port, any for 0. OSError if there
        is none to be had. Of the node that is shown already only `may_pause` changes.
        """
        if place == self.place and not port:
            self.may_pause = may_pause
            return self.announce(place)
        await self.close()
        if not address:
            address = f"http://{own_address()}:{await self._serve(port)}"
        self.place, self.may_pause, self._token = place, may_pause, secrets.token_urlsafe(TOKEN_BYTES)
        self.link = f"{address}{PAGE}?token={self._token}"
        self._watch = asyncio.create_task(self._close_when_alone())
        self.announce(place)

    async def close(self) -> None:
        """Let nobody in any more, and cut the connections of those who needed the token."""
        place, server, runner, watch = self.place, self._server, self._runner, self._watch
        self.place = self.app = self._server = self._runner = self._watch = None
        self.link = self._token = ""
        self._sent.clear()
        for stream in self.streams:
            if stream.needs_token and stream.transport:
                stream.transport.abort()
        if server and runner:
            server.close()
            await runner.server.shutdown(CLOSE_SECONDS)
            await runner.cleanup()
        if watch and watch is not asyncio.current_task():
            watch.cancel()
        self.announce(place)

    async def _serve(self, port: int) -> int:
        """Serve the routes of the stage on all addresses of this machine; returns the port."""
        app = web.Application()
        app.add_routes([web.route(*route) for route in ROUTES])
        runner = web.AppRunner(app, access_log=None, keepalive_timeout=BEAT_SECONDS)
        await runner.setup()
        self._runner, self.app = runner, app

        def protocol() -> asyncio.Protocol:
            return runner.server() if len(runner.server.connections) < MAX_CONNECTIONS else Refusing()

        loop = asyncio.get_running_loop()
        try:
            self._server = await loop.create_server(protocol, "0.0.0.0", port or PORT, backlog=BACKLOG)
        except OSError:
            if port:
                raise
            self._server = await loop.create_server(protocol, "0.0.0.0", 0, backlog=BACKLOG)
        return self._server.sockets[0].getsockname()[1]

    async def _close_when_alone(self) -> None:
        """Close once no page of ComfyUI has been open for a while, since nobody could close it there."""
        alone = 0.0
        while alone < ALONE_SECONDS:
            await asyncio.sleep(WATCH_SECONDS)
            alone = 0.0 if host.num_pages() else alone + WATCH_SECONDS
        await self.close()

    def announce(self, place: Place | None) -> None:
        """Have the panel of a node ask for the state; the token is in no event."""
        if place:
            host.broadcast(EVENT, place._asdict())

    def state(self) -> dict[str, Any]:
        """The state for the panel, with the link."""
        if not self.place:
            return {"is_open": False}
        pages = [stream for stream in self.streams if stream.is_page and stream.place == self.place]
        viewers = [{"address": page.address, "since": page.since} for page in pages]
        known = {"link": self.link, "qr": qr_code(self.link), "may_pause": self.may_pause}
        return {"is_open": True, **self.place._asdict(), **known, "viewers": viewers}

    def admits(self, token: str) -> bool:
        """Whether it is the token of the link."""
        return bool(self._token) and hmac.compare_digest(token.encode(errors="replace"), self._token.encode())

    @contextmanager
    def streaming(self, request: web.Request, is_page: bool = False) -> Iterator[None]:
        """Count an answer that goes on; Refused beyond the limits."""
        address = request.remote or ""
        num_own = sum(stream.address == address for stream in self.streams)
        if len(self.streams) >= MAX_STREAMS or num_own >= MAX_STREAMS_OF_ADDRESS:
            raise Refused(503, "too many are watching; close other pages of the stage, or try again later")
        place, needs_token = place_of(request), not is_local(request)
        stream = Stream(address, time.time(), request.transport, place, is_page, needs_token)
        self.streams.append(stream)
        self.announce(place if is_page else None)
        try:
            yield
        finally:
            self.streams.remove(stream)
            self.announce(place if is_page else None)

    def count_prompt(self, address: str) -> None:
        """TooManyPrompts if an address sends more than its share."""
        sent, now = self._sent[address], time.monotonic()
        if len(sent) == MAX_PROMPTS and now - sent[0] < RATE_SECONDS:
            raise TooManyPrompts(
                f"more than {MAX_PROMPTS} prompts within {RATE_SECONDS:.0f} seconds; wait a little"
            )
        sent.append(now)


STAGE = Stage()


def own_address() -> str:
    """The address under which the network knows this machine; nothing is sent to find it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe, suppress(OSError):
        probe.connect(("192.0.2.1", 9))  # an address that nobody has
        return probe.getsockname()[0]
    return LOOPBACK[0]


def qr_code(link: str) -> str | None:
    """A link as an image, a data: URL; None without segno."""
    try:
        import segno
    except ImportError:
        return None
    return segno.make(link, error="m", micro=False).svg_data_uri(scale=4, light="#fff")


def is_local(request: web.Request) -> bool:
    """Whether this machine asks, under its own name: not through a proxy, nor by a page of another name."""
    is_own_name = urlsplit(f"//{request.headers.get('Host', '')}").hostname in LOCAL_HOSTS
    is_direct = not any(name in request.headers for name in PROXY_HEADERS)
    return request.remote in LOOPBACK and is_own_name and is_direct


def is_cross_site(request: web.Request) -> bool:
    """Whether the page of another origin asks; it may link to the stage, no more."""
    headers = request.headers
    if headers.get("Sec-Fetch-Site") == "cross-site" and headers.get("Sec-Fetch-Mode") != "navigate":
        return True
    return (
        "Origin" in headers and urlsplit(headers["Origin"]).netloc.lower() != headers.get("Host", "").lower()
    )


def place_of(request: web.Request) -> Place | None:
    """Whose runs a request may see: those of the node that is shown; from here, of any it names, or None."""
    if request.app is STAGE.app or not is_local(request):
        return STAGE.place
    node = request.query.get("node")
    return Place(node, request.query.get("workflow")) if node else None


def run_of(request: web.Request) -> LiveRun | None:
    """The newest run that a request may see."""
    place = place_of(request)
    return RUNS.newest_of(*place) if place else RUNS.newest()


def guarded(handler: Handler) -> Handler:
    """A handler for this machine, and for others with the token."""

    @answered
    async def guard(request: web.Request) -> web.StreamResponse:
        given = request.query.get("token") or request.cookies.get(COOKIE, "")
        if is_cross_site(request):
            raise Refused(403, "the stage answers only its own page")
        if not (is_local(request) or STAGE.admits(given)):
            raise Refused(403, NEEDS_TOKEN)
        return await handler(request)

    return guard


@guarded
async def show_page(request: web.Request) -> web.StreamResponse:
    if "token" not in request.query:
        return web.FileResponse(HTML, headers=HEADERS | {"Content-Type": "text/html; charset=utf-8"})
    query = [(name, value) for name, value in request.query.items() if name != "token"]
    answer = web.Response(status=302, headers=HEADERS | {"Location": str(request.rel_url.with_query(query))})
    answer.set_cookie(COOKIE, request.query["token"], httponly=True, samesite="Lax", path="/")
    return answer


def file_of(kind: str, files: dict[str, Path]) -> Handler:
    """A handler that answers with one of these files and with no other."""

    @guarded
    async def show_file(request: web.Request) -> web.StreamResponse:
        path = files.get(request.match_info["name"])
        if path is None:
            raise Refused(404, "the stage has no such file")
        return web.FileResponse(path, headers=HEADERS | {"Content-Type": kind})

    return show_file


def shown(request: web.Request) -> dict[str, Any]:
    """What the page shows: the newest run, without its errors, and what the viewer may do."""
    may_pause = STAGE.may_pause or (request.app is not STAGE.app and is_local(request))
    run = run_of(request)
    if run is None:
        return {"run": None, "may_pause": may_pause}
    snapshot = run.snapshot()
    kept = {name: snapshot[name] for name in SHOWN}
    return kept | {"cues": snapshot["cues"][-SHOWN_CUES:], "may_pause": may_pause}


@guarded
async def show_events(request: web.Request) -> web.StreamResponse:
    answer = web.StreamResponse(headers=HEADERS | {"Content-Type": "text/event-stream"})
    with STAGE.streaming(request, is_page=True), suppress(ConnectionResetError):
        await answer.prepare(request)
        newest, beat = "", 0.0
        while request.transport and not request.transport.is_closing():
            text = json.dumps(shown(request))
            if text != newest or time.monotonic() > beat:
                newest, beat = text, time.monotonic() + BEAT_SECONDS
                await answer.write(f"data: {text}\n\n".encode())
            await asyncio.sleep(EVENT_SECONDS)
    return answer


@guarded
async def show_video(request: web.Request) -> web.StreamResponse:
    run = run_of(request)
    if run is None or run.id != request.match_info["run"]:
        raise NoSuchRun("the stage shows no such run; it shows the newest of its node")
    with STAGE.streaming(request):
        is_late = "late" in request.query
        return await send_video(request, run.path, lambda: run.is_closed, is_late, lambda: run.num_cuts)


def steered(request: web.Request) -> LiveRun:
    run = run_of(request)
    if run is None:
        raise NoSuchRun("no run has begun yet; the stage waits for it")
    return run


@guarded
async def send_prompt(request: web.Request) -> web.Response:
    STAGE.count_prompt(request.remote or "")
    body = await fields_of(request, MAX_BODY_BYTES)
    prompt = body["prompt"]
    if isinstance(prompt, str) and len(prompt) > MAX_CHARACTERS:
        raise Refused(
            413, f"the prompt has {len(prompt)} characters; on the stage use at most {MAX_CHARACTERS}"
        )
    answer = steered(request).send(prompt, body.get("policy"), body.get("blend"))
    return web.json_response(answer, status=202)


def commanded(command: Callable[[LiveRun], None]) -> Handler:
    """A handler that pauses or resumes, where that is allowed."""

    @guarded
    async def handle(request: web.Request) -> web.Response:
        if not shown(request)["may_pause"]:
            raise Refused(403, "pausing was not allowed on this stage")
        command(steered(request))
        return web.json_response(shown(request))

    return handle


@answered
async def show_door(request: web.Request) -> web.Response:
    return web.json_response(STAGE.state(), headers={"Cache-Control": "no-store"})


@answered
async def set_door(request: web.Request) -> web.Response:
    """Open or close the stage: a route of ComfyUI's server only, for its page."""
    body = await json_of(request, MAX_BODY_BYTES)
    node, workflow, port = body.get("node"), body.get("workflow"), body.get("port", 0)
    if not body.get("is_open"):
        await STAGE.close()
    elif not isinstance(node, str) or not isinstance(workflow, str | None):
        raise Refused(400, 'name the node whose runs are shown; send {"is_open": true, "node": "3"}')
    elif type(port) is not int or not 0 <= port < 2**16:
        raise Refused(400, "the port is a whole number below 65536; leave it out for any that is free")
    else:
        await open_door(request, Place(node, workflow), bool(body.get("may_pause")), port)
    return web.json_response(STAGE.state(), headers={"Cache-Control": "no-store"})


async def open_door(request: web.Request, place: Place, may_pause: bool, port: int) -> None:
    """Where ComfyUI itself is reached from another address, the stage is too, by the same one."""
    address = "" if is_local(request) else request.headers.get("Origin", f"{request.scheme}://{request.host}")
    try:
        await STAGE.open(place, may_pause, address, port)
    except OSError as error:
        await STAGE.close()
        raise Refused(409, f"no server could be started on port {port}: {error.strerror}") from None


ROUTES = (
    ("GET", PAGE, show_page),
    ("GET", PAGE + "/web/{name:.+}", file_of("text/javascript; charset=utf-8", SCRIPTS)),
    ("GET", PAGE + "/texts/{name}", file_of("application/json; charset=utf-8", TEXTS)),
    ("GET", PAGE + "/events", show_events),
    ("GET", PAGE + "/video/{run}", show_video),
    ("POST", PAGE + "/prompt", send_prompt),
    ("POST", PAGE + "/pause", commanded(lambda run: run.control.pause())),
    ("POST", PAGE + "/resume", commanded(lambda run: run.control.resume())),
)
DOOR = (("GET", "/longlive/door", show_door), ("POST", "/longlive/door", set_door))


def register() -> None:
    """Add the routes to ComfyUI's server, once, before it starts."""
    host.add_routes((*ROUTES, *DOOR))
