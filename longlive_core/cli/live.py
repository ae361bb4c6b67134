"""`longlive live`: steer a run of LongLive: Stream in a ComfyUI server, over HTTP."""

import argparse
import json
import urllib.error
import urllib.parse
import urllib.request
from http.client import HTTPException
from pathlib import Path
from typing import Any

HELP = "send a prompt to a run that goes on in ComfyUI, pause, resume, stop or freeze it"
SERVER = "http://127.0.0.1:8188"
CURRENT = "current"
TIMEOUT_SECONDS = 30
SIGNALS = ("pause", "resume", "stop")
FIELDS = {"schedule": {"text": str}, "prompt": {"run": str, "ticket": int}}  # that an answer must have
FIELDS_OF_SNAPSHOT = {"run": str}


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--server", default=SERVER, metavar="URL", help=f"default: {SERVER}")
    parser.add_argument("--run", default=CURRENT, metavar="ID", help="default: the newest that goes on")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("prompt", nargs="?", help="takes effect at the next block")
    for signal in SIGNALS:
        what.add_argument(f"--{signal}", dest="signal", action="store_const", const=signal)
    what.add_argument("--status", action="store_true", help="print what the run is doing, as JSON")
    what.add_argument("--freeze", type=Path, metavar="FILE", help="write what was played as a schedule")
    parser.add_argument("--policy", help="recache, refresh, keep, cut or blend; default: the window's own")
    parser.add_argument("--blend", type=float, metavar="SECONDS", help="how long a blend takes")


def run(options: argparse.Namespace) -> None:
    """Ask the server, and print what it answered."""
    if options.prompt is None and (options.policy or options.blend is not None):
        raise ValueError("--policy and --blend go with a prompt; give one, or leave them out")
    if options.freeze:
        options.freeze.write_text(asked(options, "schedule")["text"], encoding="utf-8")
        print(f"{options.freeze}: the schedule that was played")
    elif options.status:
        print(json.dumps(asked(options), ensure_ascii=False, indent=2))
    elif options.signal:
        print(f"run {asked(options, options.signal, {})['run']}: {options.signal}")
    else:
        answer = asked(options, "prompt", message(options))
        print(f"run {answer['run']}: prompt {answer['ticket']} takes effect at the next block")


def message(options: argparse.Namespace) -> dict[str, Any]:
    """The prompt as the server takes it; a blend's length alone asks for a blend."""
    policy = options.policy or ("blend" if options.blend is not None else None)
    fields = {"prompt": options.prompt, "policy": policy, "blend": options.blend}
    return {name: value for name, value in fields.items() if value is not None}


def asked(options: argparse.Namespace, what: str = "", body: dict[str, Any] | None = None) -> dict[str, Any]:
    """The server's answer about a run; ValueError, with its own sentence, when it refuses."""
    parts = [options.server.rstrip("/"), "longlive/runs", urllib.parse.quote(options.run, safe=""), what]
    url = "/".join(part for part in parts if part)
    data = None if body is None else json.dumps(body).encode()
    if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
        raise ValueError(f"{options.server!r} is not the address of a server; write it as {SERVER}")
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as response:
            return checked(json.load(response), FIELDS.get(what, FIELDS_OF_SNAPSHOT))
    except urllib.error.HTTPError as error:
        raise ValueError(refusal(error, options.server)) from error
    except (urllib.error.URLError, HTTPException, TimeoutError) as error:
        reason = getattr(error, "reason", None) or error
        raise ValueError(f"no server answers at {options.server} ({reason}); is ComfyUI running?") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{options.server} does not answer as ComfyUI-LongLive does ({error})") from error


def checked(answer: Any, fields: dict[str, type]) -> dict[str, Any]:
    """The answer; ValueError unless it is an object with these fields."""
    if not isinstance(answer, dict):
        raise ValueError("its answer is no object")
    for name, kind in fields.items():
        if not isinstance(answer.get(name), kind):
            raise ValueError(f"its answer has no {name}")
    return answer


def refusal(error: urllib.error.HTTPError, server: str) -> str:
    """What a server said when it refused."""
    try:
        return checked(json.load(error), {"error": str})["error"]
    except (ValueError, RecursionError):
        return f"{server} answered {error.code}; is ComfyUI-LongLive installed there?"
