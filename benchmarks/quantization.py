"""`python -m benchmarks.quantization`: what 8 bits cost in latents and in videos.

Products are those of plain_products.py, in 32-bit arithmetic: the losses hold on any machine, but for the
order of the sums. int8 products are comfy-kitchen's, and int8 attention is a model of its kernel. Fp8 tokens
with scales have no kernel here, for comparison.
"""

import argparse
import copy
import json
import statistics
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from benchmarks.measure import RESULTS, report
from benchmarks.plain_products import attend_by, multiply_by, plain, plain_attention, plain_unscaled
from longlive_core.config import LONGLIVE_1_3B, MINI, Policy
from longlive_core.fast.products import FP8
from longlive_core.geometry import latent_size
from longlive_core.mini.loader import load_mini
from longlive_core.model.causal_wan import CausalWan
from longlive_core.model.layers import Product
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
    """A change to the weights and their products, and whether K and V are held in fp8."""

    change: Change
    has_small_cache: bool = False


def in_8_bits(dtype: torch.dtype, product: Product | None = None) -> Change:
    """Store the layers' matrices in 8 bits, dequantised at their use or multiplied by `product`."""

    def change(model: CausalWan) -> None:
        quantize(model, dtype)
        if product:
            multiply_by(product, model)

    return change


def all_in_int8(model: CausalWan) -> None:
    """Products and attention."""
    in_8_bits(torch.int8, plain)(model)
    attend_by(plain_attention, model)


VARIANTS = {
    "fp32": Variant(lambda model: None),
    "bf16": Variant(lambda model: model.bfloat16()),
    "fp8": Variant(in_8_bits(FP8)),
    "fp8-fast": Variant(in_8_bits(FP8, plain_unscaled)),
    "fp8, tokens with scales": Variant(in_8_bits(FP8, plain)),
    "int8": Variant(in_8_bits(torch.int8)),
    "int8 products": Variant(in_8_bits(torch.int8, plain)),
    "int8 attention": Variant(partial(attend_by, plain_attention)),
    "int8 products and attention": Variant(all_in_int8),
    "fp8 cache": Variant(lambda model: None, has_small_cache=True),
    "fp8-fast, fp8 cache": Variant(in_8_bits(FP8, plain_unscaled), has_small_cache=True),
    "int8, fp8 cache": Variant(in_8_bits(torch.int8), has_small_cache=True),
}


JUDGED = (
    *("fp32", "fp8-fast", "int8", "int8 products", "int8 attention", "int8 products and attention"),
    *("fp8 cache", "fp8-fast, fp8 cache"),
)


def only(wanted: Callable[[str], bool], dtype: torch.dtype) -> Change:
    """Quantise just the matrices whose name is wanted, and multiply tokens with scales."""

    def change(model: CausalWan) -> None:
        kept = {name: linear for name, linear in layer_linears(model).items() if not wanted(name)}
        exact = {name: linear.weight for name, linear in kept.items()}
        quantize(model, dtype)
        for name, linear in kept.items():
            linear.weight, linear.scale = exact[name], None
        multiply_by(plain, model)

    return change


def golden_latents(variant: Variant) -> list[Tensor]:
    """Latents by block of the golden scenario of a late switch: random weights, 27 latent frames."""
    recorded = Recorded(GOLDEN)
    model = copy.deepcopy(recorded.model())  # shared by all scenarios
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
    for precision, dtype in (("fp8", FP8), ("int8", torch.int8)):
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
            name: round(relative(product(loud, *to_8_bits(weight, dtype), bias), exact), 4)
            for name, dtype, product in (
                ("fp8-fast", FP8, plain_unscaled),
                ("fp8, tokens with scales", FP8, plain),
                ("int8 products", torch.int8, plain),
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
    parser.add_argument("parts", nargs="*", default=["latents", "judge"], help="default: all")
    parser.add_argument("--videos", type=int, default=16, help="of each kind and variant, for the judge")
    options = parser.parse_args()
    measure = {"latents": latent_errors, "judge": lambda: judged(options.videos)}
    file = RESULTS / "quantization.json"
    figures = json.loads(file.read_text()) if file.exists() else {}  # parts not asked for stay as they were
    with torch.inference_mode():
        for part in options.parts:
            figures[part] = measure[part]()
    report("quantization", {name: figures[name] for name in measure if name in figures})


if __name__ == "__main__":
    main()
