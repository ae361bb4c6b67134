"""`python -m longlive_training distil` and `convert`: options in, a run's folder or a file out."""

import argparse
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryFile

import torch
import torch.distributed as dist

from longlive_core.geometry import latent_size
from longlive_core.pipeline import AUTO, usable_device
from longlive_core.text.umt5 import encoder_identity, load_umt5

from . import watch
from .checkpoint import newest_undamaged, read_state
from .draws import Draws
from .export import convert
from .loop import Models, Tuning
from .models import check_fits, load_teacher, load_trained, load_wan_vae
from .parallel import NONE, mesh_of, rank_and_size, wait_for_all
from .plan import add_recipe, check_numbers
from .prompts import NEGATIVE, EmbeddingFiles, Pair, digest, read_pairs
from .recipe import RECIPES, STEPS, Recipe
from .run import Run
from .tuned_card import check_files, keep_facts

FILES = "model", "teacher", "critic", "vae", "text_encoder"


def add_commands(stages: argparse._SubParsersAction) -> None:
    """Add `distil` and `convert` to the stages of training."""
    tuning = stages.add_parser("distil", help="streaming long tuning with a teacher (paper section 3.3)")
    tuning.set_defaults(command=distil)
    add = tuning.add_argument
    for name, text in (
        ("model", "the student, e.g. longlive_base.pt"),
        ("teacher", "a bidirectional Wan 2.1, e.g. the folder of Wan2.1-T2V-14B"),
        ("critic", "where the critic begins, e.g. Wan2.1-T2V-1.3B"),
        ("vae", "the Wan 2.1 VAE"),
        ("text-encoder", "UMT5, as for longlive generate"),
        ("prompts", "a text file, one prompt a line; or JSONL or timelines with both prompts of a pair"),
        ("folder", "where the run is; the same command again resumes it"),
    ):
        add(f"--{name}", type=Path, required=True, help=text)
    add("--follow-ups", type=Path, help="the prompt that each of them changes to, on the same line")
    add_recipe(add)
    add("--save-every", type=int, default=50, metavar="STEPS")
    add("--lr", type=float, help="of the student; default 1e-5, init 2e-6")
    add("--critic-lr", type=float, help="default 2e-6, init 4e-7")
    add("--seed", type=int, default=0)
    add("--device", default=AUTO)
    watch.add_options(add)
    converting = stages.add_parser("convert", help="a run, or a LoRA -> a file for ComfyUI or for --lora")
    converting.set_defaults(command=convert)
    converting.add_argument("source", type=Path, help="a run's folder, or a LoRA in the reference's layout")
    converting.add_argument("--out", type=Path, required=True, help=".safetensors: ComfyUI's names; .pt")


def distil(**options) -> None:
    """Tune in a folder, or go on there; leaves `lora.pt`, or `model.pt` where all weights were trained."""
    chosen = argparse.Namespace(**options)
    with process_group(chosen.device) as device:
        is_first = not rank_and_size()[0]
        recipe, pairs = recipe_from(chosen), read_pairs(chosen.prompts, chosen.follow_ups)
        names = {name: getattr(chosen, name).name for name in FILES}
        check_files(chosen.folder, names)
        make_folder(chosen.folder)
        files = encoded(chosen, pairs, device)
        run = Run(tuning_of(chosen, recipe, pairs, files, device), chosen.folder, digest(pairs))
        samples = watch.samples_of(chosen, run.tuning, lambda prompt: files[prompt][None])
        if is_first:
            keep_facts(chosen.folder, names, len(pairs))
        look = watch.Watch(chosen.folder, run.tuning.step, chosen.tensorboard, samples)
        run.train(chosen.steps or STEPS[chosen.stage], chosen.save_every, look)
    if is_first:  # alone: to load a checkpoint within the group, all would have to
        convert(chosen.folder, chosen.folder / ("lora.pt" if recipe.rank else "model.pt"))


def make_folder(folder: Path) -> None:
    """Make a run's folder; OSError in one sentence where nothing can be written there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        TemporaryFile(dir=folder).close()
    except OSError as error:
        raise OSError(f"--folder {folder} cannot be used: {error.strerror}; choose another one") from error


@contextmanager
def process_group(name: str) -> Iterator[torch.device]:
    """The device of this process; all that torchrun started belong together."""
    device = usable_device(name)
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        torch.cuda.set_device(device)
        torch.set_float32_matmul_precision("high")
    if "WORLD_SIZE" in os.environ and not dist.is_initialized():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield device
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def recipe_from(chosen: argparse.Namespace) -> Recipe:
    """The recipe of a stage with what the options change; ValueError for what cannot be."""
    check_numbers(chosen)
    if chosen.offload_teacher and chosen.shard == NONE:
        raise ValueError(f"--offload-teacher is for sharded models, not for --shard {NONE}")
    saved = newest_undamaged(chosen.folder, sets_aside=True)  # the number of processes may have changed since
    running = read_state(saved)["recipe"]["streams"] if saved else rank_and_size()[1]
    streams = chosen.streams or running
    batch = chosen.batch or streams
    if batch % streams:
        raise ValueError(f"a batch of {batch} is no multiple of the {streams} streams; choose one")
    names = "rank", "longest", "lr", "critic_lr"
    changes = {name: getattr(chosen, name) for name in names if getattr(chosen, name) is not None}
    if chosen.stage == "init" and changes.keys() & {"rank", "longest"}:
        raise ValueError("--rank and --longest belong to --stage long; leave them out")
    alpha = {"alpha": float(chosen.rank)} if chosen.rank else {}
    return replace(
        RECIPES[chosen.stage],
        **(changes | alpha),
        seed=chosen.seed,
        streams=streams,
        accumulate=batch // streams,
    )


def encoded(chosen: argparse.Namespace, pairs: list[Pair], device: torch.device) -> EmbeddingFiles:
    """All prompts, encoded by all processes where they are not on the disk yet."""
    files = EmbeddingFiles(chosen.folder / "embeddings", encoder_identity(chosen.text_encoder))
    prompts = [NEGATIVE, *(prompt for pair in pairs for prompt in pair)]
    prompts += schedule.prompts if (schedule := watch.sample_schedule(chosen)) else []
    files.encode(prompts, lambda: load_umt5(chosen.text_encoder, device=device))
    wait_for_all()
    return files


def tuning_of(
    chosen: argparse.Namespace, recipe: Recipe, pairs: list[Pair], files: EmbeddingFiles, device: torch.device
) -> Tuning:
    """Models of the files, and the streams of this process."""
    own, mesh = recipe.streams_of(*rank_and_size()), mesh_of(chosen.shard, device)
    student = load_trained(chosen.model, bool(recipe.rank), device)
    critic = load_trained(chosen.critic, bool(recipe.rank), device)
    check_fits(chosen.critic, "critic", critic, student)
    teacher = load_teacher(chosen.teacher, student, mesh, chosen.offload_teacher)
    negative = files[NEGATIVE][None]
    if negative.shape[-1] != student.config.text_dim:
        raise ValueError(
            f"{chosen.text_encoder} makes {negative.shape[-1]} values a text token and the student reads "
            f"{student.config.text_dim}; choose Wan 2.1's UMT5"
        )
    models = Models(student, critic, teacher, load_wan_vae(chosen.vae, student), negative)
    block = recipe.window.block_latent_frames
    shape = student.config.latent_channels, block, *latent_size(*chosen.size)
    draws = Draws(recipe, shape, len(pairs), own)
    return Tuning(models, recipe, draws, lambda numbers: files.of_pairs([pairs[i] for i in numbers]), mesh)
