"""kill -9 of a real ComfyUI at random moments of one run: is the video the uninterrupted one?

    python -m benchmarks.server_kills --comfyui ~/comfy/ComfyUI-0.33 --kills 10

After each kill a new server gets the same graph of Mini, and the run a prompt at a random moment. Compared
bit for bit are latents and decoded frames, with those of an uninterrupted run of what was played.
"""

import argparse
import os
import random
import signal
import sys
import time
import urllib.request
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import imageio.v3 as iio
import torch

from benchmarks.measure import report
from longlive_core.config import Policy
from tests.host.comfy_server import PromptRefused, Server
from tests.host.test_unfinished import NAVY, NOTE, PLUM, finished, graph, until


def killed(server: Server, prompt: dict, seconds: float) -> bool:
    """Queue the graph, send a prompt, kill the server; whether the run went on."""
    try:
        server.post("/prompt", {"prompt": prompt})
        until(server, lambda run: run["state"] == "running")
        time.sleep(random.uniform(0, seconds))
        sent = {"prompt": random.choice([NAVY, PLUM]), "policy": random.choice([*Policy]).value}
        server.post("/longlive/runs/current/prompt", sent)
        time.sleep(random.uniform(0, seconds))
        return any(NOTE in note for note in server.get("/longlive/runs")["runs"][0]["notes"])
    except PromptRefused:  # the run had ended
        return False
    finally:
        os.kill(server.pid, signal.SIGKILL)
        server.stop()


def made(server: Server, prompt: dict) -> tuple[dict[str, torch.Tensor], dict]:
    """What the graph makes, and its run."""
    latents, run = finished(server, prompt)
    with urllib.request.urlopen(f"http://{server.address}{run['video']}", timeout=60) as video:
        return {"latents": latents, "frames": torch.from_numpy(iio.imread(video.read(), plugin="pyav"))}, run


def figures(options: argparse.Namespace, base: Path) -> dict:
    """How often the run went on, and what is another at its end."""
    start = partial(Server, options.comfyui.expanduser().resolve(), base, "http://127.0.0.1:9")
    prompt = graph("killed", seconds=options.seconds)
    times = [killed(start(), prompt, options.mean) for _ in range(options.kills)]
    server = start()
    try:
        found, run = made(server, prompt)
        has_gone_on = any(NOTE in note for note in run["notes"])
        expected, _ = made(server, graph("whole", run["schedule"], seconds=options.seconds, resume="off"))
        facts = {"comfyui": server.version, "seconds": options.seconds, "kills": options.kills}
    finally:
        server.stop()
    facts |= {"went on": sum(times) + has_gone_on, "cues": len(run["cues"])}
    facts |= {name: [*value.shape] for name, value in found.items()}
    return facts | {"differing": [name for name in found if not torch.equal(found[name], expected[name])]}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--comfyui", type=Path, required=True)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=60.0, help="of the video")
    parser.add_argument("--mean", type=float, default=4.0, help="seconds of a run to its kill, on average")
    options = parser.parse_args()
    random.seed(0)
    with TemporaryDirectory() as folder:
        found = figures(options, Path(folder) / "base")
    report("server_kills", found)
    return 1 if found["differing"] else 0


if __name__ == "__main__":
    sys.exit(main())
