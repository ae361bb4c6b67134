"""What a tuning run made -> files that load elsewhere.

`.pt` is the reference's layout, for `--lora` or as longlive_base.pt; `.safetensors` has the names that
ComfyUI's own loaders read.
"""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from longlive_core.geometry import PATCH
from longlive_core.weights import lora
from longlive_core.weights.files import open_tensors
from longlive_core.weights.names import bare_name

from . import checkpoint
from .adapters import PEFT, REFERENCE, UP
from .files import write_file
from .loop import STUDENT
from .run import AVERAGE, with_prefix
from .tuned_card import write_card

STOCK = "diffusion_model."
PATCHES = "patch_embedding.weight"


def convert(source: Path, out: Path) -> None:
    """Write the student of a run's newest checkpoint, averaged if there is an average, or a LoRA file.

    `source` is a run's folder, or a LoRA in the reference's layout. Raises ValueError where there is nothing
    to convert, or `out` has another ending. Of a run, a model card to be completed is next to it (.md).
    """
    if out.suffix not in (".pt", ".safetensors"):
        raise ValueError(f"{out}: choose a name that ends in .safetensors (for ComfyUI) or .pt (reference)")
    if out.is_dir():
        raise ValueError(f"{out} is a folder; choose another name")
    weights, state = student_of(source) if source.is_dir() else (lora_in(source), None)
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.suffix == ".safetensors":
        stock = {STOCK + bare_name(name): weight.contiguous() for name, weight in weights.items()}
        write_file(out, lambda part: save_file(stock, part))
    else:
        section = "generator_lora" if all(name.startswith(PEFT) for name in weights) else "generator"
        write_file(out, lambda part: save_pickle({section: weights}, part))
    if state:
        write_card(out, source, state)


def save_pickle(content: Any, path: Path) -> None:
    """torch.save by Python's own file, whose errors say what is wrong."""
    with path.open("wb") as file:
        torch.save(content, file)


def student_of(run: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The student's weights in the reference's names, and what its checkpoint says of the run.

    A LoRA is scaled so that its alpha is its rank.
    """
    newest = checkpoint.newest_undamaged(run)
    if newest is None:
        raise ValueError(f"{run} has no checkpoint of a tuning run (step-...)")
    own = f"{STUDENT}.weight."
    tensors = checkpoint.load(newest, lambda name: name.startswith((AVERAGE, own)))
    weights = with_prefix(tensors, AVERAGE) or with_prefix(tensors, own)
    state = checkpoint.read_state(newest)
    recipe = state["recipe"]
    if recipe["rank"]:
        scale = recipe["alpha"] / recipe["rank"]
        scaled = {name: weight * scale if name.endswith(UP) else weight for name, weight in weights.items()}
        return scaled, state
    patches = weights[REFERENCE + PATCHES]  # a convolution there
    weights[REFERENCE + PATCHES] = patches.unflatten(1, (-1, 1, PATCH, PATCH))
    return weights, state


def lora_in(path: Path) -> dict[str, Tensor]:
    """A LoRA's tensors in the reference's names; ValueError where a file has none."""
    tensors = open_tensors(path, lora.SECTIONS).tensors
    if not all(".lora_A." in name or ".lora_B." in name for name in tensors):
        raise ValueError(f"{path} is no LoRA in the reference's layout (lora_A, lora_B)")
    return {PEFT + bare_name(name).replace(".default", ""): tensor for name, tensor in tensors.items()}
