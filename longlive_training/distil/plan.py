"""`python -m longlive_training plan`: memory of a GPU and days of a tuning run, before anything is loaded.

Arithmetic of sizes and of recipe.py alone; nothing here was measured. A multiply-add is two operations.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass, replace
from math import ceil, inf

import torch

from longlive_core.cli.options import size
from longlive_core.config import LONGLIVE_1_3B, ModelConfig
from longlive_core.geometry import latent_size, tokens_per_frame
from longlive_core.memory import GIB, Setting, transformer_bytes, weight_bytes

from .parallel import ALL, NODE, NONE, SHARDS
from .recipe import RECIPES, STEPS, Recipe

TEACHERS = {
    "14b": replace(LONGLIVE_1_3B.model, dim=5120, ffn_dim=13824, num_heads=40, num_layers=40),
    "1.3b": LONGLIVE_1_3B.model,
}
TRAINED_BYTES = 16  # of a trained weight: fp32, its gradient, two moments
AVERAGE_BYTES = torch.float32.itemsize
GATHERED_LAYERS = 2  # of a sharded teacher: the one at work and the next
# One layer's values for the backward pass, [tokens, dim] and [tokens, ffn_dim]; estimated, not measured.
GRADIENT_COPIES, GRADIENT_HIDDEN = 16, 2
OTHERS = 4 * GIB  # VAE, text, latents, the allocator; estimated
TFLOPS, UTILISATION = 989.0, 0.4  # of an H100 in bf16; the share of it that is reached, estimated
ATTENTION_BACKWARD = 2.5  # of a forward: its scores are computed again
SECONDS_A_DAY = 86400
COUNTS = "steps", "batch", "streams", "rank", "longest", "nodes", "gpus", "save_every"
AMOUNTS = "tflops", "utilisation", "student_part", "critic_part", "lr", "critic_lr"


@dataclass(frozen=True)
class Job:
    """A run: its recipe, the teacher, width and height, GPUs, and how the models are spread over them.

    `parts` is over how many GPUs a model is sharded, 1 for not at all.
    """

    recipe: Recipe
    teacher: ModelConfig
    size: tuple[int, int]
    gpus: int = 1
    parts: int = 1
    is_offloaded: bool = False
    streams: int = 1  # in a process
    student: ModelConfig = LONGLIVE_1_3B.model

    @property
    def tokens(self) -> int:
        """Of a latent frame."""
        height, width = latent_size(*self.size)
        return tokens_per_frame(height, width)

    @property
    def new_frames(self) -> float:
        """Latent frames that a chunk adds on average."""
        recipe = self.recipe
        return (recipe.clip + (self.num_chunks - 1) * recipe.min_new) / self.num_chunks

    @property
    def num_chunks(self) -> int:
        """Of a sequence."""
        return 1 + (self.recipe.longest - self.recipe.clip) // self.recipe.min_new


def num_trained(config: ModelConfig, rank: int | None) -> int:
    """Trained weights of a model: those of its LoRA, or all."""
    if rank is None:
        return weight_bytes(config, "bf16", torch.bfloat16) // torch.bfloat16.itemsize
    return config.num_layers * rank * (8 * 2 * config.dim + 2 * (config.dim + config.ffn_dim))


def memory(job: Job) -> dict[str, float]:
    """Bytes on each GPU, part by part."""
    rank, student = job.recipe.rank, job.student
    compute = torch.float32 if rank is None else torch.bfloat16
    teacher = weight_bytes(job.teacher, "bf16", torch.bfloat16)
    held = 0 if job.is_offloaded else teacher / job.parts
    layers = GATHERED_LAYERS * teacher / job.teacher.num_layers
    frozen = 2 * weight_bytes(student, "bf16", torch.bfloat16) if rank else 0
    trained = num_trained(student, rank)
    gathered = 2 * trained * compute.itemsize if rank or job.parts > 1 else 0
    setting = Setting(*job.size, window=job.recipe.window)
    cache, text, _ = transformer_bytes(replace(LONGLIVE_1_3B, model=student), setting, compute)
    clip = job.streams * job.recipe.clip * job.tokens * compute.itemsize
    layer = GRADIENT_COPIES * student.dim + GRADIENT_HIDDEN * student.ffn_dim
    return {
        "teacher": teacher if job.parts == 1 else held + layers,
        "student and critic, frozen": frozen + (frozen / job.parts if job.parts > 1 else 0),
        "trained weights, gradients, moments": 2 * TRAINED_BYTES * trained / job.parts,
        "the same, as they are used": gathered,
        "average": AVERAGE_BYTES * trained / job.parts,
        "KV cache and prompts": job.streams * (cache + text),
        "at work: the critic's layers": clip * (student.num_layers * student.dim + layer),
        "VAE, text, latents, allocator": OTHERS,
    }


def forward(config: ModelConfig, tokens: float, seen: float, rank: int = 0) -> float:
    """Operations of a pass of so many tokens, each of which sees `seen`."""
    linear, lora, attention = _parts(config, seen, rank)
    return tokens * (linear + lora + attention)


def backward(config: ModelConfig, tokens: float, seen: float, rank: int | None) -> float:
    """Operations of its gradient; a frozen weight needs none for itself."""
    linear, lora, attention = _parts(config, seen, rank or 0)
    return tokens * ((1 if rank else 2) * linear + 2 * lora + ATTENTION_BACKWARD * attention)


def _parts(config: ModelConfig, seen: float, rank: int) -> tuple[float, float, float]:
    """Operations a token: matrices, LoRA, attention to tokens and to the prompt."""
    layers, dim, ffn = config.num_layers, config.dim, config.ffn_dim
    linear = 2 * layers * (6 * dim**2 + 2 * dim * ffn)
    lora = 2 * layers * rank * (6 * 2 * dim + 2 * (dim + ffn))
    return linear, lora, 4 * layers * dim * (seen + config.text_tokens)


def operations(job: Job) -> tuple[float, float]:
    """Of the student's part and of the critic's, for one stream."""
    recipe, student, rank = job.recipe, job.student, job.recipe.rank
    new, clip = job.new_frames * job.tokens, recipe.clip * job.tokens
    seen = recipe.window.window_latent_frames * job.tokens
    one = forward(student, new, seen, rank or 0)
    steps = len(recipe.sigmas.steps)
    rollout = ((steps + 1) / 2 + 1) * one  # to the exit step, on average; then into the cache
    again = 3 * one + backward(student, new, seen, rank)  # the step, its layers once more, into the cache
    judged = forward(student, clip, clip, rank or 0)
    teacher = 2 * forward(job.teacher, clip, clip)
    learned = 2 * judged + backward(student, clip, clip, rank)
    return rollout + again + judged + teacher, rollout + learned


def add_command(stages: argparse._SubParsersAction) -> None:
    """Add `plan` to the stages of training."""
    planning = stages.add_parser("plan", help="memory and days of distil, computed before anything is loaded")
    planning.set_defaults(command=plan)
    add = planning.add_argument
    add_recipe(add)
    add("--teacher", choices=TEACHERS, default="14b")
    add("--nodes", type=int, default=1)
    add("--gpus", type=int, default=1, help="of a node")
    add("--tflops", type=float, default=TFLOPS, help=f"of a GPU; default {TFLOPS:g}, an H100 in bf16")
    add("--utilisation", type=float, default=UTILISATION, help=f"the share reached; default {UTILISATION}")
    add("--student-part", type=float, metavar="SECONDS", help="measured, instead of computed")
    add("--critic-part", type=float, metavar="SECONDS", help="measured, instead of computed")


def add_recipe(add: Callable[..., object]) -> None:
    """Add what memory and days depend on: the same options for a run and for its plan."""
    add("--stage", choices=RECIPES, default="long", help="long: LoRA, sequences; init: all weights, one clip")
    add("--size", type=size, default=(LONGLIVE_1_3B.width, LONGLIVE_1_3B.height), metavar="WxH")
    add("--steps", type=int, help="iterations; default 3000, init 700")
    add("--batch", type=int, help="clips an update, over all processes; default: one for each stream")
    add("--streams", type=int, help="videos made at the same time, over all processes; default: one in each")
    add("--shard", choices=SHARDS, default=NONE, help="spread the models over a node's GPUs, or over all")
    add("--offload-teacher", action="store_true", help="keep a sharded teacher's layers in the CPU's memory")
    add("--rank", type=int, help="of the LoRA of student and critic; default 256")
    add("--longest", type=int, help="latent frames of a sequence; default 240")


def check_numbers(chosen: argparse.Namespace) -> None:
    """ValueError for a number that its option cannot have; None is one that was not given."""
    for name, number in vars(chosen).items():
        option = f"--{name.replace('_', '-')}"
        if name in COUNTS and number is not None and number < 1:
            raise ValueError(f"{option} {number} is not possible; choose 1 or more")
        if name in AMOUNTS and number is not None and not 0 < number < inf:
            raise ValueError(f"{option} {number:g} is not possible; it takes numbers above 0")


def plan(**options) -> None:
    """The command: print what a run would need."""
    print("\n".join(lines_of(argparse.Namespace(**options))))


def lines_of(chosen: argparse.Namespace) -> list[str]:
    """What the command prints; ValueError for impossible numbers."""
    job, batch = job_of(chosen)
    parts = memory(job)
    lines = [f"{name:<38}{amount / GIB:8.1f} GiB" for name, amount in parts.items() if amount]
    lines += [f"{'together, on each GPU':<38}{sum(parts.values()) / GIB:8.1f} GiB", ""]
    seconds = [
        given or part / (chosen.tflops * 1e12 * chosen.utilisation)
        for part, given in zip(operations(job), (chosen.student_part, chosen.critic_part), strict=True)
    ]
    steps, ratio = chosen.steps or STEPS[chosen.stage], job.recipe.ratio
    iteration = (seconds[0] / ratio + seconds[1]) * batch / job.gpus
    days = steps * iteration / SECONDS_A_DAY
    pairs = ceil(steps * (1 + 1 / ratio) * batch / job.num_chunks)
    return [
        *lines,
        f"student part {seconds[0]:.1f} s, in one of {ratio} iterations; critic part {seconds[1]:.1f} s",
        f"{steps} iterations of {batch} clips: {iteration:.1f} s each, {days:.2g} days on {job.gpus} GPU(s), "
        f"{days * job.gpus:.3g} GPU-days",
        f"{pairs} videos are made, each of one pair of prompts",
        *_origin(chosen),
    ]


def _origin(chosen: argparse.Namespace) -> list[str]:
    """What these figures rest on."""
    lines = ["", "All of it is an estimate: memory is computed from sizes, with 4 GiB for what is not."]
    if not (chosen.student_part and chosen.critic_part):
        rate = f"{chosen.utilisation:.0%} of {chosen.tflops:g} TFLOP/s"
        lines.append(
            f"Seconds are operations at {rate}; give measured ones by --student-part, --critic-part."
        )
    return lines


def job_of(chosen: argparse.Namespace) -> tuple[Job, int]:
    """A job and its batch; ValueError for what cannot be."""
    check_numbers(chosen)
    gpus = chosen.nodes * chosen.gpus
    streams = chosen.streams or gpus
    batch = chosen.batch or streams
    if streams % gpus or batch % streams:
        raise ValueError(
            f"{batch} clips an update by {streams} streams on {gpus} GPUs are not possible; choose streams "
            "that the GPUs share evenly, and a batch that is a multiple of them"
        )
    parts = {NONE: 1, NODE: chosen.gpus, ALL: gpus}[chosen.shard]
    if chosen.offload_teacher and chosen.shard == NONE:
        raise ValueError("--offload-teacher is for sharded models; choose --shard node or all")
    changes = {name: getattr(chosen, name) for name in ("rank", "longest") if getattr(chosen, name)}
    if chosen.stage == "init" and changes:
        raise ValueError("--rank and --longest belong to --stage long; leave them out")
    recipe = replace(RECIPES[chosen.stage], **changes)
    own = streams // gpus
    return Job(recipe, TEACHERS[chosen.teacher], chosen.size, gpus, parts, chosen.offload_teacher, own), batch
