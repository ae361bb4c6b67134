"""`python -m longlive_training STAGE`: train, package and measure LongLive Mini; tune LongLive."""

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from longlive_core.cli import EXIT_BAD_INPUT, EXIT_INTERRUPTED, use_utf8
from longlive_core.cli.stderr import STDERR, show
from longlive_core.mini.loader import WEIGHTS
from longlive_core.rollout.retry import is_out_of_memory
from longlive_core.weights.files import first_line

from . import distil_mini, proof
from .autoencoder import train_autoencoder
from .card import evaluate
from .control import train_control
from .distil.command import add_commands
from .distil.maker import add_command as add_prompts
from .distil.plan import add_command as add_plan
from .package import package
from .teacher import train_teacher
from .transformer import train_transformer
from .tuning import tune

AUTOENCODER = Path("runs/autoencoder/model.safetensors")
TRANSFORMER = Path("runs/transformer/model.safetensors")
TUNING = Path("runs/tuning/model.safetensors")
SMALLER = "python -m longlive_training plan says what distil needs"


def exit_code() -> int:
    """Run one stage; 0 on success, 2 and one sentence on bad input, 130 on Ctrl-C."""
    use_utf8()
    try:
        main()
    except SystemExit as end:
        if not isinstance(end.code, str):  # argparse has said it
            raise
        show(end.code, STDERR)
        return EXIT_BAD_INPUT
    except KeyboardInterrupt as stop:
        show("; ".join(filter(None, ("stopped", str(stop)))), STDERR)
        return EXIT_INTERRUPTED
    return 0


def main() -> None:
    """Read the arguments and run one stage; SystemExit with a sentence for what is wrong with them."""
    options = vars(build_parser().parse_args())
    with ending_in_a_sentence():
        options.pop("command")(**options)


@contextmanager
def ending_in_a_sentence() -> Iterator[None]:
    """What is wrong with files, options, the disk or the numbers ends a stage, without a traceback."""
    try:
        yield
    except (ValueError, FloatingPointError, OSError, SafetensorError) as error:
        raise SystemExit(f"error: {error}") from error
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise SystemExit(f"error: this does not fit the memory ({first_line(error)}); {SMALLER}") from error


def build_parser() -> argparse.ArgumentParser:
    """All stages and their options."""
    parser = argparse.ArgumentParser(prog="python -m longlive_training", description=__doc__)
    stages = parser.add_subparsers(required=True, metavar="STAGE")
    _add_training(stages)
    _add_package(stages)
    _add_evaluate(stages)
    teaching = _stage(stages, "teacher", train_teacher, "Mini's bidirectional teacher, for distil-mini", 4000)
    teaching.add_argument("--lr", type=float, default=1e-3)
    for part in ("--autoencoder", "--start"):
        teaching.add_argument(part, type=Path, default=WEIGHTS)
    distil_mini.add_commands(stages)
    proof.add_command(stages)
    add_commands(stages)
    add_prompts(stages)
    add_plan(stages)
    return parser


def _add_training(stages: argparse._SubParsersAction) -> None:
    training = [
        _stage(stages, "autoencoder", train_autoencoder, "frames <-> latents", 4000),
        _stage(stages, "transformer", train_transformer, "prompts and past latents -> next latents", 2500),
        _stage(stages, "tuning", tune, "streaming long tuning on the transformer's own rollouts", 1000),
        _stage(stages, "control", train_control, "the layers of VACE, on top of a packaged Mini", 200),
    ]
    for stage, lr in zip(training, (1.2e-3, 1.5e-3, 3e-4, 2e-3), strict=True):
        stage.add_argument("--lr", type=float, default=lr)
    for stage in training[1:3]:
        stage.add_argument("--autoencoder", type=Path, default=AUTOENCODER)
    for stage in training[:2]:
        stage.add_argument("--start", type=Path, help="go on from these weights, e.g. a packaged Mini")
    training[1].add_argument("--unnamed", type=float, default=0.2, help="share of steps that name no look")
    training[2].add_argument("--transformer", type=Path, default=TRANSFORMER)
    training[3].add_argument("--weights", type=Path, default=WEIGHTS)


def _add_package(stages: argparse._SubParsersAction) -> None:
    packing = stages.add_parser("package", help="trained parts -> the files that ship")
    packing.set_defaults(command=package)
    packing.add_argument("--autoencoder", type=Path, default=AUTOENCODER)
    packing.add_argument("--generator", type=Path, default=TUNING)
    packing.add_argument("--control", type=Path, help="write only these VACE layers")
    packing.add_argument("--other", type=Path, help="average with this generator, e.g. a packaged Mini")
    packing.add_argument("--share", type=float, default=0.6, help="of the first generator's weights in that")
    packing.add_argument("--out", type=Path, default=WEIGHTS)


def _add_evaluate(stages: argparse._SubParsersAction) -> None:
    measuring = stages.add_parser("evaluate", help="the judge's figures on held-out combinations")
    measuring.set_defaults(command=evaluate)
    measuring.add_argument("--weights", type=Path, default=WEIGHTS)
    measuring.add_argument("--videos", type=int, default=64)
    measuring.add_argument("--ablation", type=int, default=0, metavar="VIDEOS")
    measuring.add_argument("--given", type=int, default=0, metavar="VIDEOS", help="of images and footage too")
    measuring.add_argument("--control", type=int, default=0, metavar="VIDEOS", help="of silhouettes followed")
    measuring.add_argument("--untuned", type=Path, help="a package of the transformer before tuning")
    measuring.add_argument("--out", type=Path, help="write the figures as JSON")
    measuring.add_argument("--card", action="store_true", help="write the figures into the model card")


def _stage(stages: argparse._SubParsersAction, name: str, command: Callable, text: str, steps: int):
    stage = stages.add_parser(name, help=text)
    stage.set_defaults(command=command)
    stage.add_argument("--folder", type=Path, default=Path("runs") / name)
    stage.add_argument("--steps", type=int, default=steps)
    stage.add_argument("--size", type=int, default=64)
    stage.add_argument("--seed", type=int, default=0)
    return stage


if __name__ == "__main__":
    sys.exit(exit_code())
