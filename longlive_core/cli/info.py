"""`longlive info`: what a video was made with, or what a file of weights holds."""

import argparse
import math
from pathlib import Path
from typing import Any

from ..output.video import read_settings
from ..weights.files import INDEX_SUFFIX, PICKLES, open_tensors
from ..weights.names import family
from .stderr import as_json

HELP = "print what a video was made with, or what a checkpoint, LoRA or VAE file holds"
WEIGHTS = (".safetensors", INDEX_SUFFIX, *PICKLES)
SECTIONS = ("generator", "generator_ema", "generator_lora", "model")


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path)


def run(options: argparse.Namespace) -> None:
    """Print it as JSON."""
    is_weights = options.file.name.endswith(WEIGHTS)
    facts = weights_facts(options.file) if is_weights else read_settings(options.file)
    print(as_json(facts, options.file))


def weights_facts(path: Path) -> dict[str, Any]:
    """What a file of tensors is, by their names and shapes."""
    file = open_tensors(path, SECTIONS)
    dtypes = {str(tensor.dtype).removeprefix("torch.") for tensor in file.tensors.values()}
    return {
        "file": path.name,
        "is": family(file.shapes),
        "tensors": len(file.shapes),
        "parameters": sum(map(math.prod, file.shapes.values())),
        "dtypes": sorted(dtypes),
        "metadata": file.metadata,
    }
