"""LoRA files in every naming -> what they add to our weights; in fp32, before any cast.

PEFT (the reference's own: lora_A, lora_B, no alpha), kohya and ComfyUI (lora_down, lora_up, alpha, diff,
diff_b; dotted or underscored), diffusers. Merged when the model is loaded: inference sees plain linears.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from .files import TensorFile, open_tensors
from .names import Shapes, family, foreign_name, our_name, some

SECTIONS = ("generator_lora",)
Patch = dict[str, str]  # down, up, alpha, diff: the tensors in the file that change one weight, by name
_TENSOR = re.compile(  # the outer groups after the stem are the names of a Patch
    r"^(?P<stem>.+?)\.(?:(?:(?P<down>lora_A|lora_down|lora\.down)|(?P<up>lora_B|lora_up|lora\.up))"
    r"(?:\.default)?\.weight|(?P<alpha>alpha)|(?P<diff>diff(?P<of_bias>_b)?))$"
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

    def change(self, target: str) -> Tensor:
        """What to add to a weight, fp32: strength * alpha / rank * up @ down, or strength * diff."""
        patch, strength = self.patches[target], self.choice.strength
        tensors = {kind: self.file.tensors[name] for kind, name in patch.items()}
        if "diff" in tensors:
            return strength * tensors["diff"].float()
        down, up = tensors["down"].float(), tensors["up"].float()
        rank = down.shape[0]
        alpha = self.choice.alpha if self.choice.alpha is not None else rank
        alpha = float(tensors.get("alpha", alpha))
        return strength * (alpha / rank) * (up.flatten(1) @ down.flatten(1))

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
    sizes, patches = lora.file.shapes, {}
    underscored = {foreign_name(n, s).replace(".", "_"): n for n in shapes for s in ("wan", "diffusers")}
    for name in sizes:
        if match := _TENSOR.match(name):
            target = _target(match["stem"], ".bias" if match["of_bias"] else ".weight", underscored)
            patches.setdefault(target, {})[match.lastgroup] = name
        else:
            lora.unknown.append(name)
    for target, patch in patches.items():
        if _makes({kind: sizes[name] for kind, name in patch.items()}, shapes.get(target)):
            lora.patches[target] = patch
        else:
            lora.elsewhere += patch.values()
    if not lora.patches:
        looks = family(sizes)
        hint = "it is made for another model" if looks == "a LoRA" else f"it looks like {looks}"
        raise ValueError(
            f"{choice.path} changes nothing in this model: none of its {len(sizes)} tensors fits; "
            f"{hint}; choose a LoRA for Wan 2.1 1.3B"
        )
    return lora


def _makes(sizes: Shapes, shape: tuple[int, ...] | None) -> bool:
    """Whether a patch, given by the shapes of its tensors, is a change of that shape."""
    if "diff" in sizes:
        return sizes["diff"] == shape
    down, up = sizes.get("down", ()), sizes.get("up", ())
    return min(len(down), len(up)) >= 2 and up[1] == down[0] and (up[0], down[1]) == shape


def _target(stem: str, leaf: str, underscored: dict[str, str]) -> str:
    if _UNDERSCORED.match(stem):
        return underscored.get(_UNDERSCORED.sub("", stem) + leaf.replace(".", "_"), stem + leaf)
    name = our_name(stem)
    return name if name.endswith("modulation") else name + leaf
