"""`python -m benchmarks.quantization`: what 8 bits cost in latents and in videos, and what they gain in time.

Losses are those of `plain`, the meaning of every kernel in 32-bit arithmetic, so they hold on any machine but
for the order of the sums; times are of the kernels themselves on this one.
"""

import argparse
import json
import statistics
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from longlive_core.model.fastest import seconds_of
from longlive_core.model.linear8 import FP8, plain, plain_unscaled
from longlive_core.weights.arithmetic import KERNELS, WIDE, Kernel, Machine, Work, attempt, products
from torch import Tensor, nn
from tqdm import tqdm

from benchmarks.measure import RESULTS, report
from longlive_core.config import LONGLIVE_1_3B, MINI, Policy
from longlive_core.geometry import latent_size
from longlive_core.mini.loader import load_mini
from longlive_core.model.causal_wan import CausalWan
from longlive_core.rollout.noise import shifted_sigmas
from longlive_core.rollout.rollout import Block, Switch, rollout
from longlive_core.weights.quantize import layer_linears, quantize, to_8_bits
from longlive_training.evaluate import BatchNoise, held_out, single_prompt_figures, switch_figures
from tests.test_golden import Recorded

GOLDEN = Path("tests/golden/dit_switch_late_global.safetensors")
SECONDS = 10
MINI_VIDEOS, MINI_BLOCKS = 8, 14
MATRICES = (
    *("self_attn.q", "self_attn.k", "self_attn.v", "self_attn.o"),
    *("cross_attn.q", "cross_attn.k", "cross_attn.v", "cross_attn.o", "ffn.0", "ffn.2"),
)
Change = Callable[[CausalWan], object]


class Variant(NamedTuple):
    """A change to the weights and their arithmetic, and whether K and V are held in fp8."""

    change: Change
    has_small_cache: bool = False


VARIANTS = {
    "fp32": Variant(lambda model: None),
    "bf16": Variant(lambda model: model.bfloat16()),
    "fp8": Variant(lambda model: quantize(model, FP8)),
    "fp8-fast": Variant(lambda model: quantize(model, FP8, plain)),
    "fp8-fast, unscaled": Variant(lambda model: quantize(model, FP8, plain_unscaled)),
    "int8 weights": Variant(lambda model: quantize(model, torch.int8)),
    "int8": Variant(lambda model: quantize(model, torch.int8, plain)),
    "fp8 cache": Variant(lambda model: None, True),
    "fp8-fast, fp8 cache": Variant(lambda model: quantize(model, FP8, plain), True),
    "int8, fp8 cache": Variant(lambda model: quantize(model, torch.int8, plain), True),
}


JUDGED = ("fp32", "fp8-fast", "fp8-fast, unscaled", "int8", "fp8 cache", "fp8-fast, fp8 cache")


def only(wanted: Callable[[str], bool], dtype: torch.dtype) -> Change:
    """Quantise just the matrices whose name is wanted."""

    def change(model: CausalWan) -> None:
        linears = {name: linear for name, linear in layer_linears(model).items() if not wanted(name)}
        exact = {name: linear.weight for name, linear in linears.items()}
        quantize(model, dtype, plain)
        for name, linear in linears.items():
            linear.weight = nn.Parameter(exact[name].data, requires_grad=False)
            linear.scale, linear.multiply = None, None

    return change


def golden_latents(variant: Variant) -> list[Tensor]:
    """Latents by block of the golden scenario of a late switch: random weights, 27 latent frames."""
    recorded = Recorded(GOLDEN)
    model = recorded.model()
    variant.change(model)
    window = replace(recorded.window(), has_small_cache=variant.has_small_cache)
    blocks = range(recorded.frames // recorded.block)
    return latents_of(rollout(model, recorded.script, recorded.noise, recorded.sigmas(), window, blocks))


def mini_latents(variant: Variant) -> list[Tensor]:
    """Latents by block of a few videos of Mini, on noise of their own."""
    mini = load_mini()
    switch = Switch(mini.words([attributes.prompt() for attributes in held_out(MINI_VIDEOS)]))
    variant.change(mini.transformer)
    window = replace(MINI.window, has_small_cache=variant.has_small_cache)
    shape = (1, MINI.model.latent_channels, window.block_latent_frames, *latent_size(MINI.width, MINI.height))
    noise, sigmas = BatchNoise(range(MINI_VIDEOS), shape), shifted_sigmas(MINI.sigmas)
    script = {0: switch}.get
    return latents_of(rollout(mini.transformer, script, noise, sigmas, window, range(MINI_BLOCKS)))


def latents_of(blocks: Iterator[Block]) -> list[Tensor]:
    return [block.latents.float() for block in blocks]


def errors(
    latents: Callable[[Variant], list[Tensor]], variants: dict[str, Variant]
) -> dict[str, list[float]]:
    """Relative rms error of the latents of every block against fp32, by variant."""
    exact = latents(VARIANTS["fp32"])
    found = {}
    for name, variant in tqdm(variants.items(), mininterval=10):
        pairs = zip(latents(variant), exact, strict=True)
        found[name] = [round(relative(ours, right), 5) for ours, right in pairs]
    return found


def relative(ours: Tensor, right: Tensor) -> float:
    """Relative rms error."""
    return float((ours - right).norm() / right.norm())


def sensitivity(latents: Callable[[Variant], list[Tensor]], num_layers: int) -> dict[str, dict[str, float]]:
    """Error over all blocks when one kind of matrix, or one layer, is in 8 bits and the rest is not."""
    parts = {name: name for name in MATRICES} | {f"layer {n}": f"layers.{n}." for n in range(num_layers)}
    rows = {}
    for precision, dtype in (("fp8-fast", FP8), ("int8", torch.int8)):
        changes = {
            name: Variant(only(lambda matrix, part=part: part in matrix, dtype))
            for name, part in parts.items()
        }
        means = {name: statistics.mean(found) for name, found in errors(latents, changes).items()}
        rows[precision] = {name: round(mean, 5) for name, mean in means.items()}
    return rows


def judged(videos: int) -> dict[str, dict[str, dict[str, float]]]:
    """What the judge sees in Mini's videos of each variant; the seeds and prompts are the same."""
    found = {}
    for name in JUDGED:
        mini, variant = load_mini(), VARIANTS[name]
        variant.change(mini.transformer)
        window = replace(MINI.window, has_small_cache=variant.has_small_cache)
        found[name] = {
            "one prompt, 10 s": single_prompt_figures(mini, videos, SECONDS, window),
            "switch at 5 s": switch_figures(mini, videos, Policy.RECACHE, window),
        }
        print(name, found[name])
    return found


def times(device: torch.device) -> dict[str, dict[str, dict[str, float | str]]]:
    """Of kernels as they stand and, on cards, compiled with what stands around them."""
    ways = {"as they stand": products}
    if device.type == "cuda":
        ways["compiled"] = torch.compile(products, dynamic=False)
    return {name: kernel_times(device, run) for name, run in ways.items()}


def kernel_times(device: torch.device, run: Callable[..., Tensor]) -> dict[str, dict[str, float | str]]:
    """Seconds of one true-width layer's matrices by kernel, with norms and rounding, and the gain."""
    config, machine = LONGLIVE_1_3B.model, Machine.of(device)
    shapes = (
        ((config.dim, config.dim), 6),
        ((config.ffn_dim, config.dim), 1),
        ((config.dim, config.ffn_dim), 1),
    )
    work = Work(shapes, torch.bfloat16 if device.type == "cuda" else torch.float32)
    tried: dict[str, Kernel] = {"wide": WIDE}
    tried |= {kernel.multiply.__name__: kernel for kernels in KERNELS.values() for kernel in kernels}
    results = {name: attempt(kernel, work, machine, seconds_of, run) for name, kernel in tried.items()}
    base = results["wide"].seconds
    return {
        name: {"fails": result}
        if isinstance(result, str)
        else {"seconds": round(result.seconds, 6), "times wide": round(base / result.seconds, 3)}
        for name, result in results.items()
    }


def outliers() -> dict[str, dict[str, float]]:
    """Relative error of one linear when one channel in a hundred of its input is so many times larger."""
    random = torch.Generator().manual_seed(0)
    width, tokens = LONGLIVE_1_3B.model.dim, 64
    x, weight = (torch.randn(rows, width, generator=random) for rows in (tokens, width))
    bias, found = torch.zeros(width), {}
    for times_larger in (1, 10, 30, 100, 300):
        loud = torch.cat((x[:, : width // 100] * times_larger, x[:, width // 100 :]), dim=1)
        exact = loud @ weight.t()
        found[str(times_larger)] = {
            name: round(relative(meant(loud, *to_8_bits(weight, dtype), bias), exact), 4)
            for name, dtype, meant in (
                ("fp8-fast", FP8, plain),
                ("fp8-fast, unscaled", FP8, plain_unscaled),
                ("int8", torch.int8, plain),
            )
        }
    return found


def latent_errors() -> dict[str, dict]:
    """What 8 bits change in latents: whole variants, and one kind of matrix or one layer alone."""
    return {
        "golden": errors(golden_latents, VARIANTS),
        "mini": errors(mini_latents, VARIANTS),
        "golden parts": sensitivity(golden_latents, 3),
        "mini parts": sensitivity(mini_latents, MINI.model.num_layers),
        "outliers": outliers(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", default=["times", "latents", "judge"], help="default: all")
    parser.add_argument("--videos", type=int, default=16, help="of each kind and variant, for the judge")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="for times")
    options = parser.parse_args()
    measure = {
        "times": lambda: times(torch.device(options.device)),
        "latents": latent_errors,
        "judge": lambda: judged(options.videos),
    }
    file = RESULTS / "quantization.json"
    figures = json.loads(file.read_text()) if file.exists() else {}  # parts not asked for stay as they were
    with torch.inference_mode():
        for part in options.parts:
            figures[part] = measure[part]()
    report("quantization", {name: figures[name] for name in measure if name in figures})


if __name__ == "__main__":
    main()
