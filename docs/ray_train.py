"""Streaming long tuning by Ray Train: Ray starts the processes, and all of them again where one is lost.

    python docs/ray_train.py --workers 8 --storage /shared/ray -- --model ... --folder /shared/runs/long

After `--` come the options of `python -m longlive_training distil`. Its own folder is what it resumes from.
"""

import argparse
import sys

from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer


def work(options: dict) -> None:
    """What each worker does, in the process group that Ray has made."""
    from longlive_training.__main__ import main

    sys.argv = ["longlive_training", "distil", *options["distil"]]
    try:
        main()
    except SystemExit as end:  # an error in one sentence; Ray reports exceptions
        raise RuntimeError(end) from end


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
parser.add_argument("--workers", type=int, required=True, help="as many as GPUs")
parser.add_argument("--cpu", action="store_true", help="workers without GPUs, to try it out")
parser.add_argument("--storage", required=True, help="a folder that all machines share, for Ray's own files")
parser.add_argument("--restarts", type=int, default=5, help="how often a lost worker is made good")
parser.add_argument("distil", nargs="+", metavar="OPTION", help="of distil, after --")

if __name__ == "__main__":
    chosen = parser.parse_args()
    TorchTrainer(
        work,
        train_loop_config={"distil": chosen.distil},
        scaling_config=ScalingConfig(num_workers=chosen.workers, use_gpu=not chosen.cpu),
        run_config=RunConfig(storage_path=chosen.storage, failure_config=FailureConfig(chosen.restarts)),
    ).fit()
