"""How much memory a stream asks the host for, and what it says when that was not enough."""

from itertools import islice

from ..longlive_core.memory import GIB, Setting, bounded, estimate, fitting
from ..longlive_core.pipeline import Plan
from . import host
from .io_types import StreamModel
from .vaes import StreamVae

NUM_SHOWN = 3


def setting_of(model: StreamModel, vae: StreamVae, plan: Plan) -> Setting:
    """What the memory of a run depends on."""
    window = bounded(plan.window, plan.blocks.stop)
    return Setting(plan.width, plan.height, model.precision, vae.kind, window, model.speed.layers)


def run_bytes(model: StreamModel, vae: StreamVae, plan: Plan) -> int:
    """What a run takes beside the weights, in bytes; the host keeps account of cards only."""
    if host.device().type == "cpu":
        return 0
    return estimate(model.preset, setting_of(model, vae, plan), host.device()).beside_weights


def shortage(model: StreamModel, vae: StreamVae, plan: Plan) -> str:
    """One sentence: what needed how much, and what would fit."""
    wanted, usable = setting_of(model, vae, plan), host.usable_bytes()
    needs = estimate(model.preset, wanted, host.device())
    fits = (setting for setting, _ in fitting(model.preset, wanted, usable, host.device()))
    shown = [str(setting) for setting in islice(fits, NUM_SHOWN + 1) if setting != wanted]
    table = ", ".join(" ".join(line.split()) for line in needs.lines())
    return (
        f"not enough memory for {wanted}: it needs {table}, of {usable / GIB:.2f} GiB here; "
        f"what should fit: {' | '.join(shown) or 'only a smaller size'} "
        "(a tiny decoder: LongLive: Load VAE; fp8: LongLive: Load Model; the window: LongLive: Frame Sink)"
    )
