"""A ComfyUI that benchmarks start: its log, prompts run on it, workflows of its pages as prompts."""

import json
import os
import socket
import struct
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
PATIENCE = 600  # seconds that it may take to start, or say nothing while it runs
PREVIEW, TEXT = 1, 3  # kinds of binary messages
ON_PAGES_ONLY = ("MarkdownNote", "Note")
RUN_EVENT = "longlive.run"


@dataclass
class Run:
    """What came of a prompt: when which node began, when previews came, what nodes showed, an error if any.

    `shown_speed` are the frames a second that the panel of a stream showed last.
    """

    start: float = field(default_factory=time.monotonic)
    end: float = 0.0
    begins: dict[str | None, float] = field(default_factory=dict)
    previews: list[float] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    shown_speed: float | None = None
    error: str | None = None

    def take(self, message: str | bytes, prompt_id: str) -> bool:
        """Take a message of the server's; True once the prompt has ended."""
        if isinstance(message, bytes):
            self._take_bytes(message)
            return False
        event = json.loads(message)
        kind, data = event["type"], event.get("data") or {}
        if kind == RUN_EVENT:
            self.shown_speed = data["fps"] or self.shown_speed
            self.texts += [note for note in data["notes"] if note not in self.texts]
        if data.get("prompt_id") != prompt_id:
            return False
        if kind in ("execution_error", "execution_interrupted"):
            self.error = data.get("exception_message", kind)
        if kind == "executing":
            self.begins.setdefault(data["node"], time.monotonic())
        self.end = time.monotonic()
        return kind == "executing" and data["node"] is None

    def _take_bytes(self, message: bytes) -> None:
        (kind,) = struct.unpack_from(">I", message)
        if kind == PREVIEW:
            self.previews.append(time.monotonic())
        elif kind == TEXT:
            (length,) = struct.unpack_from(">I", message, 4)
            self.texts.append(message[8 + length :].decode())


class Server:
    """ComfyUI with this pack and the nodes of `comfyui_nodes.py`, on a free port of this machine."""

    def __init__(self, checkout: Path, base: Path, options: list[str]):
        self._log_file = base / "server.log"
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._address = "127.0.0.1", str(probe.getsockname()[1])
        python = checkout / ".venv" / "bin" / "python"
        command = [str(python if python.exists() else sys.executable), "main.py"]
        command += ["--base-directory", str(base)]
        command += ["--listen", self._address[0], "--port", self._address[1], "--disable-auto-launch"]
        command += ["--database-url", "sqlite:///:memory:", "--preview-method", "latent2rgb", *options]
        with self._log_file.open("w") as log:
            self._process = subprocess.Popen(command, cwd=checkout, stdout=log, stderr=subprocess.STDOUT)

    def __enter__(self) -> "Server":
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                self.ask("/system_stats")
                return self
            except OSError:
                time.sleep(0.2)
        self.__exit__()
        raise RuntimeError(f"ComfyUI did not start:\n{self.log[-3000:]}")

    def __exit__(self, *_: Any) -> None:
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    @property
    def log(self) -> str:
        return self._log_file.read_text(errors="replace")

    def ask(self, path: str, data: dict | None = None) -> Any:
        """The JSON of an answer; with `data` it is posted. RuntimeError with what the server refused."""
        body = None if data is None else json.dumps(data).encode()
        kind = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"http://{':'.join(self._address)}{path}", body, kind)
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                return json.load(response)
        except urllib.error.HTTPError as error:
            raise RuntimeError(error.read().decode(errors="replace")) from error

    def run(self, prompt: dict) -> Run:
        """Run a prompt to its end."""
        import websocket  # here: not every script that is tried has it

        address = f"ws://{':'.join(self._address)}/ws?clientId=benchmark"
        listener = websocket.create_connection(address, timeout=PATIENCE)
        try:
            run = Run()
            answer = self.ask("/prompt", {"prompt": prompt, "client_id": "benchmark"})
            while not run.take(listener.recv(), answer["prompt_id"]):
                pass
        finally:
            listener.close()
        return run


def base_folder(base: Path) -> None:
    """A folder for ComfyUI's models and outputs, with this pack and the nodes of the benchmark in it."""
    packs = base / "custom_nodes"
    packs.mkdir(parents=True, exist_ok=True)
    for target in (ROOT, Path(__file__).with_name("comfyui_nodes.py")):
        if not (packs / target.name).exists():
            os.symlink(target, packs / target.name)


def as_prompt(workflow: dict, object_info: dict) -> dict[str, dict]:
    """A workflow of ComfyUI's pages as a prompt of its API."""
    origins = {link[0]: [str(link[1]), link[2]] for link in workflow["links"]}
    prompt = {}
    for node in workflow["nodes"]:
        if node["type"] not in ON_PAGES_ONLY:
            links = {i["name"]: origins[i["link"]] for i in node["inputs"] if i.get("link") is not None}
            values = widget_values(node, object_info[node["type"]]["input"])
            prompt[str(node["id"])] = {"class_type": node["type"], "inputs": values | links}
    return prompt


def widget_values(node: dict, declared: dict) -> dict[str, Any]:
    """The values of a node's widgets by name; the value behind a seed says what becomes of it."""
    options = declared.get("required", {}) | declared.get("optional", {})
    values, named = iter(node["widgets_values"]), {}
    for name in (i["name"] for i in node["inputs"] if "widget" in i):
        named[name] = next(values)
        if [*options.get(name, ()), {}, {}][1].get("control_after_generate"):
            next(values)
    return named
