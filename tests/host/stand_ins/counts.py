"""What a server did since it was last asked, at /test/counts: files read, costly calls, graphs compiled."""

import os
import sys
from collections import Counter
from functools import wraps
from typing import Any

import safetensors
import torch
from aiohttp import web
from server import PromptServer
from torch._dynamo.utils import counters

OURS = (
    *("attention_backend", "load_mini", "load_transformer", "load_vae", "sha256_of"),
    *("shared_transformer", "build_wan_autoencoder", "build_tiny_decoder"),
)
COMPILE = torch.compile
CALLS: Counter[str] = Counter()
READ: list[str] = []
COUNTED: set[int] = set()


def note_file(event: str, arguments: tuple) -> None:
    """An audit hook; libraries in other languages open files unseen."""
    if event == "open" and not isinstance(arguments[0], int):
        path, _, flags = arguments
        if flags & os.O_ACCMODE != os.O_WRONLY:
            READ.append(os.fsdecode(path))


def counted(name: str, call: Any) -> Any:
    @wraps(call, updated=())
    def counting(*args, **kwargs):
        CALLS[name] += 1
        if call is COMPILE:  # without a compiler: its guards and graphs are real, its kernels are torch's
            kwargs |= {"backend": "eager", "options": None}
        return call(*args, **kwargs)

    return counting


def count_calls() -> None:
    """Count the calls of every module that has one of these by its name; twice changes nothing."""
    others = {"safe_open": safetensors.safe_open, "load": torch.load, "compile": COMPILE}
    for module in list(sys.modules.values()):
        for name in (*OURS, *others):
            found = vars(module).get(name) if hasattr(module, "__dict__") else None
            is_ours = name in OURS and "longlive_core" in getattr(found, "__module__", "")
            is_ours |= name == "shared_transformer" and callable(found)
            if (is_ours or (found is not None and found is others.get(name))) and id(found) not in COUNTED:
                setattr(module, name, counting := counted(name, found))
                COUNTED.add(id(counting))


@PromptServer.instance.routes.get("/test/counts")
async def counts(_: web.Request) -> web.Response:
    count_calls()
    answer = {"calls": dict(CALLS), "read": sorted(set(READ)), "graphs": counters["stats"]["unique_graphs"]}
    CALLS.clear()
    READ.clear()
    counters["stats"]["unique_graphs"] = 0
    return web.json_response(answer)


sys.addaudithook(note_file)
