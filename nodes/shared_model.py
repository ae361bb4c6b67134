"""A stock MODEL as LongLive's transformer: ComfyUI keeps and moves the weights, our layers call its linears.

Calling ComfyUI's own layers, and not only reading their weights, keeps all that ComfyUI does to them: LoRAs,
quantised formats, weights that are moved to the GPU a layer at a time.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..longlive_core.config import ModelConfig
from ..longlive_core.model.attention import Attend
from ..longlive_core.model.causal_wan import CausalWan
from ..longlive_core.model.layers import Linear
from ..longlive_core.model.vace import Vace
from ..longlive_core.weights.checkpoints import config_of
from ..longlive_core.weights.lora import LoraChoice, open_lora
from ..longlive_core.weights.names import (
    WAN_TEXT_TO_VIDEO,
    Shapes,
    family,
    foreign_name,
    misfits,
    our_name,
    our_shape,
    renamed,
    shapes_in,
)
from ..longlive_core.weights.quantize import precision_of
from ..longlive_core.weights.vace import graft
from . import host

PATCHES = "patch_embedding"  # a convolution there, a matrix here
HINT = "connect a Wan 2.1 text-to-video model of 1.3B (LongLive or a relative)"


def shared_config(model: Any) -> ModelConfig:
    """Sizes of the transformer in a MODEL; ValueError in one sentence if it cannot be run."""
    if not host.is_wan(model):
        raise ValueError(f"this MODEL is {type(model.model).__name__}, not Wan 2.1; {HINT}")
    network = host.network_of(model)
    theirs = shapes_in(dict(network.named_parameters()))
    if (looks := family(theirs)) != WAN_TEXT_TO_VIDEO:
        raise ValueError(f"this MODEL is {looks}; {HINT}")
    ours = {name: our_shape(name, theirs[their]) for name, their in renamed(theirs, our_name).items()}
    config = config_of(ours, "this MODEL", network.num_heads)
    if wrong := misfits(shapes_of(config), ours):
        raise ValueError(f"this MODEL is another kind of Wan: {wrong}; {HINT}")
    return config


def shapes_of(config: ModelConfig) -> Shapes:
    """Shape of every weight of a transformer of ours."""
    with torch.device("meta"):
        return shapes_in(dict(CausalWan(config).named_parameters()))


def with_lora(model: Any, config: ModelConfig, choice: LoraChoice) -> tuple[Any, str]:
    """A MODEL with a LoRA in any naming, and a line on what of it was used; ValueError if nothing was.

    Stock nodes skip LongLive's own LoRA silently, since they do not know its names. ValueError too for DoRA:
    ComfyUI divides by the norm of the rows without the LoRA, its definition by the norm with it.
    """
    lora = open_lora(choice, shapes_of(config))
    found, pairs, differences = lora.file.tensors, {}, {}
    parts = {"down": "lora_down.weight", "up": "lora_up.weight", "alpha": "alpha"}
    for target, patch in lora.patches.items():
        name = f"diffusion_model.{foreign_name(target, 'wan')}"
        stem = name.removesuffix(".weight").removesuffix(".bias")
        if "dora" in patch:
            raise ValueError(f"{choice.path} is a DoRA; LongLive: Load Model merges it, use that node")
        if diff := patch.get("diff"):
            differences[f"{stem}.diff_b" if name.endswith(".bias") else f"{stem}.diff"] = found[diff]
        pairs |= {f"{stem}.{part}": found[patch[kind]] for kind, part in parts.items() if kind in patch}
    for tensors in filter(None, (pairs, differences)):  # at once, ComfyUI would take one of them for a weight
        model = host.with_lora(model, tensors, choice.strength)
    return model, lora.report()


def vace_of(path: Path, model: Any, config: ModelConfig, attend: Attend) -> Vace:
    """The VACE layers of a file, of their own weights, for a transformer that runs on a MODEL's."""
    dtype = host.compute_dtype(model)
    with torch.device("meta"):
        alone = CausalWan(config, attend)
    graft(alone, path, precision_of(dtype.itemsize, dtype), host.offload_device())
    return alone.vace.to(dtype)


def shared_transformer(
    model: Any, config: ModelConfig, attend: Attend, vace: Vace | None = None
) -> CausalWan:
    """A transformer that runs on the weights of a loaded MODEL as they are now, next to it VACE's."""
    network, dtype = host.network_of(model), host.compute_dtype(model)
    with torch.device("meta"):
        transformer = CausalWan(config, attend).eval().requires_grad_(False)
    linears = [name for name, module in transformer.named_modules() if isinstance(module, Linear)]
    linears.remove(PATCHES)
    for name in linears:
        transformer.set_submodule(name, nn.Identity())
    small = {
        name: small_weight(network, name, dtype, model.load_device)
        for name, _ in transformer.named_parameters()
    }
    transformer.load_state_dict(small, assign=True)
    for name in linears:
        transformer.set_submodule(name, network.get_submodule(foreign_name(name, "wan")))
    transformer.vace = vace
    return transformer


def small_weight(network: nn.Module, name: str, dtype: torch.dtype, device: torch.device) -> Tensor:
    """A copy of what our layers hold themselves: norms, modulation, patch embedding; a few MB."""
    owner, _, leaf = name.rpartition(".")
    if leaf == "modulation":
        return network.get_parameter(foreign_name(name, "wan")).to(device, dtype)
    weight = host.live_weight(network.get_submodule(foreign_name(owner, "wan")), leaf, dtype, device)
    return weight.reshape(our_shape(name, weight.shape))
