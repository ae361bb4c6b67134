"""Streaming long tuning of Mini by a teacher: the student sees prompts, and never a film of the world.

What tuning.py does with the world as the teacher, done as for LongLive itself (distil/).
"""

import argparse
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from longlive_core.config import MINI
from longlive_core.geometry import latent_size
from longlive_core.mini.loader import WEIGHTS, WORDS_KEY, Mini, load_mini
from longlive_core.output.growing import write_whole
from longlive_core.weights.names import foreign_name

from .distil import watch
from .distil.adapters import REFERENCE
from .distil.command import process_group
from .distil.draws import Draws
from .distil.loop import Models, Tuning
from .distil.parallel import rank_and_size
from .distil.plan import check_numbers
from .distil.prompts import Pair, digest
from .distil.recipe import Recipe
from .distil.run import Run
from .package import parts_state
from .transformer import load_generator
from .world import change_prompt, random_attributes, random_change

STREAMS = 8
NUM_PAIRS = 2000
NOISE = 0.4  # as a share of each matrix's own standard deviation: what made a student decay in a pilot
LONG = Recipe(
    **{"rank": None, "lr": 1e-4, "critic_lr": 1e-4, "guidance": 0.0, "streams": STREAMS},
    **{"ratio": 1, "lead": 100, "window": MINI.window, "sigmas": MINI.sigmas},
)
STAGES = {"long": LONG, "init": replace(LONG, longest=LONG.clip)}
CHANGEABLE = "lr", "critic_lr", "longest", "streams", "lead", "ratio"  # by options of the same names
WORDS_TOLERANCE = 1e-2  # packaged words are fp16


def load_student(weights: Path) -> Mini:
    """A Mini without layers for control, which are not tuned."""
    mini = load_mini(weights)
    mini.transformer.vace = None
    return mini


def save_mini(mini: Mini, out: Path) -> None:
    """Write a Mini as it is packaged."""
    state = parts_state(mini._asdict())
    words = {WORDS_KEY: " ".join(mini.words.words)}
    out.parent.mkdir(parents=True, exist_ok=True)
    write_whole(out, lambda part: save_file(state, part, words))


def degrade(weights: Path, out: Path, noise: float = NOISE, seed: int = 0) -> None:
    """Write a Mini whose layers' matrices have Gaussian noise: a student for tuning, that decays."""
    mini, rng = load_student(weights), torch.Generator().manual_seed(seed)
    for name, weight in mini.transformer.named_parameters():
        if name.startswith("layers.") and weight.ndim == 2:
            weight.add_(noise * weight.std() * torch.randn(weight.shape, generator=rng))
    save_mini(mini, out)


def world_pairs(count: int, seed: int) -> list[Pair]:
    """Pairs of prompts of combinations that are trained on; half of the second ones name only the change."""
    rng, pairs = torch.Generator().manual_seed(seed), []
    for number in range(count):
        before = random_attributes(rng)
        after = random_change(rng, before)
        pairs.append((before.prompt(), after.prompt() if number % 2 else change_prompt(before, after)))
    return pairs


def tuning_of(mini: Mini, teacher: Path, recipe: Recipe, pairs: list[Pair]) -> Tuning:
    """The student and two copies of the teacher, one of them as the critic; ValueError for other words."""
    judge, critic = load_generator(teacher), load_generator(teacher)
    apart = (judge.words.table.weight - mini.words.table.weight).abs().max()
    if apart > WORDS_TOLERANCE:
        raise ValueError(f"{teacher} was trained with other words than the student; train it from this Mini")
    negative = mini.words(["it goes on"])  # counts for nothing without guidance
    transformers = mini.transformer, critic.transformer, judge.transformer
    models = Models(*transformers, mini.autoencoder, negative)
    cells = latent_size(MINI.width, MINI.height)
    shape = MINI.model.latent_channels, recipe.window.block_latent_frames, *cells
    draws = Draws(recipe, shape, len(pairs), recipe.streams_of(*rank_and_size()))

    def embeddings(chosen: list[int]) -> tuple[Tensor, Tensor]:
        firsts, seconds = zip(*(pairs[number] for number in chosen), strict=True)
        return mini.words(list(firsts)), mini.words(list(seconds))

    return Tuning(models, recipe, draws, embeddings)


def tuned(mini: Mini, tuning: Tuning) -> Mini:
    """The student with its averaged weights, where there are any."""
    state = mini.transformer.state_dict()
    for name in state:
        state[name] = tuning.average.get(REFERENCE + foreign_name(name, "wan"), state[name])
    mini.transformer.load_state_dict(state)
    return mini


def distil_mini(**options) -> None:
    """Tune in a folder, or go on there; leaves `model.safetensors`, a packaged Mini."""
    chosen = argparse.Namespace(**options)
    check_numbers(chosen)
    with process_group("cpu"):
        given = {name: options[name] for name in CHANGEABLE if options[name] is not None}
        recipe = replace(STAGES[chosen.stage], seed=chosen.seed, **given)
        mini, pairs = load_student(chosen.student), world_pairs(NUM_PAIRS, chosen.seed)
        run = Run(tuning_of(mini, chosen.teacher, recipe, pairs), chosen.folder, digest(pairs))
        samples = watch.samples_of(chosen, run.tuning, mini.encode_text, MINI)
        look = watch.Watch(chosen.folder, run.tuning.step, chosen.tensorboard, samples)
        run.train(chosen.steps, chosen.save_every, look)
        if not rank_and_size()[0]:
            save_mini(tuned(mini, run.tuning), chosen.folder / "model.safetensors")


def add_commands(stages: argparse._SubParsersAction) -> None:
    """Add `degrade` and `distil-mini` to the stages of training."""
    worse = stages.add_parser("degrade", help="a Mini that decays: a student for distil-mini")
    worse.set_defaults(command=degrade)
    worse.add_argument("--weights", type=Path, default=WEIGHTS)
    worse.add_argument("--out", type=Path, default=Path("runs/degraded.safetensors"))
    worse.add_argument("--noise", type=float, default=NOISE, help="of each matrix's standard deviation")
    worse.add_argument("--seed", type=int, default=0)
    tuning = stages.add_parser("distil-mini", help="streaming long tuning of Mini by a teacher")
    tuning.set_defaults(command=distil_mini, size=(MINI.width, MINI.height))
    add = tuning.add_argument
    add("--stage", choices=STAGES, default="long", help="init: single clips alone, for comparison")
    add("--student", type=Path, default=Path("runs/degraded.safetensors"))
    add("--teacher", type=Path, default=Path("runs/teacher/model.safetensors"))
    add("--folder", type=Path, default=Path("runs/distil-mini"))
    add("--steps", type=int, default=700, help="iterations; the student learns after the lead")
    add("--save-every", type=int, default=100, metavar="STEPS")
    add("--streams", type=int, help=f"videos made at the same time; default {STREAMS}")
    add("--longest", type=int, help="latent frames of a sequence; default 240")
    add("--lead", type=int, help=f"iterations of the critic alone; default {LONG.lead}")
    add("--ratio", type=int, help=f"the student learns in one of so many iterations; default {LONG.ratio}")
    add("--lr", type=float, help=f"default {LONG.lr:g}")
    add("--critic-lr", type=float, help=f"default {LONG.critic_lr:g}")
    add("--seed", type=int, default=0)
    watch.add_options(add)
