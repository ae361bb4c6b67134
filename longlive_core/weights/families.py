"""What a file of tensors looks like, told from names and shapes: for errors that help."""

import re

from .names import bare_name, our_name

Shapes = dict[str, tuple[int, ...]]
_LORA = re.compile(r"lora_|\.diff(_b)?$|hada_|lokr_")
DIM_OF_WAN_14B, DIM_OF_WAN_5B = 5120, 3072
TEXT_CHANNELS = 16


def family(shapes: Shapes) -> str:
    """A noun phrase, e.g. `a LoRA`; `a Wan text-to-video transformer` when the transformer can be loaded."""
    names = [bare_name(name) for name in shapes]
    has = set(names).__contains__
    if names and sum(bool(_LORA.search(name)) for name in names) * 2 > len(names):
        return "a LoRA"
    if has("decoder.conv1.weight") or has("decoder.conv_in.weight") or has("first_stage_model.conv1.weight"):
        return "a VAE"
    if any(name.startswith("decoder.") for name in names) and not has("patch_embedding.weight"):
        return "a VAE"
    if any(has(name) for name in ("shared.weight", "token_embedding.weight")):
        return "a text encoder"
    return _transformer_family({our_name(name): shape for name, shape in shapes.items()})


def _transformer_family(ours: Shapes) -> str:
    patch = ours.get("patch_embedding.weight")
    if patch is None or len(patch) not in (2, 5):
        return "no Wan transformer that is known here"
    if any("vace" in name for name in ours):
        return "a Wan VACE model"
    if patch[0] == DIM_OF_WAN_14B:
        return "a Wan 14B"
    if patch[0] == DIM_OF_WAN_5B:
        return "a Wan 2.2 5B"
    if any(name.startswith("img_emb") or ".k_img" in name for name in ours) or (
        len(patch) == 5 and patch[1] != TEXT_CHANNELS
    ):
        return "a Wan image-to-video model"
    return WAN_TEXT_TO_VIDEO


WAN_TEXT_TO_VIDEO = "a Wan text-to-video transformer"
