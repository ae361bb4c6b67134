"""Which attention backend is the fastest here: measured once per card, versions, shape, then remembered."""

import json
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import benchmark

from ..config import ModelConfig, WindowConfig
from ..reasons import reason_of
from .attention import EXACT, Attend, attention_backend, sdpa

TIMING_SECONDS = 0.05
CALLS_A_GRAPH = 10
TOLERANCE = 0.02  # of the largest value: further off is another computation, not another rounding
PACKAGES = ("torch", "flash-attn", "flash-attn-3", "sageattention")

Timer = Callable[[Callable[[], Any]], float]  # seconds one call takes


@dataclass(frozen=True)
class AttentionShape:
    """Of one block: queries, keys and values [1, tokens, heads, head dim]."""

    queries: int
    keys: int
    num_heads: int
    head_dim: int

    @classmethod
    def of(cls, model: ModelConfig, window: WindowConfig, tokens: int) -> "AttentionShape":
        """A block on a full window, `tokens` a latent frame."""
        frames = window.block_latent_frames, window.window_latent_frames
        return cls(*(tokens * count for count in frames), model.num_heads, model.head_dim)

    def tensors(self, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        generator = torch.Generator(device).manual_seed(0)
        return tuple(
            torch.randn(
                1, length, self.num_heads, self.head_dim, device=device, dtype=dtype, generator=generator
            )
            for length in (self.queries, self.keys, self.keys)
        )


class Timing(NamedTuple):
    """How one backend fared: seconds a call, or why it cannot be used."""

    name: str
    seconds: float | None
    reason: str = ""


def seconds_of(run: Callable[[], Any]) -> float:
    """Median seconds of a call, the device waited for.

    Of what runs on a card, the card's time alone: launching takes the host longer than some kernels run, but
    behind a full queue that is time of nobody's.
    """
    made = run()
    is_on_card = isinstance(made, Tensor) and made.is_cuda
    run, calls = recorded(run, CALLS_A_GRAPH, made.device) if is_on_card else (run, 1)
    timer = benchmark.Timer("run()", globals={"run": run}, num_threads=torch.get_num_threads())
    return timer.blocked_autorange(min_run_time=TIMING_SECONDS).median / calls


def recorded(run: Callable[[], Any], calls: int, card: torch.device) -> tuple[Callable[[], Any], int]:
    """So many calls as one CUDA graph of that card; what cannot be recorded, as it is, a call at a time."""
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream(card)
    try:
        with torch.cuda.device(card), torch.cuda.graph(graph, None, stream, "thread_local"):
            for _ in range(calls):
                run()
    except RuntimeError:
        return run, 1
    return graph.replay, calls


def measured(
    shape: AttentionShape,
    device: torch.device,
    dtype: torch.dtype,
    names: Iterable[str] = EXACT,
    timer: Timer = seconds_of,
) -> list[Timing]:
    """Every backend timed on tensors of that shape; a wrong result disqualifies like one that fails."""
    q, k, v = shape.tensors(device, dtype)
    expected = sdpa(q, k, v)
    return [_timed(name, (q, k, v), expected, timer) for name in names]


def _timed(name: str, inputs: tuple[Tensor, ...], expected: Tensor, timer: Timer) -> Timing:
    try:
        attend: Attend = attention_backend(name)
        out = attend(*inputs)
        if (out - expected).abs().max() > TOLERANCE * expected.abs().max():
            return Timing(name, None, "its result is another than sdpa's")
        return Timing(name, timer(lambda: attend(*inputs)))
    except Exception as error:  # foreign kernels fail to launch in ways of their own
        return Timing(name, None, reason_of(error))


def fastest_attention(
    shape: AttentionShape,
    device: torch.device,
    dtype: torch.dtype,
    memory: Path | None = None,
    timer: Timer = seconds_of,
) -> str:
    """The name of the fastest exact backend, from `memory` if this card was measured before.

    `memory` None is the user's cache folder; one that cannot be read or written costs a measurement.
    """
    memory = memory or default_memory()
    key = f"{_card(device)} | {_versions()} | {dtype} | {shape}"
    known = _read(memory)
    if known.get(key) in EXACT:
        return known[key]
    timings = measured(shape, device, dtype, timer=timer)
    timed = {timing.name: timing.seconds for timing in timings if timing.seconds is not None}
    best = min(timed, key=timed.get, default="sdpa")
    _write(memory, {**known, key: best})
    return best


def default_memory() -> Path:
    """`longlive/attention.json` in the user's cache folder."""
    folder = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(folder) / "longlive" / "attention.json"


def _card(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _versions() -> str:
    found = {dist.metadata["Name"]: dist.version for dist in metadata.distributions()}
    return ", ".join(f"{name} {found[name]}" for name in PACKAGES if name in found)


def _read(memory: Path) -> dict[str, str]:
    try:
        known = json.loads(memory.read_text())
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def _write(memory: Path, known: dict[str, str]) -> None:
    try:
        memory.parent.mkdir(parents=True, exist_ok=True)
        part = memory.with_suffix(".part")
        part.write_text(json.dumps(known, indent=2))
        os.replace(part, memory)
    except OSError:
        return
