"""LoRA files in every naming -> our weights with them; in fp32, before any cast.

PEFT (the reference's own: lora_A, lora_B, no alpha), kohya and ComfyUI (lora_down, lora_up, alpha, diff,
diff_b, diff_m; dotted or underscored), diffusers; DoRA in each. Merged when the model is loaded: inference
sees plain linears.
"""

import re
from dataclasses import dataclass, field
from itertools import accumulate
from math import prod
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from .files import TensorFile, open_tensors
from .names import Shapes, family, foreign_name, our_name, some

SECTIONS = ("generator_lora", "state_dict", "generator", "model")  # the last two to say what it is
Patch = dict[str, str]  # down, up, alpha, dora, diff: the tensors in the file that change a weight, by name
_TENSOR = re.compile(  # the outer groups after the stem are the names of a Patch
    r"^(?P<stem>.+?)\.(?:(?:(?P<down>lora_A|lora_down|lora\.down)|(?P<up>lora_B|lora_up|lora\.up))"
    r"(?:\.default)?\.weight|(?P<alpha>alpha)|(?P<diff>diff(?P<of>_b|_m)?)"
    r"|(?P<dora>dora_scale|lora_magnitude_vector(?:\.default)?(?:\.weight)?))$"
)
_LEAVES = {None: ".weight", "_b": ".bias", "_m": ".modulation"}  # what `diff`, `diff_b` and `diff_m` change
_ADAPTERS = {".lokr_": "LoKr", ".hada_": "LoHa", ".oft_": "OFT", ".boft_": "BOFT", ".a1.": "GLoRA"}
BY_COMFYUI = (
    "load it with ComfyUI's Load LoRA (Model only) and connect that MODEL to LongLive: Use Model, "
    "or choose a plain LoRA"
)
_UNDERSCORED = re.compile(r"^lora_(?:unet|transformer)__?")


class LoraChoice(NamedTuple):
    """A LoRA file and how to apply it; `alpha` counts where the file stores none (None: alpha = rank)."""

    path: Path
    strength: float = 1.0
    alpha: float | None = None


@dataclass
class Lora:
    """One opened LoRA: which of our weights it changes, and which of its tensors found no place."""

    choice: LoraChoice
    file: TensorFile
    patches: dict[str, Patch] = field(default_factory=dict)  # our name of a weight -> what changes it
    elsewhere: list[str] = field(default_factory=list)  # tensors for weights that this model lacks
    unknown: list[str] = field(default_factory=list)  # tensors of a kind that is not supported

    def apply(self, target: str, weight: Tensor) -> Tensor:
        """An fp32 weight with strength * alpha / rank * up @ down and strength * diff added.

        With `dora` (DoRA, arXiv 2402.09353) W becomes dora * (W + change) / norm of its rows, or columns, and
        strength goes from W to that.
        """
        tensors = {kind: self.file.tensors[name] for kind, name in self.patches[target].items()}
        strength = self.choice.strength
        if "diff" in tensors:
            weight = weight + (strength * tensors["diff"].float()).view(weight.shape)
        if "down" not in tensors:
            return weight
        down, up = tensors["down"].float(), tensors["up"].float()
        rank = down.shape[0]
        alpha = self.choice.alpha if self.choice.alpha is not None else rank
        scale = float(tensors.get("alpha", alpha)) / rank
        if "dora" not in tensors:
            return weight + (strength * scale * (up.flatten(1) @ down.flatten(1))).view(weight.shape)
        full, dora = weight + scale * (up.flatten(1) @ down.flatten(1)), tensors["dora"].float()
        dora = dora.reshape(len(dora), -1)  # [out, 1] or [1, in]
        norm = torch.linalg.vector_norm(full, dim=1 if dora.shape[1] == 1 else 0, keepdim=True)
        return weight.lerp(dora * full / norm.clamp_min(torch.finfo(norm.dtype).eps), strength)

    def report(self) -> str:
        """Every tensor accounted for, in one line."""
        used = sum(map(len, self.patches.values()))
        parts = [f"{self.choice.path.name}: {used} tensors change {len(self.patches)} weights"]
        for names, what in ((self.elsewhere, "are for another model"), (self.unknown, "are not supported")):
            if names:
                parts.append(f"{len(names)} {what} ({some(names)})")
        return "; ".join(parts)


def open_lora(choice: LoraChoice, shapes: Shapes) -> Lora:
    """Match a LoRA file with a model of these shapes (our names); ValueError if it changes nothing there."""
    lora = Lora(choice, open_tensors(choice.path, SECTIONS))
    sizes = lora.file.shapes
    for target, patch in _patches(lora, shapes).items():
        found = {kind: sizes[name] for kind, name in patch.items()}
        fitting = _fitting(found, shapes[target]) if target in shapes else {}
        if fitting and all(fitting.values()):
            lora.patches[target] = patch
        elif any(fitting.values()) or (fitting and ("up" in patch) != ("down" in patch)):
            raise ValueError(
                f"{choice.path} changes {target} by tensors that do not fit together: "
                f"{some([f'{name} {list(sizes[name])}' for name in patch.values()])}; {BY_COMFYUI}"
            )
        else:
            is_change = target not in shapes or patch.keys() & {"down", "diff"}
            (lora.elsewhere if is_change else lora.unknown).extend(patch.values())
    if not lora.patches:
        looks = family(sizes)
        hint = "it is made for another model" if looks == "a LoRA" else f"it looks like {looks}"
        raise ValueError(
            f"{choice.path} changes nothing in this model: none of its {len(sizes)} tensors fits; "
            f"{hint}; choose a LoRA for Wan 2.1 1.3B"
        )
    return lora


def _patches(lora: Lora, shapes: Shapes) -> dict[str, Patch]:
    """The file's tensors by the weight that they are for.

    Raises ValueError for adapters that are no LoRA, and for tensors that change what a pair means.
    """
    patches, stems = {}, set()
    underscored = {foreign_name(n, s).replace(".", "_"): n for n in shapes for s in ("wan", "diffusers")}
    for name in lora.file.shapes:
        match = _TENSOR.match(name)
        target = _target(match["stem"], _LEAVES[match["of"]], underscored) if match else ""
        if match and match.lastgroup not in patches.setdefault(target, {}):
            patches[target][match.lastgroup] = name
            stems |= {match["stem"]} if match["down"] and target in shapes else set()
        else:
            lora.unknown.append(name)
    for mark, kind in _ADAPTERS.items():
        if any(mark in name for name in lora.unknown):
            raise ValueError(f"{lora.choice.path} is a {kind}, which is not merged here; {BY_COMFYUI}")
    prefixes = {name: accumulate(name.split("."), "{}.{}".format) for name in lora.unknown}
    if strange := [name for name, of in prefixes.items() if not stems.isdisjoint(of)]:
        raise ValueError(
            f"{lora.choice.path} has {some(strange)}, which changes what the matrices next to it mean and "
            f"is not supported; {BY_COMFYUI}"
        )
    return patches


def _fitting(sizes: Shapes, shape: tuple[int, ...]) -> dict[str, bool]:
    """Which parts of a patch, given by the shapes of its tensors, change a weight of that shape."""
    rows, columns = _flat(shape)
    down, up, dora = (sizes.get(kind, ()) for kind in ("down", "up", "dora"))
    parts = {"diff": _flat(sizes["diff"]) == (rows, columns)} if "diff" in sizes else {}
    if "down" in sizes or "up" in sizes:
        rank = down[0] if min(len(down), len(up)) > 1 else 0
        parts["pair"] = rank > 0 and _flat(up) == (rows, rank) and _flat(down) == (rank, columns)
    if "dora" in sizes:  # rows are scaled by [out] or [out, 1], columns by [1, in]
        is_scale = dora[:1] == (rows,) == (prod(dora),) or dora == (1, columns)
        parts["dora"] = is_scale and len(shape) == 2 and bool(down) and "diff" not in sizes
    return parts


def _flat(shape: tuple[int, ...]) -> tuple[int, int]:
    """Rows and columns of a weight as a matrix."""
    return (shape[0], prod(shape[1:])) if shape else (0, 0)


def _target(stem: str, leaf: str, underscored: dict[str, str]) -> str:
    if _UNDERSCORED.match(stem):
        return underscored.get(_UNDERSCORED.sub("", stem) + leaf.replace(".", "_"), stem + leaf)
    name = our_name(stem + leaf)
    return stem_name if (stem_name := name.removesuffix(leaf)).endswith("modulation") else name
