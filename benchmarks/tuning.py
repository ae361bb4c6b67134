"""`python -m benchmarks.tuning`: memory and seconds of streaming long tuning at true size, random weights.

One student part and five critic parts with a teacher of 14B in bf16, after as many that warm up. Bars, on an
H100 or H200: peak <= 70 GiB and within 10 % of `python -m longlive_training plan`, student part <= 16 s,
critic part <= 6 s. With torchrun and `--shard node` it is the same on several GPUs, a clip each.
`--device cpu --layers 2 --teacher 1.3b --size 16x16 --critic-parts 1` tries the script out.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from statistics import median
from typing import Any

import torch

from benchmarks.measure import clock_of, report
from longlive_core.bench.random_model import embeds_of, randomised
from longlive_core.cli.options import size
from longlive_core.config import LONGLIVE_1_3B, ModelConfig, WanAutoencoderConfig
from longlive_core.geometry import latent_size
from longlive_core.memory import GIB
from longlive_core.model.causal_wan import CausalWan
from longlive_core.pipeline import AUTO
from longlive_core.vae.autoencoder import WanAutoencoder
from longlive_training.distil.command import process_group
from longlive_training.distil.draws import Draws
from longlive_training.distil.loop import CRITIC, STUDENT, Models, Tuning
from longlive_training.distil.models import frozen_dtype
from longlive_training.distil.parallel import NONE, SHARDS, mesh_of, rank_and_size, shard
from longlive_training.distil.plan import TEACHERS, Job, memory, operations
from longlive_training.distil.recipe import LONG, Recipe

NUM_PAIRS = 16
BARS = {"peak_gib": 70.0, "student_part_seconds": 16.0, "critic_part_seconds": 6.0}
UPDATES = "updates"


def random_wan(config: ModelConfig, device: torch.device) -> CausalWan:
    """Made where it belongs and in its own dtype: 14B in fp32 would not fit."""
    torch.set_default_dtype(frozen_dtype(device))
    try:
        with torch.device(device):
            return randomised(CausalWan(config))
    finally:
        torch.set_default_dtype(torch.float32)


def tuning_of(job: Job, recipe: Recipe, shard_over: str, device: torch.device) -> Tuning:
    """Streaming long tuning with random models and prompts."""
    mesh = mesh_of(shard_over, device)
    with torch.device(device):
        autoencoder = randomised(WanAutoencoder(WanAutoencoderConfig())).to(frozen_dtype(device))
    student, critic, teacher = (random_wan(c, device) for c in (job.student, job.student, job.teacher))
    if mesh:
        shard(teacher, mesh)
    models = Models(student, critic, teacher, autoencoder, embeds_of("negative", LONGLIVE_1_3B))
    shape = job.student.latent_channels, recipe.window.block_latent_frames, *latent_size(*job.size)
    draws = Draws(recipe, shape, NUM_PAIRS, recipe.streams_of(*rank_and_size()))

    def embeddings(pairs: list[int]) -> tuple[torch.Tensor, ...]:
        return tuple(
            torch.cat([embeds_of(f"{which} {pair}", LONGLIVE_1_3B) for pair in pairs]) for which in "ab"
        )

    return Tuning(models, recipe, draws, embeddings, mesh)


def timed(tuning: Tuning, critic_parts: int, device: torch.device) -> dict[str, list[float]]:
    """Seconds of each part and of the updates, in iterations up to the next student part."""
    clock, seconds = clock_of(device), {STUDENT: [], CRITIC: [], UPDATES: []}
    for _ in range(critic_parts):
        marks = [(UPDATES, clock())]
        tuning.iteration(lambda name, judged, marks=marks: marks.append((name, clock())))
        marks.append((UPDATES, clock()))
        for (_, start), (name, end) in pairwise(marks):
            seconds[name].append(end - start)
    return seconds


def figures(options: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """What was measured, next to what the plan says."""
    student, teacher = LONGLIVE_1_3B.model, TEACHERS[options.teacher]
    if options.layers:
        student, teacher = (replace(config, num_layers=options.layers) for config in (student, teacher))
    ranks = rank_and_size()[1]
    recipe = replace(LONG, streams=ranks, ratio=options.critic_parts, average_from=0)
    parts = mesh_of(options.shard, device).size(1) if options.shard != NONE else 1
    job = Job(recipe, teacher, options.size, gpus=ranks, parts=parts, student=student)
    tuning = tuning_of(job, recipe, options.shard, device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    for _ in range(options.critic_parts):  # warms up, and fills the window
        tuning.iteration()
    seconds = timed(tuning, options.critic_parts, device)
    planned = sum(memory(job).values()) / GIB
    peak = torch.cuda.max_memory_allocated() / GIB if device.type == "cuda" else None
    return {
        "size": options.size,
        "layers": student.num_layers,
        "teacher": options.teacher,
        "shard": options.shard,
        "processes": ranks,
        "planned_gib": round(planned, 2),
        "peak_gib": peak and round(peak, 2),
        "planned_by_peak": peak and round(planned / peak, 3),
        **{f"{name}_part_seconds": round(median(seconds[name]), 3) for name in (STUDENT, CRITIC)},
        "updates_seconds": round(median(seconds[UPDATES]), 3),
        **{
            f"{name}_part_tflop": round(amount / 1e12, 3)
            for name, amount in zip((STUDENT, CRITIC), operations(job), strict=True)
        },
        "bars": BARS,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", default=AUTO)
    parser.add_argument("--size", type=size, default=(LONGLIVE_1_3B.width, LONGLIVE_1_3B.height))
    parser.add_argument("--layers", type=int, help="of all models; default: their own")
    parser.add_argument("--teacher", choices=TEACHERS, default="14b")
    parser.add_argument("--critic-parts", type=int, default=LONG.ratio, help="of each student part")
    parser.add_argument("--shard", choices=SHARDS, default=NONE)
    options = parser.parse_args(arguments)
    with process_group(options.device) as device:
        found, is_first = figures(options, device), not rank_and_size()[0]
    if is_first:
        report("tuning", found)


if __name__ == "__main__":
    main()
