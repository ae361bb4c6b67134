"""Files of a tuning run -> its models; every wrong one ends in one sentence."""

from pathlib import Path

import torch
from torch.distributed.device_mesh import DeviceMesh

from longlive_core.model.causal_wan import CausalWan
from longlive_core.vae.autoencoder import WanAutoencoder
from longlive_core.weights.checkpoints import SECTIONS, config_of, load_transformer
from longlive_core.weights.files import open_tensors
from longlive_core.weights.names import SCALE, WAN_TEXT_TO_VIDEO, family, from_wan, misfits, shapes_in
from longlive_core.weights.quantize import dequantised
from longlive_core.weights.vae_files import load_vae

from .parallel import shard_part

TEACHERS = WAN_TEXT_TO_VIDEO, "a Wan 14B"  # as `family` calls them


def frozen_dtype(device: torch.device) -> torch.dtype:
    """Of weights that are not trained: bf16 on a GPU; CPUs are slow in it."""
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def load_trained(path: Path, is_frozen: bool, device: torch.device) -> CausalWan:
    """A student or critic, in fp32 unless its own weights stay frozen."""
    is_half = is_frozen and frozen_dtype(device) == torch.bfloat16
    return load_transformer(path, precision="bf16" if is_half else "fp32", device=device).transformer


def load_teacher(
    path: Path, like: CausalWan, mesh: DeviceMesh | None = None, is_offloaded: bool = False
) -> CausalWan:
    """A bidirectional text-to-video Wan of any size, frozen, on the student's device.

    With a mesh it is sharded layer by layer as it is loaded, so that it is never whole anywhere. ValueError
    where it is something else, or knows other latents or prompts than the student.
    """
    file = open_tensors(path, SECTIONS)
    if (looks := family(file.shapes)) not in TEACHERS:
        raise ValueError(f"{path} is {looks}; the teacher must be a Wan 2.1 text-to-video transformer")
    tensors = from_wan(file.tensors)
    config = config_of(shapes_in(tensors), path, file.metadata.get("num_heads"))
    with torch.device("meta"):
        model = CausalWan(config).requires_grad_(False)
    check_fits(path, "teacher", model, like)
    names = model.state_dict()
    if wrong := misfits(shapes_in(names), shapes_in(tensors)):
        raise ValueError(f"{path}: incomplete or wrong teacher: {wrong}")
    dtype, prefixes = frozen_dtype(like.device), [f"layers.{index}." for index in range(config.num_layers)]
    for prefix, part in zip([*prefixes, ""], [*model.layers, model], strict=True):
        own = [name for name in names if name.startswith(prefix) and (prefix or "layers." not in name)]
        state = {
            name.removeprefix(prefix): dequantised(tensors[name], tensors.get(name + SCALE)).to(
                like.device, dtype
            )
            for name in own
        }
        part.load_state_dict(state, strict=False, assign=True)
        if mesh:
            shard_part(part, mesh, dtype, is_offloaded)
    return model.eval()


def check_fits(path: Path, role: str, model: CausalWan, student: CausalWan) -> None:
    """ValueError unless a model knows the student's latents and prompts."""
    for what, name in (("latent channels", "latent_channels"), ("values a text token", "text_dim")):
        found, needed = getattr(model.config, name), getattr(student.config, name)
        if found != needed:
            raise ValueError(
                f"{path} has {found} {what} and the student {needed}: it cannot be its {role}; choose a "
                "text-to-video Wan 2.1"
            )


def load_wan_vae(path: Path, like: CausalWan) -> WanAutoencoder:
    """The VAE, on the student's device; ValueError for a decoder alone."""
    vae = load_vae(path, frozen_dtype(like.device), like.device)
    if not isinstance(vae, WanAutoencoder):
        raise ValueError(f"{path} only decodes, and a clip's first latent is encoded; choose a Wan 2.1 VAE")
    return vae
