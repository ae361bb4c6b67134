"""`python -m benchmarks.comfyui --comfyui PATH [--free [GIB]]`: a real ComfyUI on the GPU, 832x480.

Random files of LongLive-1.3B's true size (8 GB), the published workflows over HTTP. Every setting has a
server of its own and makes the same clip three times: seconds, frames/s as the node shows them, the steady
speed (by the median time between previews), the peak of the GPU's memory, warnings of its allocator. With
--free this process holds all other memory of the GPU: a setting is green where it runs, at 0.9 of the speed
that it has with all of the memory. About a minute a setting on an H200, two with --free. `--small` tries it
on a CPU.
"""

import argparse
import json
import os
import re
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from benchmarks.comfyui_server import ROOT, Run, Server, as_prompt, base_folder
from benchmarks.measure import RESULTS, machine
from benchmarks.true_size import random_files
from longlive_core.bench.random_model import randomised
from longlive_core.config import LONGLIVE_1_3B, TINY_WAN, WanAutoencoderConfig
from longlive_core.geometry import num_frames
from longlive_core.memory import GIB
from longlive_core.vae.tiny import TinyAutoencoder
from longlive_core.weights.vae_files import TAEHV_NAMES

SMALL_MODEL = {"dim": 256, "ffn_dim": 384, "num_heads": 2, "num_layers": 2}
SMALL_SIZE, SMALL_SECONDS, SMALL_VAE = 64, 3.0, 16
SECONDS, RUNS = 10.0, 3
CUES = ((0, "a red star"), (0.5, "a blue circle"), (0.8, "blend: a green circle"))  # by parts of the clip
FAST_ENOUGH = 0.9
POLL_SECONDS = 0.02
PIECE = 4 * GIB  # of the memory that is held
HARMLESS = 2**25  # bytes that may stay free above what was asked for
WARNING = re.compile(r"^.*(?:Allocator\S*\s+Warning|captured allocation|record_stream).*$", re.M)


@dataclass(frozen=True)
class Setting:
    """What runs in `goal` GiB of free memory: a published workflow, and what is changed in it."""

    goal: float
    workflow: str
    precision: str
    kv_cache: str = "full"


SETTINGS = {
    "fp8, tiny": Setting(6.5, "LongLive-1.3B for 8 GB (download)", "fp8"),
    "fp8, fp8 cache, tiny": Setting(5, "LongLive-1.3B for 8 GB (download)", "fp8", "fp8"),
    "bf16, tiny": Setting(8, "LongLive-1.3B for 8 GB (download)", "bf16"),
    "bf16, Wan": Setting(10.5, "LongLive-1.3B one prompt (download)", "bf16"),
}


class Memory:
    """The free memory of the GPU, or of the machine: held down to a size, and watched."""

    def __init__(self, device: str):
        self._is_gpu = device == "cuda"
        self.lowest = self.free()

    def free(self) -> int:
        if self._is_gpu:
            return torch.cuda.mem_get_info()[0]
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")

    @contextmanager
    def held_but(self, gib: float | None) -> Iterator[None]:
        """All but so many GiB of a GPU are taken; plain allocations, as other programs make them."""
        held = []
        while gib is not None and self._is_gpu and (rest := self.free() - int(gib * GIB)) > HARMLESS:
            held.append(torch.empty(min(rest, PIECE), dtype=torch.uint8, device="cuda"))
        yield
        held.clear()
        torch.cuda.empty_cache()

    @contextmanager
    def watched(self) -> Iterator[dict[str, float]]:
        """The most that others take meanwhile: `peak_gib` is there at the end."""
        before, is_over, found = self.free(), threading.Event(), {}
        self.lowest = before

        def watch() -> None:
            while not is_over.wait(POLL_SECONDS):
                self.lowest = min(self.lowest, self.free())

        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        yield found
        is_over.set()
        thread.join()
        found["peak_gib"] = round((before - self.lowest) / GIB, 2)


class Bench:
    """A checkout of ComfyUI, a folder with random models for it, and what is measured there."""

    def __init__(self, options: argparse.Namespace):
        self._checkout, self._base = options.comfyui.resolve(), options.folder.resolve()
        self._is_small, self._options = options.small, options.options.split()
        self._options += ["--cpu"] if options.small else []
        self._seconds = SMALL_SECONDS if options.small else options.seconds
        self._memory = Memory("cpu" if options.small else "cuda")

    def write_models(self) -> None:
        """Files with the names that the workflows ask for, unless they are there."""
        base_folder(self._base)
        models = self._base / "models"
        if (models / "vae").exists():
            return
        for folder in ("diffusion_models", "loras", "vae_approx"):
            (models / folder).mkdir(parents=True, exist_ok=True)
        config = replace(LONGLIVE_1_3B.model, **(SMALL_MODEL if self._is_small else {}))
        names = (models / "diffusion_models" / "longlive_base.pt", models / "loras" / "longlive_lora.pt")
        random_files(config, *names)
        save_file(tiny_decoder(), models / "vae_approx" / "taew2_1.safetensors")
        (models / "vae").mkdir()
        dim = SMALL_VAE if self._is_small else WanAutoencoderConfig().width
        make = {"name": "wan_2.1_vae.safetensors", "dim": dim}
        with self._server() as server:
            made = server.run({"1": {"class_type": "BenchWriteVae", "inputs": make}})
        if made.error:
            raise SystemExit(f"no VAE could be written: {made.error}")

    def measure(self, setting: Setting, free_gib: float | None) -> dict[str, Any]:
        """A fresh server and the same clip several times; it ends with the first one that fails."""
        runs: list[dict[str, Any]] = []
        with self._memory.held_but(free_gib), self._memory.watched() as peak:
            start = time.monotonic()
            with self._server() as server:
                started = round(time.monotonic() - start, 1)
                version = server.ask("/system_stats")["system"]["comfyui_version"]
                prompt = self.prompt(setting, server)
                for seed in range(RUNS):
                    stream_of(prompt)["seed"] = seed  # else ComfyUI would take the video it has
                    runs.append(figures_of(server.run(prompt), prompt))
                    if "error" in runs[-1]:
                        break
            log = server.log
        warnings = WARNING.findall(log)
        figures = {"comfyui": version, "free_gib": free_gib, **peak, "start_seconds": started, "runs": runs}
        return figures | {"allocator_warnings": len(warnings), "first_warning": (warnings or [None])[0]}

    def prompt(self, setting: Setting, server: Server) -> dict[str, dict]:
        """The setting's workflow for the API, with three prompts and the clip's length in it."""
        workflow = json.loads((ROOT / "workflows" / f"{setting.workflow}.json").read_text("utf-8"))
        info = server.ask("/object_info")
        prompt = as_prompt(workflow, info)
        for node in prompt.values():
            kind, inputs = node["class_type"], node["inputs"]
            if kind == "CLIPLoader":
                node |= {"class_type": "BenchRandomText", "inputs": {}}
            elif kind == "LongLiveLoadModel":
                inputs["precision"] = setting.precision
            elif kind == "LongLivePromptSchedule":
                inputs["prompts"] = "\n".join(f"{part * self._seconds:g}s => {cue}" for part, cue in CUES)
            elif kind == "SaveVideo":
                inputs["format.codec"] = "auto"  # how newer ones ask for it
        side = SMALL_SIZE if self._is_small else 0
        stream_of(prompt).update(seconds=self._seconds, width=side, height=side)
        if setting.kv_cache != "full":
            window = defaults(info["LongLiveFrameSink"]) | {"kv_cache": setting.kv_cache}
            prompt["window"] = {"class_type": "LongLiveFrameSink", "inputs": window}
            stream_of(prompt)["window"] = ["window", 0]
        return prompt

    def _server(self) -> Server:
        return Server(self._checkout, self._base, self._options)


def tiny_decoder() -> dict[str, torch.Tensor]:
    """A random decoder in the layout of taew2_1."""
    ours = randomised(TinyAutoencoder(TINY_WAN)).decoder.state_dict(prefix="decoder.")
    theirs = {our: their for their, our in TAEHV_NAMES.items()}
    prefixes = {name: next(prefix for prefix in theirs if name.startswith(prefix)) for name in ours}
    return {theirs[prefixes[n]] + n.removeprefix(prefixes[n]): weight for n, weight in ours.items()}


def stream_of(prompt: dict[str, dict]) -> dict[str, Any]:
    """The inputs of the node that makes the video."""
    return next(node["inputs"] for node in prompt.values() if node["class_type"] == "LongLiveStream")


def defaults(info: dict) -> dict[str, Any]:
    """The widgets of a node, untouched."""
    declared = info["input"]["required"] | info["input"].get("optional", {})
    return {name: (rest[0] if rest else {}).get("default") for name, (_, *rest) in declared.items()}


def figures_of(run: Run, prompt: dict[str, dict]) -> dict[str, Any]:
    """Seconds in all and of the video alone, speeds in frames a second, what the nodes showed."""
    stream = next(name for name, node in prompt.items() if node["class_type"] == "LongLiveStream")
    begin = run.begins.get(stream, run.start)
    end = next((at for at in sorted(run.begins.values()) if at > begin), run.end)
    between = [late - early for early, late in zip(run.previews, run.previews[1:], strict=False)]
    block = LONGLIVE_1_3B.window.block_latent_frames
    frames = num_frames(2 * block) - num_frames(block)
    return {
        "seconds": round(run.end - run.start, 2),
        "stream_seconds": round(end - begin, 2),
        "fps_shown": run.shown_speed,
        "fps_steady": round(frames / statistics.median(between), 2) if between else None,
        "notes": list(dict.fromkeys(run.texts)),
    } | ({"error": run.error} if run.error else {})


def faults(measured: dict[str, Any], unconstrained: dict[str, Any] | None) -> list[str]:
    """What is wrong with the figures of a setting, in sentences; of a green one nothing."""
    *_, last = measured["runs"]
    if "error" in last:
        return [f"run {len(measured['runs'])} failed: {last['error']}"]
    if not (last["fps_shown"] and last["fps_steady"]):
        return ["no speed was shown"]
    found = []
    if count := measured["allocator_warnings"]:
        found.append(f"{count} warnings of the allocator")
    if (share := last["fps_shown"] / last["fps_steady"]) < FAST_ENOUGH:
        found.append(f"the clip ran at {share:.2f} of the steady speed")
    whole = unconstrained["runs"][-1].get("fps_steady") if unconstrained else None
    if whole and (share := last["fps_steady"] / whole) < FAST_ENOUGH:
        found.append(f"{share:.2f} of the speed with all of the memory")
    return found


def run(bench: Bench, chosen: dict[str, Setting], free: str | float | None) -> Iterator[tuple[str, dict]]:
    """Each setting's figures: with all of the memory, and with --free also with so much of it."""
    for name, setting in chosen.items():
        whole = bench.measure(setting, None)
        yield name, judged(whole, None)
        if free is not None:
            gib = setting.goal if free == "goal" else float(free)
            yield f"{name}, {gib:g} GiB free", judged(bench.measure(setting, gib), whole)


def judged(measured: dict[str, Any], unconstrained: dict[str, Any] | None) -> dict[str, Any]:
    """The figures with their verdict in front."""
    wrong = faults(measured, unconstrained)
    return {"verdict": "red" if wrong else "green", "wrong": wrong} | measured


def line(name: str, figures: dict[str, Any]) -> str:
    """What is printed of a setting."""
    speeds = ", ".join(f"{run['seconds']} s at {run['fps_shown']} fps" for run in figures["runs"])
    steady = figures["runs"][-1]["fps_steady"]
    summary = f"{name}: {figures['verdict']}; {speeds}; steady {steady} fps; peak {figures['peak_gib']} GiB"
    return "\n    ".join([summary, *figures["wrong"]])


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--comfyui", type=Path, required=True, help="a checkout; its .venv runs it, if any")
    parser.add_argument(
        "--free",
        nargs="?",
        const="goal",
        metavar="GIB",
        help="settings that should run in so much memory; without a number each in its own",
    )
    parser.add_argument("--only", nargs="+", metavar="SETTING", choices=SETTINGS, default=[])
    parser.add_argument("--seconds", type=float, default=SECONDS)
    parser.add_argument("--options", default="", help="of ComfyUI, e.g. '--disable-cuda-malloc'")
    parser.add_argument("--folder", type=Path, help="where the random models lie, or are written to stay")
    parser.add_argument("--small", action="store_true", help="tiny sizes on the CPU, to try it out")
    parser.add_argument("--out", type=Path, default=RESULTS / "comfyui.json")
    return parser.parse_args(arguments)


def chosen_settings(options: argparse.Namespace) -> dict[str, Setting]:
    """Those named, or those that are promised to run in the memory that --free leaves."""
    limit = float("inf") if options.free in (None, "goal") else float(options.free)
    names = options.only or [name for name, setting in SETTINGS.items() if setting.goal <= limit]
    if not names:
        least = min(setting.goal for setting in SETTINGS.values())
        raise SystemExit(f"nothing runs in {limit:g} GiB; choose at least {least:g}")
    return {name: SETTINGS[name] for name in names}


def main(arguments: list[str] | None = None) -> None:
    """Print and keep each setting as soon as it is measured."""
    options = parse(arguments)
    if not (options.small or torch.cuda.is_available()):
        raise SystemExit("no NVIDIA GPU here; --small tries the script on the CPU")
    chosen = chosen_settings(options)
    with tempfile.TemporaryDirectory() as folder:
        options.folder = options.folder or Path(folder)
        bench = Bench(options)
        bench.write_models()
        results = {**machine(), "options": options.options, "settings": {}}
        for name, figures in run(bench, chosen, options.free):
            results["settings"][name] = figures
            options.out.write_text(json.dumps(results, indent=2) + "\n")
            print(line(name, figures), flush=True)


if __name__ == "__main__":
    main()
