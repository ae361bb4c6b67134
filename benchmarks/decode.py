"""`python -m benchmarks.decode`: the Wan decoder against its plain twin, the tiny one, and Mini.

Random weights of true width. What is compared is timed in turn in one run, and ratios are those of medians.
With one CPU thread the clock is the time that the process worked, so that other programs count little.
"""

import argparse
import time
from typing import Any

import torch
from torch import Tensor

from benchmarks.measure import clock_of, in_turn, report
from benchmarks.plain_decoder import PlainDecoder
from longlive_core.config import LONGLIVE_1_3B, TINY_WAN, WanAutoencoderConfig
from longlive_core.geometry import SPACE_STRIDE
from longlive_core.pipeline import Request, load_pipeline
from longlive_core.schedule.schedule import PromptSchedule
from longlive_core.vae.autoencoder import WanAutoencoder
from longlive_core.vae.streaming import Decoder, StreamingDecoder
from longlive_core.vae.tiny import TinyAutoencoder

BLOCK = LONGLIVE_1_3B.window.block_latent_frames
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def main() -> None:
    """Print and keep all figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=DTYPES, help="fp32 on CPUs, bf16 on GPUs")
    parser.add_argument("--latents", default="16x26", help="height x width; 60x104 is a video of 832x480")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", default="decode", help="the name of the results")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with torch.inference_mode():
        report(options.out, figures(options))


def figures(options: argparse.Namespace) -> dict[str, Any]:
    """All of them, and what they were taken with."""
    device = torch.device(options.device)
    dtype = DTYPES[options.dtype or ("bf16" if device.type == "cuda" else "fp32")]
    height, width = (int(side) for side in options.latents.split("x"))
    latents = torch.randn(1, LONGLIVE_1_3B.model.latent_channels, BLOCK, height, width, device=device)
    torch.manual_seed(0)
    wan = WanAutoencoder(WanAutoencoderConfig()).requires_grad_(False).to(device, dtype)
    tiny = TinyAutoencoder(TINY_WAN).requires_grad_(False).to(device, dtype)
    decoders = {"wan": wan, "wan plain": PlainDecoder(wan), "tiny": tiny}
    seconds = block_seconds(decoders, latents, options.repeats)
    return {
        "on": str(device),
        "dtype": str(dtype),
        "pixels": [SPACE_STRIDE * width, SPACE_STRIDE * height],
        "latent_frames": BLOCK,
        "seconds": {name: round(value, 4) for name, value in seconds.items()},
        "plain_to_ours": round(seconds["wan plain"] / seconds["wan"], 3),
        "mini_frames_per_second": mini_speed(options.repeats),
    }


def block_seconds(decoders: dict[str, Decoder], latents: Tensor, repeats: int) -> dict[str, float]:
    """Median time of a block in mid-video, the decoders taking turns."""
    clock = clock_of(latents.device)
    streams = {name: StreamingDecoder(decoder) for name, decoder in decoders.items()}
    for stream in streams.values():
        stream.push(latents[:, :, :1])
        stream.push(latents[:, :, :1])
    return in_turn(
        {name: lambda s=stream: s.push(latents) for name, stream in streams.items()}, repeats, clock
    )


def mini_speed(repeats: int, seconds: float = 6.0) -> float:
    """Frames a second of Mini without a file."""
    pipeline = load_pipeline("mini")
    plan = pipeline.plan(Request(PromptSchedule.single("a red circle circles over navy"), seconds, seed=1))

    def make() -> None:
        for chunk in pipeline.run(plan):
            chunk.uint8()

    return round(plan.frames / in_turn({"mini": make}, repeats, time.perf_counter)["mini"], 1)


if __name__ == "__main__":
    main()
