"""`longlive live`: steer a run of LongLive: Stream in a ComfyUI server, over HTTP."""

import argparse
import json
import urllib.error
import urllib.parse
import urllib.request
from http.client import HTTPException
from pathlib import Path
from typing import Any

from .stderr import as_json, show

HELP = "send a prompt to a run in ComfyUI, pause, resume or stop it, or save what it played"
SERVER = "http://127.0.0.1:8188"
TIMEOUT_SECONDS = 30
SIGNALS = ("pause", "resume", "stop")
RUN = {"run": str}  # fields that an answer must have
FIELDS = {"schedule": {"text": str}, "prompt": {"run": str, "ticket": int}}


def add_options(parser: argparse.ArgumentParser) -> None:
    add, what = parser.add_argument, parser.add_mutually_exclusive_group(required=True)
    add("--server", default=SERVER, metavar="URL", help=f"default: {SERVER}")
    add("--run", default="current", metavar="ID", help="default: the newest that is running")
    what.add_argument("prompt", nargs="?", help="takes effect at the next block")
    for signal in SIGNALS:
        what.add_argument(f"--{signal}", dest="signal", action="store_const", const=signal)
    what.add_argument("--status", action="store_true", help="print the status of the run as JSON")
    what.add_argument("--freeze", type=Path, metavar="FILE", help="write what was played as a schedule")
    add("--policy", help="recache, refresh, keep, cut or blend; default: the policy of the window")
    add("--blend", type=float, metavar="SECONDS", help="length of a blend")


def run(options: argparse.Namespace) -> None:
    """Send a request to the server and print its answer."""
    if options.prompt is None and (options.policy or options.blend is not None):
        raise ValueError("--policy and --blend go with a prompt; give one, or leave them out")
    if options.freeze:
        options.freeze.write_text(answer_of(options, "schedule")["text"], encoding="utf-8")
        show(f"{options.freeze}: the schedule that was played")
    elif options.status:
        print(as_json(answer_of(options), "the answer"))
    elif options.signal:
        show(f"run {answer_of(options, options.signal, {})['run']}: {options.signal}")
    else:
        answer = answer_of(options, "prompt", message(options))
        show(f"run {answer['run']}: prompt {answer['ticket']} takes effect at the next block")


def message(options: argparse.Namespace) -> dict[str, Any]:
    """The prompt as the server takes it; --blend alone implies the policy."""
    policy = options.policy or ("blend" if options.blend is not None else None)
    fields = {"prompt": options.prompt, "policy": policy, "blend": options.blend}
    return {name: value for name, value in fields.items() if value is not None}


def answer_of(options: argparse.Namespace, what: str = "", body: dict | None = None) -> dict[str, Any]:
    """The server's answer about a run: POST with a body, else GET. Raises ValueError when it refuses."""
    server = options.server.rstrip("/")
    if urllib.parse.urlsplit(server).scheme not in ("http", "https"):
        raise ValueError(f"{options.server!r} is not the address of a server; write it as {SERVER}")
    url = f"{server}/longlive/runs/{urllib.parse.quote(options.run, safe='')}/{what}".rstrip("/")
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as response:
            return checked(json.load(response), FIELDS.get(what, RUN))
    except urllib.error.HTTPError as error:
        raise ValueError(refusal(error, options.server)) from error
    except (OSError, HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        raise ValueError(f"no server answers at {options.server} ({reason}); is ComfyUI running?") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{options.server} does not answer as ComfyUI-LongLive does ({error})") from error


def checked(answer: Any, fields: dict[str, type]) -> dict[str, Any]:
    """The answer; ValueError unless it is an object with these fields."""
    for name, kind in fields.items():
        if not isinstance(answer, dict) or not isinstance(answer.get(name), kind):
            raise ValueError(f"its answer has no {name}")
    return answer


def refusal(error: urllib.error.HTTPError, server: str) -> str:
    """The server's own sentence, if it sent one."""
    try:
        return checked(json.load(error), {"error": str})["error"]
    except (ValueError, RecursionError):
        return f"{server} answered {error.code}; is ComfyUI-LongLive installed there?"
