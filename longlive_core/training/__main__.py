"""`python -m longlive_core.training autoencoder --folder runs/autoencoder`: train the parts of LongLive Mini."""

import argparse
from pathlib import Path

from .autoencoder import train_autoencoder


def main() -> None:
    """Read the arguments and run one stage."""
    parser = argparse.ArgumentParser(prog="python -m longlive_core.training", description=__doc__)
    stages = parser.add_subparsers(dest="stage", required=True)
    autoencoder = stages.add_parser("autoencoder", help="frames <-> latents")
    autoencoder.add_argument("--folder", type=Path, default=Path("runs/autoencoder"))
    autoencoder.add_argument("--steps", type=int, default=4000)
    autoencoder.add_argument("--size", type=int, default=64)
    autoencoder.add_argument("--seed", type=int, default=0)
    options = vars(parser.parse_args())
    {"autoencoder": train_autoencoder}[options.pop("stage")](**options)


if __name__ == "__main__":
    main()
