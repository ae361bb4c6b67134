"""Small random models in the layouts of the published files, for a real ComfyUI to load."""

import json
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from longlive_core.config import LONGLIVE_1_3B, TINY_WAN
from longlive_core.model.causal_wan import CausalWan
from longlive_core.model.vace import Vace
from longlive_core.vae.tiny import TinyAutoencoder
from longlive_core.weights import vae_files
from longlive_core.weights.names import foreign_name

CONFIG = replace(LONGLIVE_1_3B.model, dim=256, ffn_dim=384, num_heads=2, num_layers=2)
RANK = 4
FP8 = torch.float8_e4m3fn


def transformer(seed: int = 0) -> dict[str, Tensor]:
    """A Wan 2.1 text-to-video model under the original's names, fp32."""
    torch.manual_seed(seed)
    model = CausalWan(CONFIG).requires_grad_(False)
    state = {foreign_name(name, "wan"): weight for name, weight in model.state_dict().items()}
    patches = state["patch_embedding.weight"]
    state["patch_embedding.weight"] = patches.view(len(patches), CONFIG.latent_channels, 1, 2, 2)
    return {name: weight.contiguous() for name, weight in state.items()}


def vace(seed: int = 7) -> dict[str, Tensor]:
    """VACE layers for that transformer, under their published names."""
    torch.manual_seed(seed)
    layers = Vace(CONFIG, (0,)).requires_grad_(False)
    patches = layers.patch_embedding.weight
    patches.data = torch.randn_like(patches) * 0.02
    state = {foreign_name(f"vace.{name}", "wan"): weight for name, weight in layers.state_dict().items()}
    return state | {"vace_patch_embedding.weight": patches.view(len(patches), -1, 1, 2, 2).contiguous()}


def two_sets() -> dict[str, Tensor]:
    """SGF+ under its published names: a second set of weights, `memory_*`."""

    def twin(name: str) -> str:
        owner, _, leaf = name.rpartition(".")
        return f"{owner}.memory_{leaf}" if name.startswith("blocks.") else f"memory_{name}"

    return transformer() | {twin(name): weight for name, weight in transformer(seed=5).items()}


def image_to_video(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same as a host would take for an image-to-video model."""
    projector = {"img_emb.proj.0.weight": torch.ones(1280), "img_emb.proj.0.bias": torch.zeros(1280)}
    channels = torch.zeros(CONFIG.dim, 36, 1, 2, 2)
    return state | {"patch_embedding.weight": channels} | projector


def scaled_fp8(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The layers' matrices in 8 bits with one scale each, as ComfyUI's repacks are."""
    packed = dict(state) | {"scaled_fp8": torch.zeros(2, dtype=FP8)}
    for name, weight in state.items():
        if name.startswith("blocks.") and weight.ndim == 2:
            scale = weight.abs().max() / torch.finfo(FP8).max
            packed[name] = (weight / scale).to(FP8)
            packed[name.replace(".weight", ".scale_weight")] = scale.float()
    return packed


def lora(state: dict[str, Tensor], seed: int = 1) -> dict[str, tuple[Tensor, Tensor]]:
    """(down, up) for every matrix of the layers, by the name of its module."""
    torch.manual_seed(seed)
    modules = [name.removesuffix(".weight") for name, weight in state.items() if weight.ndim == 2]
    shapes = {name: state[f"{name}.weight"].shape for name in modules if name.startswith("blocks.")}
    return {
        name: (torch.randn(RANK, wide) * 0.05, torch.randn(tall, RANK) * 0.5)
        for name, (tall, wide) in shapes.items()
    }


def stock_lora(pairs: dict[str, tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    """As ComfyUI's own nodes read it."""
    named = {}
    for name, (down, up) in pairs.items():
        stem = f"diffusion_model.{name}"
        named |= {f"{stem}.lora_down.weight": down, f"{stem}.lora_up.weight": up}
        named[f"{stem}.alpha"] = torch.tensor(float(RANK))
    return named


def reference_lora(pairs: dict[str, tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    """As LongLive publishes it."""
    named = {}
    for name, (down, up) in pairs.items():
        stem = f"base_model.model.{name}"
        named |= {f"{stem}.lora_A.weight": down, f"{stem}.lora_B.weight": up}
    return named


def tiny_decoder(seed: int = 2) -> dict[str, Tensor]:
    """A decoder of the TAEHV family."""
    torch.manual_seed(seed)
    ours = TinyAutoencoder(TINY_WAN).requires_grad_(False).decoder.state_dict(prefix="decoder.")
    theirs = {our: their for their, our in vae_files.TAEHV_NAMES.items()}
    state = {}
    for name, weight in ours.items():
        prefix = next(part for part in theirs if name.startswith(part))
        state[theirs[prefix] + name.removeprefix(prefix)] = weight.contiguous()
    return state


def write_models(models: Path) -> None:
    """All of them, into a models folder of the host's."""
    for folder in ("diffusion_models", "loras", "vae_approx", "text_encoders", "vae"):
        (models / folder).mkdir(parents=True, exist_ok=True)
    state = transformer()
    pairs = lora(state)
    save_file(state, models / "diffusion_models" / "small_wan.safetensors")
    save_file(scaled_fp8(state), models / "diffusion_models" / "small_wan_fp8.safetensors")
    frame_wise = {"config": json.dumps({"transformer": {"causal_ar": True}})}
    save_file(state, models / "diffusion_models" / "small_ar.safetensors", metadata=frame_wise)
    save_file(two_sets(), models / "diffusion_models" / "small_sgf_plus.safetensors")
    save_file(image_to_video(state), models / "diffusion_models" / "small_i2v.safetensors")
    save_file(vace(), models / "diffusion_models" / "small_vace.safetensors")
    base = {"generator": {f"model.{name}": weight for name, weight in state.items()}}
    torch.save(base, models / "diffusion_models" / "longlive_base.pt")
    both = {f"model.{name}": weight for name, weight in two_sets().items()}
    torch.save({"generator_ema": both}, models / "diffusion_models" / "sgf_plus_chunkwise.pt")
    save_file(stock_lora(pairs), models / "loras" / "small_lora.safetensors")
    torch.save({"generator_lora": reference_lora(pairs)}, models / "loras" / "longlive_lora.pt")
    save_file(tiny_decoder(), models / "vae_approx" / "taew2_1.safetensors")
    save_file(tiny_decoder(3), models / "vae_approx" / "lighttaew2_1.safetensors")
