"""Files and state dicts of Wan 2.1 VAEs and of tiny decoders for Wan latents -> modules that decode.

All foreign names of VAEs end here: the reference's (`Wan2.1_VAE.pth`, ComfyUI's repack and its own VAE),
diffusers' `AutoencoderKLWan`, and the TAEHV family's (`taew2_1`, `lighttaew2_1`).
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..config import TINY_WAN, WanAutoencoderConfig
from ..vae.autoencoder import WanAutoencoder
from ..vae.tiny import TinyAutoencoder
from .files import open_tensors
from .names import Shapes, bare_name, family, misfits, shapes_in

RAW_LATENTS = "lighttae"  # files named so decode raw latents, taew2_1 normalised ones; nothing in them says
OTHER_LATENTS = ("taehv", "taecvx")  # files named so are shaped as taew2_1 and decode other models' latents
SECTIONS = ("state_dict", "model_state_dict", "model_state", "model")
WANTED = "choose a Wan 2.1 VAE (wan_2.1_vae, Wan2.1_VAE) or a tiny decoder of its latents (taew2_1)"

_FLAT = re.compile(r"^(encoder|decoder)\.(?:downsamples|upsamples|down_blocks)\.(\d+)\.")
_RULES = (  # the reference's | diffusers'
    (r"^(conv1|quant_conv)\.", "encoder.moments."),
    (r"^(conv2|post_quant_conv)\.", "decoder.unpack."),
    (r"^(encoder|decoder)\.(conv1|conv_in)\.", r"\1.stem."),
    (r"^(encoder|decoder)\.(head\.0|norm_out)\.", r"\1.norm."),
    (r"^(encoder|decoder)\.(head\.2|conv_out)\.", r"\1.head."),
    (r"\.(middle\.0|mid_block\.resnets\.0)\.", ".middle.first."),
    (r"\.(middle\.1|mid_block\.attentions\.0)\.", ".middle.attention."),
    (r"\.(middle\.2|mid_block\.resnets\.1)\.", ".middle.last."),
    (r"\.up_blocks\.(\d+)\.resnets\.(\d+)\.", r".stages.\1.residuals.\2."),
    (r"\.up_blocks\.(\d+)\.upsamplers\.0\.", r".stages.\1.resample."),
    (r"\.residual\.0\.", ".norm1."),
    (r"\.residual\.2\.", ".conv1."),
    (r"\.residual\.3\.", ".norm2."),
    (r"\.residual\.6\.", ".conv2."),
    (r"\.conv_shortcut\.", ".shortcut."),
    (r"\.resample\.resample\.1\.", ".resample.space."),
    (r"\.time_conv\.", ".time."),
)
TAEHV_NAMES = {"decoder.1.": "decoder.stem.", "decoder.22.": "decoder.head."}  # the family's: ours
for _stage, _first in enumerate((3, 9, 15)):  # three blocks, upsampling, time, a convolution
    TAEHV_NAMES |= {f"decoder.{_first + i}.": f"decoder.stages.{_stage}.{i}." for i in range(3)}
    TAEHV_NAMES[f"decoder.{_first + 4}.conv."] = f"decoder.grows.{_stage}.grow."
    TAEHV_NAMES[f"decoder.{_first + 5}."] = f"decoder.grows.{_stage}.conv."


def load_vae(
    path: Path, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> WanAutoencoder | TinyAutoencoder:
    """Load a decoder from a .safetensors or .pth file; its names tell which of the two it is.

    Raises ValueError in one sentence that names the file for everything that is wrong with it.
    """
    path = Path(path)
    state = {bare_name(name): tensor for name, tensor in open_tensors(path, SECTIONS).tensors.items()}
    try:
        vae = _build(state, path.stem.lower())
        if damaged := [name for name, tensor in state.items() if not torch.isfinite(tensor.float()).all()]:
            raise ValueError(f"its {damaged[0]} is not finite; download it again")
    except ValueError as error:
        raise ValueError(f"{path} cannot be loaded as a VAE: {error}") from error
    return vae.to(device, dtype)


def build_wan_autoencoder(state: dict[str, Tensor]) -> WanAutoencoder:
    """Build the Wan 2.1 VAE of a state dict in any spelling, of any width; it shares the tensors.

    Raises ValueError that lists every tensor that is missing, unexpected or does not fit.
    """
    ours = from_reference(state)
    return _assigned(WanAutoencoder, _wan_config(ours), ours)


def build_tiny_decoder(state: dict[str, Tensor], is_raw: bool = False) -> TinyAutoencoder:
    """Build the tiny decoder of a TAEHV state dict for Wan 2.1; it shares the tensors.

    The family decodes what the transformer makes, normalised latents (madebyollin/taehv, README); with
    `is_raw` the decoder is one for raw latents and they are scaled for it. Raises ValueError as above.
    """
    wan = WanAutoencoderConfig()
    mean, std = torch.zeros(wan.latent_channels), torch.ones(wan.latent_channels)
    if is_raw:
        mean, std = torch.tensor(wan.latent_mean), torch.tensor(wan.latent_std)
    return _assigned(TinyAutoencoder, TINY_WAN, {**from_taehv(state), "mean": mean, "std": std})


def from_reference(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename a Wan VAE's state dict, in the reference's names or diffusers', to ours."""
    return {_our_name(name): tensor for name, tensor in state.items()}


def from_taehv(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename the decoder of a TAEHV state dict to ours; the encoder is left out."""
    ours = {}
    for name, tensor in state.items():
        if not name.startswith("encoder."):
            theirs = next((prefix for prefix in TAEHV_NAMES if name.startswith(prefix)), "")
            ours[TAEHV_NAMES.get(theirs, "") + name.removeprefix(theirs)] = tensor
    return ours


def _our_name(name: str) -> str:
    if flat := _FLAT.match(name):  # the reference numbers residuals and resamplings of all stages in one row
        side, length = flat[1], WanAutoencoderConfig.num_residuals + (1 if flat[1] == "encoder" else 2)
        stage, place = divmod(int(flat[2]), length)
        part = "resample" if place == length - 1 else f"residuals.{place}"
        name = f"{side}.stages.{stage}.{part}.{name[flat.end() :]}"
    for pattern, ours in _RULES:
        name = re.sub(pattern, ours, name)
    return name


def _build(state: dict[str, Tensor], file_name: str) -> WanAutoencoder | TinyAutoencoder:
    """The module that a state dict belongs to; ValueError says what it is if it is none of ours."""
    shapes = shapes_in(state)
    if stranger := next(_strangers(shapes, file_name), None):
        raise ValueError(f"it is {stranger}; {WANTED}")
    if _is_most_of(WanAutoencoder, WanAutoencoderConfig(), from_reference(state)):
        return build_wan_autoencoder(state)
    if _is_most_of(TinyAutoencoder, TINY_WAN, from_taehv(state)):
        return build_tiny_decoder(state, is_raw=RAW_LATENTS in file_name)
    raise ValueError(f"it is {family(shapes)}, with names such as {next(iter(state), '')!r}; {WANTED}")


def _is_most_of(build: type[nn.Module], config: Any, ours: dict[str, Tensor]) -> bool:
    expected = _on_meta(build, config).state_dict().keys()
    return 2 * len(expected & ours.keys()) > len(expected)


def _strangers(shapes: Shapes, file_name: str) -> Iterator[str]:
    """What else a VAE can be, most certain first."""
    stem = shapes.get("decoder.conv_in.weight") or shapes.get("decoder.conv1.weight") or ()
    tiny, channels = shapes.get("decoder.1.weight", ()), WanAutoencoderConfig().latent_channels
    if any(re.search(r"(down|up)samples\.\d+\.(down|up)samples\.", name) for name in shapes):
        yield "a Wan 2.2 VAE, of 48 latent channels"
    if len(stem) == 4:
        yield "an image VAE, as Stable Diffusion and Flux have"
    if "decoder.conv_in.conv.weight" in shapes:
        yield "the VAE of another video model"
    if len(stem) == 5 and stem[1] != channels:
        yield f"a VAE of {stem[1]} latent channels, where Wan 2.1 has {channels}"
    if "decoder.1.conv.0.weight" in shapes and "decoder.0.weight" in shapes:
        yield "a tiny decoder of the TAEHV family's larger layout ('super')"
    if len(tiny) == 4 and tiny[1] != channels:
        yield f"a tiny decoder of {tiny[1]} latent channels, where Wan 2.1 has {channels}"
    if len(tiny) == 4 and file_name.startswith(OTHER_LATENTS):
        yield "by its name a tiny decoder of HunyuanVideo or CogVideoX latents"


def _wan_config(ours: dict[str, Tensor]) -> WanAutoencoderConfig:
    """Widths from shapes; the published ones where shapes do not tell."""
    names = ("encoder.stem", *(f"encoder.stages.{i}.residuals.0.conv1" for i in range(4)))
    weights = [ours.get(f"{name}.weight", torch.zeros(0)) for name in names]
    width, *widths = (len(weight) if weight.ndim == 5 else 0 for weight in weights)
    if not all((width, *widths)) or any(wide % width for wide in widths):
        return WanAutoencoderConfig()
    return WanAutoencoderConfig(width=width, multipliers=tuple(wide // width for wide in widths))


def _on_meta(build: type[nn.Module], config: Any) -> nn.Module:
    with torch.device("meta"):
        return build(config).requires_grad_(False).eval()


def _assigned(build: type[nn.Module], config: Any, state: dict[str, Tensor]) -> nn.Module:
    """A module whose parameters become the tensors of `state`, once they are known to fit."""
    module = _on_meta(build, config)
    expected = module.state_dict()
    no_numbers = [name for name in expected if name in state and not state[name].is_floating_point()]
    if wrong := misfits(shapes_in(expected), shapes_in(state), no_numbers):
        raise ValueError(f"incomplete or wrong VAE: {wrong} (in our names); download it again")
    module.load_state_dict(state, assign=True, strict=True)
    return module
