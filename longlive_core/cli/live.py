"""`longlive live`: steer a run of LongLive: Stream in a ComfyUI server, over HTTP."""

import argparse
import base64
import json
import re
import urllib.error
import urllib.parse
import urllib.request
from http import HTTPStatus
from http.client import HTTPException
from pathlib import Path
from typing import Any

from ..schedule.cue import ScheduleError, clock, read_time
from . import osc
from .stderr import STDERR, as_json, show

HELP = "send a prompt to a run in ComfyUI, pause, resume or stop it, or save what it played"
SERVER = "http://127.0.0.1:8188"
TIMEOUT_SECONDS = 30
SIGNALS = ("pause", "resume", "stop")
RUN = {"run": str}  # fields that an answer must have
PLACE = {"run": str, "seconds": (int, float)}
FIELDS = {"schedule": {"text": str}, "prompt": {"run": str, "ticket": int}, "back": PLACE}


def add_options(parser: argparse.ArgumentParser) -> None:
    add, what = parser.add_argument, parser.add_mutually_exclusive_group()
    add("--server", default=SERVER, metavar="URL", help=f"also http://user:password@...; default: {SERVER}")
    add("--run", default="current", metavar="ID", help="default: the newest that is running")
    what.add_argument("prompt", nargs="?", help="takes effect at the next block")
    for signal in SIGNALS:
        what.add_argument(f"--{signal}", dest="signal", action="store_const", const=signal)
    what.add_argument("--status", action="store_true", help="print the status of the run as JSON")
    what.add_argument("--freeze", type=Path, metavar="FILE", help="write what was played as a schedule")
    hears = "send on what OSC messages ask for, until Ctrl-C; needs python-osc"
    what.add_argument("--osc", type=osc.place, metavar="[HOST:]PORT", help=hears)
    back = parser.add_mutually_exclusive_group()
    seconds = "take the run back by so much, then on with the schedule or with a prompt"
    back.add_argument("--back", type=time_of, metavar="TIME", help=seconds)
    back.add_argument("--to", type=time_of, metavar="TIME", help="take it back to there, such as 0:12")
    add("--seed", type=int, help="of the noise from there on; alone: another take of what is there")
    add("--keep", action="store_true", help="first save what is taken back as a version of its own")
    add("--policy", help="recache, refresh, keep, cut or blend; default: the policy of the window")
    add("--blend", type=float, metavar="SECONDS", help="length of a blend")
    add("--image", metavar="NAME", help="begin a new scene with this file of ComfyUI's input folder")


def time_of(text: str) -> float:
    """`3s` or `0:12` in seconds."""
    try:
        return read_time(text)
    except ScheduleError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def run(options: argparse.Namespace) -> None:
    """Send a request to the server and print its answer."""
    check(options)
    if options.back is not None or options.to is not None:
        send(options, "back", taken_back(options))
    elif options.freeze:
        options.freeze.write_text(answer_of(options, "schedule")["text"], encoding="utf-8")
        show(f"{options.freeze}: the schedule that was played")
    elif options.status:
        print(as_json(answer_of(options), "the answer"))
    elif options.osc:
        for what, body in osc.requests(options.osc):
            try:
                send(options, what, body)
            except ValueError as error:
                show(str(error), STDERR)
    elif options.signal:
        send(options, options.signal, {})
    else:
        send(options, "prompt", message(options))


def check(options: argparse.Namespace) -> None:
    """ValueError for options that do not go together."""
    is_back = options.back is not None or options.to is not None
    others = (options.signal, options.status, options.freeze, options.osc)
    if options.prompt is None and (options.policy or options.blend is not None or options.image):
        raise ValueError("--policy, --blend and --image go with a prompt; give one, or leave them out")
    if not is_back and (options.seed is not None or options.keep):
        raise ValueError("--seed and --keep go with --back or --to; give one, or leave them out")
    if is_back == any(others) and options.prompt is None:
        several = "--pause, --resume, --stop, --status, --freeze or --osc"
        raise ValueError(f"give one of these: a prompt, --back or --to, also with a prompt; {several}")


def send(options: argparse.Namespace, what: str, body: dict[str, Any]) -> None:
    """Send a prompt or a signal and print what came of it."""
    answer = answer_of(options, what, body)
    done = f"prompt {answer['ticket']} takes effect at the next block" if what == "prompt" else what
    done = f"goes on at {clock(answer['seconds'])}" if what == "back" else done
    show(f"run {answer['run']}: {done}")


def message(options: argparse.Namespace) -> dict[str, Any]:
    """The prompt as the server takes it; --blend alone implies the policy."""
    policy = options.policy or ("blend" if options.blend is not None else None)
    fields = {"prompt": options.prompt, "policy": policy, "blend": options.blend, "image": options.image}
    return {name: value for name, value in fields.items() if value is not None}


def taken_back(options: argparse.Namespace) -> dict[str, Any]:
    """Where the run is to go back to, as the server takes it."""
    seconds = options.to
    if seconds is None:
        seconds = max(0.0, checked(answer_of(options), PLACE)["seconds"] - options.back)
    fields = {"seconds": seconds, "seed": options.seed, "keep": options.keep or None}
    prompt = message(options) if options.prompt is not None else {}
    return prompt | {name: value for name, value in fields.items() if value is not None}


def answer_of(options: argparse.Namespace, what: str = "", body: dict | None = None) -> dict[str, Any]:
    """The server's answer about a run: POST with a body, else GET. Raises ValueError when it refuses."""
    server, login = server_and_login(options.server)
    path = f"longlive/runs/{urllib.parse.quote(options.run, safe='')}/{what}".rstrip("/")
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"{server}/{path}", data, {"Content-Type": "application/json"})
    opener = urllib.request.build_opener(Redirects(request.host, login))
    try:
        with opener.open(with_login(request, login), timeout=TIMEOUT_SECONDS) as response:
            return checked(json.load(response), FIELDS.get(what, RUN))
    except urllib.error.HTTPError as error:
        raise ValueError(refusal(error, server)) from error
    except (OSError, HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        raise ValueError(f"no server answers at {server} ({reason}); is ComfyUI running?") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{server} does not answer as ComfyUI-LongLive does ({error})") from error


def server_and_login(address: str) -> tuple[str, str]:
    """`http://user:password@host/path` -> the address without its login, and the header that says the login.

    Raises ValueError, which never holds the password, unless it is the address of a server.
    """
    try:
        parts = urllib.parse.urlsplit(address)
        is_server = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # a host or a port that cannot be
        is_server = False
    if not is_server:
        shown = re.sub(r"^(\w*://)?.*@", r"\1", address, flags=re.DOTALL)
        raise ValueError(
            f"{shown!r} is not the address of a server; write it as {SERVER} (and characters such as / and @ "
            "in a password as %2F and %40)"
        )
    server = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl().rstrip("/")
    if parts.username is None:
        return server, ""
    login = ":".join(urllib.parse.unquote(part or "") for part in (parts.username, parts.password))
    return server, f"Basic {base64.b64encode(login.encode()).decode()}"


def with_login(request: urllib.request.Request, login: str) -> urllib.request.Request:
    """The same request; what is added is not sent on to where it is redirected."""
    if login:
        request.add_unredirected_header("Authorization", login)
    return request


class Redirects(urllib.request.HTTPRedirectHandler):
    """Also sends a body on where a server asks for that (307, 308), and the login to the same host alone."""

    http_error_308 = urllib.request.HTTPRedirectHandler.http_error_302  # Python 3.10 has none

    def __init__(self, host: str, login: str):
        self._host, self._login = host, login

    def redirect_request(self, request, answer, code, reason, headers, url):
        """The next request; HTTPError where it must not be made."""
        if code in (307, 308):
            new = urllib.request.Request(url, request.data, request.headers)
        else:
            new = super().redirect_request(request, answer, code, reason, headers, url)
        is_safe = new.host == self._host and new.type in (request.type, "https")
        return with_login(new, self._login if is_safe else "")


def checked(answer: Any, fields: dict[str, Any]) -> dict[str, Any]:
    """The answer; ValueError unless it is an object with these fields."""
    for name, kind in fields.items():
        if not isinstance(answer, dict) or not isinstance(answer.get(name), kind):
            raise ValueError(f"its answer has no {name}")
    return answer


def refusal(error: urllib.error.HTTPError, server: str) -> str:
    """The server's own sentence, if it sent one."""
    try:
        return checked(json.load(error), {"error": str})["error"]
    except (ValueError, RecursionError, HTTPException):
        if error.code == HTTPStatus.UNAUTHORIZED:
            return f"{server} wants to know who asks; write --server http://user:password@..."
        return f"{server} answered {error.code}; is ComfyUI-LongLive installed there?"
