"""`python -m longlive_core.training autoencoder --folder runs/autoencoder`: train the parts of LongLive Mini."""

import argparse
from pathlib import Path

from .autoencoder import train_autoencoder
from .transformer import train_transformer
from .tuning import tune


def main() -> None:
    """Read the arguments and run one stage."""
    parser = argparse.ArgumentParser(prog="python -m longlive_core.training", description=__doc__)
    stages = parser.add_subparsers(dest="stage", required=True)
    autoencoder = stages.add_parser("autoencoder", help="frames <-> latents")
    autoencoder.add_argument("--folder", type=Path, default=Path("runs/autoencoder"))
    autoencoder.add_argument("--steps", type=int, default=4000)
    autoencoder.add_argument("--size", type=int, default=64)
    autoencoder.add_argument("--seed", type=int, default=0)
    transformer = stages.add_parser("transformer", help="prompts and past latents -> next latents")
    transformer.add_argument("--folder", type=Path, default=Path("runs/transformer"))
    transformer.add_argument("--autoencoder", type=Path, default=Path("runs/autoencoder/model.safetensors"))
    transformer.add_argument("--steps", type=int, default=3000)
    transformer.add_argument("--size", type=int, default=64)
    transformer.add_argument("--seed", type=int, default=0)
    tuning = stages.add_parser("tuning", help="streaming long tuning on the transformer's own rollouts")
    tuning.add_argument("--folder", type=Path, default=Path("runs/tuning"))
    tuning.add_argument("--autoencoder", type=Path, default=Path("runs/autoencoder/model.safetensors"))
    tuning.add_argument("--transformer", type=Path, default=Path("runs/transformer/model.safetensors"))
    tuning.add_argument("--steps", type=int, default=1000)
    tuning.add_argument("--size", type=int, default=64)
    tuning.add_argument("--seed", type=int, default=0)
    options = vars(parser.parse_args())
    {"autoencoder": train_autoencoder, "transformer": train_transformer, "tuning": tune}[options.pop("stage")](**options)


if __name__ == "__main__":
    main()
