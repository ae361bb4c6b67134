"""Names of Wan transformers, the original's and diffusers' -> ours and back; what names and shapes tell."""

import re
from collections.abc import Callable, Iterable, Sequence

from torch import Tensor

Shapes = dict[str, tuple[int, ...]]
SCALE = ".scale"  # after the name of a weight in 8 bits
WAN_TEXT_TO_VIDEO = "a Wan text-to-video transformer"

MEMORY = "memory."  # before our names of SGF+'s second set of weights
VACE = "vace."  # before our names of VACE's layers and embedding

_WRAPPERS = re.compile(r"(?<![^.])(_fsdp_wrapped_module|_checkpoint_wrapped_module|_orig_mod|module)\.")
_PREFIXES = re.compile(
    r"^((base_model|model|diffusion_model|transformer|first_stage_model|vae|generator|generator_ema|ema)\.)+"
)
_NAME = re.compile(r"(?:(?:blocks|layers)\.(\d+)\.)?(.*?)(\.weight|\.bias)?", re.DOTALL)  # layer, part, leaf
_MEMORY = re.compile(r"(?<![^.])memory[_.]")
_VACE = re.compile(r"^vace[_.]")
_SCALES = (".scale_weight", ".weight_scale")  # how ComfyUI names the scale of a weight, then and now
_NO_WEIGHTS = ("scaled_fp8", "comfy_quant", "scale_input", "input_scale")

# Our names -> theirs, where they differ.
_WAN = {"head.proj": "head.head"}
_DIFFUSERS = {
    "text_embedding.0": "condition_embedder.text_embedder.linear_1",
    "text_embedding.2": "condition_embedder.text_embedder.linear_2",
    "time_embedding.0": "condition_embedder.time_embedder.linear_1",
    "time_embedding.2": "condition_embedder.time_embedder.linear_2",
    "time_projection.1": "condition_embedder.time_proj",
    "head.proj": "proj_out",
    "head.modulation": "scale_shift_table",
}
_ATTENTIONS = {"self_attn": "attn1", "cross_attn": "attn2"}
_INNER = {"q": "to_q", "k": "to_k", "v": "to_v", "o": "to_out.0", "norm_q": "norm_q", "norm_k": "norm_k"}
_DIFFUSERS_LAYER = {
    **{f"{a}.{p}": f"{b}.{q}" for a, b in _ATTENTIONS.items() for p, q in _INNER.items()},
    "norm3": "norm2",
    "ffn.0": "ffn.net.0.proj",
    "ffn.2": "ffn.net.2",
    "modulation": "scale_shift_table",
    "before_proj": "proj_in",
    "after_proj": "proj_out",
}
_OURS = {theirs: ours for parts in (_WAN, _DIFFUSERS) for ours, theirs in parts.items()}
_OURS_IN_LAYER = {theirs: ours for ours, theirs in _DIFFUSERS_LAYER.items()}

_LORA = re.compile(r"lora[_.]|\.diff(_b|_m)?$|hada_|lokr_|\.oft_|\.alpha$|dora_scale$")
_VAE_NAMES = {"decoder.conv1.weight", "decoder.conv_in.weight"}
_TEXT_NAMES = {"shared.weight", "token_embedding.weight"}
_LARGER = {5120: "a Wan 14B", 3072: "a Wan 2.2 5B"}  # by their width
_TEXT_TO_VIDEO_CHANNELS = 16
_SHOWN, _LONGEST = 5, 200  # names of a list, characters of a text


def our_name(name: str) -> str:
    """Translate a parameter's or module's name; an unknown one only loses its prefixes.

    In the second set of SGF+, x.weight is called x.memory_weight or memory_x.weight, here memory.x.weight;
    VACE's vace_blocks.0.x.weight is called vace.layers.0.x.weight.
    """
    plain, is_second = _MEMORY.subn("", bare_name(name), count=1)
    plain, is_vace = _VACE.subn("", plain)
    layer, part, leaf = _NAME.fullmatch(plain).groups("")
    our_part = f"layers.{layer}.{_OURS_IN_LAYER.get(part, part)}" if layer else _OURS.get(part, part)
    return MEMORY * is_second + VACE * is_vace + our_part + leaf


def foreign_name(name: str, spelling: str) -> str:
    """Translate one of our names to `wan` or `diffusers`."""
    layer, part, leaf = _NAME.fullmatch(name.removeprefix(VACE)).groups("")
    theirs = {"wan": _WAN, "diffusers": _DIFFUSERS_LAYER if layer else _DIFFUSERS}[spelling]
    set_of = "vace_" if name.startswith(VACE) else ""
    return set_of + (f"blocks.{layer}." if layer else "") + theirs.get(part, part) + leaf


def bare_name(name: str) -> str:
    """Remove the prefixes and wrappers that trainers, compilers and ComfyUI put before a name."""
    return _PREFIXES.sub("", _WRAPPERS.sub("", name))


def our_shape(name: str, shape: Sequence[int]) -> tuple[int, ...]:
    """Shape of a weight in our model: the patch convolution [E, C, 1, 2, 2] is a matrix [E, 4C]."""
    if name.removeprefix(MEMORY).removeprefix(VACE) == "patch_embedding.weight" and len(shape) == 5:
        return shape[0], shape[1] * shape[2] * shape[3] * shape[4]
    return tuple(shape)


def shapes_in(state: dict[str, Tensor]) -> Shapes:
    """Shapes of the tensors of a state dict."""
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def renamed(names: Iterable[str], rename: Callable[[str], str]) -> dict[str, str]:
    """Map new names to a file's names; the scale of a weight in 8 bits is called `x.weight.scale`.

    Names of other tensors that quantisation adds are left out.
    """
    found = {}
    for name in names:
        if suffix := next((suffix for suffix in _SCALES if name.endswith(suffix)), ""):
            found[rename(name.removesuffix(suffix) + ".weight") + SCALE] = name
        elif not name.endswith(_NO_WEIGHTS):
            found[rename(name)] = name
    return found


def from_wan(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename and reshape a transformer's state dict to ours; nothing is copied."""
    names = renamed(state, our_name)
    return {ours: state[name].reshape(our_shape(ours, state[name].shape)) for ours, name in names.items()}


def family(shapes: Shapes) -> str:
    """What a file holds, e.g. `a LoRA`; WAN_TEXT_TO_VIDEO for a transformer that can be loaded."""
    bare = {bare_name(name): shape for name, shape in shapes.items()}
    patch = bare.get("patch_embedding.weight")
    if 2 * sum(bool(_LORA.search(name)) for name in bare) > len(bare):
        return "a LoRA"
    if bare.keys() & _VAE_NAMES or (patch is None and any(name.startswith("decoder.") for name in bare)):
        return "a VAE"
    if bare.keys() & _TEXT_NAMES:
        return "a text encoder"
    if patch is None or len(patch) not in (2, 5):
        return "an unknown kind of model"
    if any("vace" in name for name in bare):
        return "a Wan VACE model"
    has_image_input = any(name.startswith("img_emb") or ".k_img" in name for name in bare)
    if has_image_input or (len(patch) == 5 and patch[1] != _TEXT_TO_VIDEO_CHANNELS):
        return _LARGER.get(patch[0], "a Wan image-to-video model")
    return _LARGER.get(patch[0], WAN_TEXT_TO_VIDEO)


def misfits(expected: Shapes, found: Shapes, no_numbers: Iterable[str] = ()) -> str:
    """Compare shapes of a model and a file: `1 tensor missing (a); 2 tensors unexpected (b, c)`, or empty.

    `no_numbers` are names found whose dtype weights cannot have. Scales may be there or not.
    """
    misshapen = [name for name in expected if name in found and expected[name] != found[name]]
    groups = {
        "missing": [name for name in expected if name not in found],
        "unexpected": [name for name in found if name not in expected and not name.endswith(SCALE)],
        "of another shape": [f"{n} {list(found[n])} instead of {list(expected[n])}" for n in misshapen],
        "of an unsupported dtype": list(no_numbers),
    }
    counted = {f"{len(names)} tensor{'s' * (len(names) > 1)} {what}": names for what, names in groups.items()}
    return "; ".join(f"{count} ({some(names)})" for count, names in counted.items() if names)


def some(names: Sequence[str]) -> str:
    """The first few names of a list, printable."""
    return ", ".join(map(printable, names[:_SHOWN])) + (", ..." if len(names) > _SHOWN else "")


def printable(text: str) -> str:
    """The first 200 characters of a text from a file, control characters escaped."""
    shown = text[:_LONGEST]
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in shown)
