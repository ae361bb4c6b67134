"""Files of VACE, the whole published model or its VACE layers alone -> these layers on a transformer."""

from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from ..model.causal_wan import CausalWan
from ..model.vace import Vace
from .checkpoints import SECTIONS, Progress, fill
from .files import TensorFile, open_tensors
from .lora import Lora, LoraChoice, open_lora
from .names import VACE, family, from_wan, misfits, printable, shapes_in
from .quantize import check_quantised, decoded

WANTED = "choose Wan2.1-VACE-1.3B, as longlive download vace-1.3b fetches it"


class OpenedVace(NamedTuple):
    """As checkpoints.OpenedModel: the layers, on meta and called `vace`, and the files to fill them from."""

    transformer: nn.ModuleDict
    file: TensorFile
    loras: list[Lora]


def graft(
    transformer: CausalWan,
    path: Path,
    precision: str = "bf16",
    device: torch.device | str = "cpu",
    loras: tuple[LoraChoice, ...] = (),
    on_progress: Progress | None = None,
) -> tuple[str, ...]:
    """Give a transformer the VACE layers of a file, stored in `precision`; all else in the file is ignored.

    Of `loras`, those count that change VACE's layers; returns notes on them. How many layers there are is
    read from the names, after which of the transformer's they come from `vace_layers` in a config.json next
    to the file, if there is one: else they are spread evenly. ValueError in one sentence for what is wrong.
    """
    file = open_vace(path, transformer.config.dim)
    places, first = places_of(file, transformer.config.num_layers), transformer.layers[0]
    attends = first.self_attn.attend, first.cross_attn.attend
    with torch.device("meta"):
        vace = Vace(transformer.config, places, *attends).eval().requires_grad_(False)
    modules = nn.ModuleDict({VACE.rstrip("."): vace})
    shapes = shapes_in(modules.state_dict())
    no_numbers = [n for n, t in file.tensors.items() if not (t.is_floating_point() or t.dtype == torch.int8)]
    if wrong := misfits(shapes, file.shapes, no_numbers):
        raise ValueError(f"{file.path}: incomplete or wrong VACE file: {wrong}; {WANTED}")
    fitting = [open_lora(choice, shapes) for choice in loras if changes_vace(choice)]
    opened = OpenedVace(modules, file, fitting)
    fill(opened, precision, torch.device(device), on_progress)
    transformer.vace = vace
    return tuple(lora.report() for lora in fitting)


def open_vace(path: Path, dim: int) -> TensorFile:
    """Open a file and keep what is VACE's, under our names; ValueError says what it is if it has none."""
    file = open_tensors(path, SECTIONS)
    weights = {name: weight for name, weight in from_wan(file.tensors).items() if name.startswith(VACE)}
    embedding = weights.get(f"{VACE}patch_embedding.weight")
    if not weights:
        raise ValueError(f"{path} is {family(file.shapes)} without VACE layers; {WANTED}")
    if embedding is not None and len(embedding) != dim:
        larger = ", as of Wan 14B or Wan 2.2" if len(embedding) > dim else ""
        raise ValueError(f"{path} is VACE of width {len(embedding)}{larger}, not {dim}; {WANTED}")
    check_quantised(file, weights)
    return replace(file, tensors=weights)


def changes_vace(choice: LoraChoice) -> bool:
    """Whether a LoRA has tensors for VACE's layers."""
    return any("vace_" in name for name in open_tensors(choice.path, SECTIONS).tensors)


def places_of(file: TensorFile, num_layers: int) -> tuple[int, ...]:
    """After which of a transformer's layers hints are added; ValueError where config.json has none such."""
    count, config = len({name.split(".")[2] for name in file.tensors if ".layers." in name}), {}
    with suppress(OSError):
        config = decoded((file.path.parent / "config.json").read_bytes())
    spread = range(0, num_layers, max(1, num_layers // max(1, count)))
    places = config.get("vace_layers", [*spread][:count])
    is_list = isinstance(places, list) and all(type(place) is int for place in places)
    if not is_list or len(places) != count or [n for n in range(num_layers) if n in places] != places:
        raise ValueError(
            f"{file.path} has {count} VACE layers, which cannot follow layers {printable(str(places))} of "
            f"{num_layers}; correct vace_layers in the config.json next to it, or choose another file"
        )
    return tuple(places)
