"""Names of Wan checkpoints, the original's and diffusers' -> ours and back; no other place knows theirs."""

import re

from torch import Tensor

_WRAPPERS = re.compile(r"(_fsdp_wrapped_module|_checkpoint_wrapped_module|_orig_mod)\.")
_PREFIXES = ("base_model.model.", "model.diffusion_model.", "diffusion_model.", "transformer.", "model.")
_LAYER = re.compile(r"^(?:blocks|layers)\.(\d+)\.(.+)$")
_LEAF = re.compile(r"^(.+?)\.(weight|bias)$")

_PARTS = (  # ours, Wan's, diffusers'
    ("patch_embedding", "patch_embedding", "patch_embedding"),
    ("text_embedding.0", "text_embedding.0", "condition_embedder.text_embedder.linear_1"),
    ("text_embedding.2", "text_embedding.2", "condition_embedder.text_embedder.linear_2"),
    ("time_embedding.0", "time_embedding.0", "condition_embedder.time_embedder.linear_1"),
    ("time_embedding.2", "time_embedding.2", "condition_embedder.time_embedder.linear_2"),
    ("time_projection.1", "time_projection.1", "condition_embedder.time_proj"),
    ("head.proj", "head.head", "proj_out"),
    ("head.modulation", "head.modulation", "scale_shift_table"),
)
_ATTENTIONS = (("self_attn", "attn1"), ("cross_attn", "attn2"))
_PROJECTIONS = (("q", "to_q"), ("k", "to_k"), ("v", "to_v"), ("o", "to_out.0"))
_LAYER_PARTS = (
    *((f"{a}.{p}", f"{a}.{p}", f"{b}.{q}") for a, b in _ATTENTIONS for p, q in _PROJECTIONS),
    *((f"{a}.{n}", f"{a}.{n}", f"{b}.{n}") for a, b in _ATTENTIONS for n in ("norm_q", "norm_k")),
    ("norm3", "norm3", "norm2"),
    ("ffn.0", "ffn.0", "ffn.net.0.proj"),
    ("ffn.2", "ffn.2", "ffn.net.2"),
    ("modulation", "modulation", "scale_shift_table"),
)
_SPELLINGS = {"wan": 1, "diffusers": 2}
_OURS = {name: row[0] for row in _PARTS for name in row}
_OURS_IN_LAYER = {name: row[0] for row in _LAYER_PARTS for name in row}


def our_name(name: str) -> str:
    """The name of a parameter or module in this project; an unknown one comes back without its prefix."""
    name = bare_name(name)
    stem, dot, leaf = name, "", ""
    if match := _LEAF.match(name):
        stem, dot, leaf = match[1], ".", match[2]
    if match := _LAYER.match(stem):
        return f"layers.{match[1]}.{_OURS_IN_LAYER.get(match[2], match[2])}{dot}{leaf}"
    return f"{_OURS.get(stem, stem)}{dot}{leaf}"


def from_wan(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict under our names, nothing copied; the patch convolution [E, C, 1, 2, 2] becomes [E, 4C]."""
    ours = {our_name(name): tensor for name, tensor in state.items()}
    if "patch_embedding.weight" in ours:
        ours["patch_embedding.weight"] = ours["patch_embedding.weight"].flatten(1)
    return ours


def bare_name(name: str) -> str:
    """Without the prefixes and wrappers that trainers, compilers and hosts put before a name."""
    name = _WRAPPERS.sub("", name)
    for prefix in _PREFIXES:
        name = name.removeprefix(prefix)
    return name


def foreign_name(name: str, spelling: str) -> str:
    """One of our names as `wan` or `diffusers` spell it."""
    column = _SPELLINGS[spelling]
    stem, dot, leaf = name, "", ""
    if match := _LEAF.match(name):
        stem, dot, leaf = match[1], ".", match[2]
    if match := _LAYER.match(stem):
        theirs = {row[0]: row[column] for row in _LAYER_PARTS}
        return f"blocks.{match[1]}.{theirs[match[2]]}{dot}{leaf}"
    return f"{ {row[0]: row[column] for row in _PARTS}[stem] }{dot}{leaf}"
