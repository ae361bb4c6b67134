"""Streaming long tuning by Ray Train: Ray starts the processes, and all of them again where one is lost.

python docs/ray_train.py --workers 8 --storage /shared/ray -- --model ... --folder /shared/runs/long
"""

import argparse
import os
import sys

from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer


def work(options: dict) -> str | int | None:
    """What each worker does, in the process group that Ray has made; returns how it ended, if not well."""
    from longlive_training.__main__ import main

    os.chdir(options["folder"])
    sys.argv = ["longlive_training", "distil", *options["distil"]]
    try:
        main()
    except SystemExit as end:  # an error in one sentence; what is raised, Ray tries again
        return end.code


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
parser.add_argument("--workers", type=int, required=True, help="as many as GPUs")
parser.add_argument("--cpu", action="store_true", help="workers without GPUs, to try it out")
parser.add_argument("--storage", required=True, help="a folder that all machines share, for Ray's own files")
parser.add_argument("--restarts", type=int, default=5, help="how often a lost worker is made good")
parser.add_argument("distil", nargs="+", metavar="OPTION", help="after --, of longlive_training distil")
if __name__ == "__main__":
    chosen = parser.parse_args()
    trainer = TorchTrainer(
        work,
        train_loop_config={"distil": chosen.distil, "folder": os.getcwd()},
        scaling_config=ScalingConfig(num_workers=chosen.workers, use_gpu=not chosen.cpu),
        run_config=RunConfig(storage_path=chosen.storage, failure_config=FailureConfig(chosen.restarts)),
    )
    sys.exit(trainer.fit().return_value)
