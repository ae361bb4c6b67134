"""How much memory a stream asks ComfyUI for, and the error when that was not enough."""

from itertools import islice

from ..longlive_core.memory import GIB, Setting, estimate, fitting
from ..longlive_core.pipeline import Plan
from . import host
from .io_types import StreamModel
from .vaes import StreamVae

NUM_SHOWN = 3


def setting_of(model: StreamModel, vae: StreamVae, plan: Plan) -> Setting:
    """What the memory of a run depends on."""
    return Setting(plan.width, plan.height, model.precision, vae.kind, plan.window, plan.blocks.stop)


def run_bytes(model: StreamModel, vae: StreamVae, plan: Plan) -> int:
    """Bytes that a run needs next to the weights; ComfyUI accounts for GPUs only, and has their context."""
    if host.device().type == "cpu":
        return 0
    needs = estimate(model.preset, setting_of(model, vae, plan), host.device())
    return needs.total - needs.weights - needs.decoder - needs.gpu_context


def shortage(model: StreamModel, vae: StreamVae, plan: Plan) -> str:
    """One sentence: what was planned, how much this device has, and settings that should fit."""
    wanted, usable = setting_of(model, vae, plan), host.usable_bytes()
    needs = estimate(model.preset, wanted, host.device())
    fits = (setting for setting, _ in fitting(model.preset, wanted, usable, host.device()))
    shown = [str(setting) for setting in islice(fits, NUM_SHOWN + 1) if setting != wanted]
    table = ", ".join(" ".join(line.split()) for line in needs.lines())
    return (
        f"not enough memory for {wanted}: it needs {table}, of {usable / GIB:.2f} GiB here; "
        f"what should fit: {' | '.join(shown[:NUM_SHOWN]) or 'only a smaller size'} "
        "(a tiny decoder: LongLive: Load VAE; fp8: LongLive: Load Model; the window: LongLive: Frame Sink)"
    )
