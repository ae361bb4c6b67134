"""A real ComfyUI for tests: where checkouts lie, a server of one, prompts run on it, workflows as prompts."""

import importlib.util
import json
import os
import socket
import struct
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from longlive_core import PromptSchedule

ROOT = Path(__file__).parents[2]
PACK = "ComfyUI-LongLive"
COMFY = Path.home() / "comfy"
PAGE = "comfyui-frontend-package"
PAGE_SECONDS = 120  # to download it
STAND_INS = Path(__file__).with_name("stand_ins")
START_SECONDS = 300  # 10 on an idle machine
RUN_SECONDS = 180
PREVIEW, TEXT = 1, 3  # kinds of binary messages
DYNAMIC_LIST = "COMFY_DYNAMICCOMBO_V3"  # Save Video has them from 0.33 on
EXTRAS = ("segno",)  # pure Python
FRONTEND_ONLY = ("MarkdownNote", "Note")
# Threads that spin while they wait would take the CPU from the browser and the tests.
SURROUNDINGS = {"NO_PROXY": "127.0.0.1,localhost", "OMP_WAIT_POLICY": "PASSIVE"}


def checkouts() -> list[Path]:
    """Every ComfyUI found: the named one, the one with this pack, and those of ~/comfy, newest first."""
    places = [
        Path(os.environ.get("COMFYUI_PATH") or "/nonexistent"),
        ROOT.parent.parent,
        *(COMFY / name for name in ("ComfyUI-0.33", "ComfyUI", "ComfyUI-0.3.64")),
    ]
    found = [place.resolve() for place in places if (place / "comfy_execution").is_dir()]
    return list(dict.fromkeys(found))


def newest_page() -> Path | None:
    """The newest page, for `--front-end-root`: named, kept, or from the index; None where there is none."""
    kept = Path(os.environ.get("COMFYUI_FRONTEND") or COMFY / "frontend")
    if not (found := pages_in(kept)):
        get = f"{sys.executable} -m pip install --quiet --no-deps --target"
        with suppress(subprocess.SubprocessError):
            subprocess.run([*get.split(), str(kept), PAGE], check=True, timeout=PAGE_SECONDS)
        found = pages_in(kept)
    return found[0] if found else None


def pages_in(folder: Path) -> list[Path]:
    """A page itself, or one installed below a folder."""
    places = (folder, folder / PAGE.replace("-", "_") / "static")
    return [place for place in places if (place / "index.html").is_file()]


class PromptRefused(Exception):
    """The server did not take a prompt."""


@dataclass
class Run:
    """What came of a prompt: events as (type, data), previews and texts as they arrived, and its history."""

    prompt_id: str
    events: list[tuple[str, dict]] = field(default_factory=list)
    previews: list[bytes] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    history: dict[str, Any] = field(default_factory=dict)

    def event(self, kind: str) -> dict | None:
        """The first event of a kind."""
        return next((data for name, data in self.events if name == kind), None)

    @property
    def outputs(self) -> dict[str, dict]:
        return self.history["outputs"]

    @property
    def has_succeeded(self) -> bool:
        return self.history["status"]["status_str"] == "success"


class Server:
    """A running ComfyUI with this pack, or another folder of it, in a base folder of its own."""

    def __init__(
        self, checkout: Path, base: Path, hub: str, pack: Path = ROOT, options: Sequence[str | Path] = ()
    ):
        self.checkout, self.base = checkout, base
        self.log_file = base / "server.log"
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.address = f"127.0.0.1:{probe.getsockname()[1]}"
        prepare_base(base, pack)
        with self.log_file.open("w") as log:
            self._process = subprocess.Popen(
                [*command(checkout, base, self.address), *map(str, options)],
                cwd=checkout,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=os.environ | SURROUNDINGS | {"HF_ENDPOINT": hub, "PYTHONPATH": extras(base)},
            )
        self._wait_until_ready()
        self.start_log = self.log

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def log(self) -> str:
        return self.log_file.read_text(errors="replace")

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(f"http://{self.address}{path}", timeout=30) as response:
            return json.load(response)

    @property
    def version(self) -> str:
        return self.get("/system_stats")["system"]["comfyui_version"]

    def status_of(self, path: str) -> int:
        try:
            with urllib.request.urlopen(f"http://{self.address}{path}", timeout=30) as response:
                return response.status
        except urllib.error.HTTPError as error:
            return error.code

    def post(self, path: str, data: dict) -> Any:
        request = urllib.request.Request(
            f"http://{self.address}{path}", json.dumps(data).encode(), {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=30) as response:
                text = response.read()
        except urllib.error.HTTPError as error:
            raise PromptRefused(error.read().decode()) from error
        return json.loads(text) if text else None

    def run(self, prompt: dict, interrupt_after: int | None = None) -> Run:
        """Run a prompt to its end; with `interrupt_after`, stop it after so many previews."""
        import websocket  # here: finding checkouts must not need it

        client = uuid.uuid4().hex
        listener = websocket.create_connection(
            f"ws://{self.address}/ws?clientId={client}", timeout=RUN_SECONDS
        )
        try:
            answer = self.post("/prompt", {"prompt": prompt, "client_id": client})
            run = Run(answer["prompt_id"])
            while not self._read(listener, run):
                if interrupt_after is not None and len(run.previews) >= interrupt_after:
                    self.post("/interrupt", {"prompt_id": run.prompt_id})
                    interrupt_after = None
        finally:
            listener.close()
        run.history = self.get(f"/history/{run.prompt_id}")[run.prompt_id]
        return run

    def clear(self) -> None:
        """End what runs, drop what waits for it; returns when nothing runs."""
        deadline = time.monotonic() + RUN_SECONDS
        while any(self.get("/queue").values()):
            assert time.monotonic() < deadline, "a run goes on after it was interrupted"
            self.post("/queue", {"clear": True})
            self.post("/interrupt", {})
            time.sleep(0.2)

    def path_of(self, image: dict) -> Path:
        """The file that an entry of a node's outputs names."""
        return self.base / image["type"] / image["subfolder"] / image["filename"]

    def stop(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                self.get("/system_stats")
                return
            except OSError:
                time.sleep(0.2)
        self.stop()
        raise RuntimeError(f"{self.checkout} did not start:\n{self.log[-3000:]}")

    @staticmethod
    def _read(listener: Any, run: Run) -> bool:
        """Take one message; True once the prompt has ended and its history is written."""
        message = listener.recv()
        if isinstance(message, bytes):
            (kind,) = struct.unpack_from(">I", message)
            if kind == PREVIEW:
                run.previews.append(message[8:])
            elif kind == TEXT:
                (length,) = struct.unpack_from(">I", message, 4)
                run.texts.append(message[8 + length :].decode())
            return False
        event = json.loads(message)
        data = event.get("data") or {}
        if data.get("prompt_id") == run.prompt_id:
            run.events.append((event["type"], data))
            return event["type"] == "executing" and data["node"] is None
        return False


def prepare_base(base: Path, pack: Path) -> None:
    """A base folder, if there is none yet, with pack and stand-ins, and the tutorial out of the way."""
    if base.exists():
        return
    (base / "custom_nodes").mkdir(parents=True)
    (base / "custom_nodes" / PACK).symlink_to(pack, target_is_directory=True)
    (base / "custom_nodes" / STAND_INS.name).symlink_to(STAND_INS, target_is_directory=True)
    settings = base / "user" / "default" / "comfy.settings.json"
    settings.parent.mkdir(parents=True)
    settings.write_text('{"Comfy.TutorialCompleted": true}')


def extras(base: Path) -> str:
    """A PYTHONPATH with the packages of extras that no ComfyUI brings, as they are installed here."""
    folder = base / "extras"
    folder.mkdir(exist_ok=True)
    for spec in filter(None, map(importlib.util.find_spec, EXTRAS)):
        if not (folder / spec.name).exists():
            (folder / spec.name).symlink_to(Path(spec.origin).parent, target_is_directory=True)
    return os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))


def command(checkout: Path, base: Path, address: str) -> list[str]:
    """How ComfyUI is started."""
    host, port = address.split(":")
    python = checkout / ".venv" / "bin" / "python"
    options = f"--cpu --listen {host} --port {port} --disable-auto-launch --disable-api-nodes"
    return [
        str(python if python.exists() else sys.executable),
        "main.py",
        *options.split(),
        *("--base-directory", str(base), "--database-url", "sqlite:///:memory:"),
        *("--preview-method", "latent2rgb"),
    ]


def as_prompt(workflow: dict, object_info: dict) -> dict:
    """A UI-format workflow as an API-format prompt: what the page's graphToPrompt does."""
    origins = {link[0]: [str(link[1]), link[2]] for link in workflow["links"]}
    prompt = {}
    for node in workflow["nodes"]:
        if node["type"] in FRONTEND_ONLY:
            continue
        values = widget_values(node, object_info[node["type"]])
        links = {i["name"]: origins[i["link"]] for i in node["inputs"] if i.get("link") is not None}
        prompt[str(node["id"])] = {"class_type": node["type"], "inputs": values | links}
    return prompt


def shortened(prompt: dict, seconds: float) -> dict:
    """The same graph for a short video: times of cues shrink with it."""
    streams = [node["inputs"] for node in prompt.values() if node["class_type"] == "LongLiveStream"]
    scale = seconds / max(inputs["seconds"] for inputs in streams)
    for inputs in streams:
        inputs["seconds"] = seconds
    for node in prompt.values():
        if node["class_type"] == "LongLivePromptSchedule":
            schedule = PromptSchedule.parse(node["inputs"]["prompts"])
            cues = tuple(replace(cue, seconds=cue.seconds * scale) for cue in schedule.cues)
            node["inputs"]["prompts"] = replace(schedule, cues=cues).to_text()
    return prompt


def widget_values(node: dict, info: dict) -> dict[str, Any]:
    """A node's widget values by input name; the value after a seed says what becomes of it."""
    options = {**info["input"].get("required", {}), **info["input"].get("optional", {})}
    values = iter(node["widgets_values"])
    named = {}
    for widget in (i["name"] for i in node["inputs"] if "widget" in i):
        named[widget] = next(values)
        named |= brought_along(widget, named[widget], options[widget])
        if (options[widget] + [{}])[1].get("control_after_generate"):
            next(values)
    assert not list(values), f"{node['type']} has more values than widgets"
    return named


def brought_along(name: str, chosen: str, declared: list) -> dict[str, str]:
    """The inputs that an option of a dynamic list brings along, each at its first option."""
    if declared[0] != DYNAMIC_LIST:
        return {}
    (option,) = (option for option in declared[1]["options"] if option["key"] == chosen)
    named = {}
    for inner, info in option["inputs"].get("required", {}).items():
        full, first = f"{name}.{inner}", info[1]["options"][0]["key"]
        named |= {full: first} | brought_along(full, first, info)
    return named
