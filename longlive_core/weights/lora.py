"""LoRA files in every naming -> what they add to our weights; in fp32, before any cast.

PEFT (the reference's own: lora_A, lora_B, no alpha), kohya and ComfyUI (lora_down, lora_up, alpha, diff,
diff_b; dotted or underscored), diffusers. Merged, never run beside the weights: inference sees plain linears.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from .families import Shapes, family
from .files import TensorFile, open_tensors
from .names import foreign_name, our_name

SECTIONS = ("generator_lora",)
_TENSOR = re.compile(
    r"^(?P<target>.+?)\.(?:(?P<down>lora_A|lora_down|lora\.down)|(?P<up>lora_B|lora_up|lora\.up))"
    r"(?:\.default)?\.weight$|^(?P<alone>.+?)\.(?P<kind>alpha|diff|diff_b)$"
)
_UNDERSCORED = re.compile(r"^lora_(?:unet|transformer)__?")
_SHOWN = 5


class LoraChoice(NamedTuple):
    """A LoRA file and how to apply it; `alpha` counts where the file stores none (None: alpha = rank)."""

    path: Path
    strength: float = 1.0
    alpha: float | None = None


@dataclass
class Patch:
    """Names of the tensors in the file that change one weight: a pair and its alpha, or a difference."""

    down: str | None = None
    up: str | None = None
    alpha: str | None = None
    diff: str | None = None

    def names(self) -> list[str]:
        return [name for name in (self.down, self.up, self.alpha, self.diff) if name]


@dataclass
class Lora:
    """One opened LoRA: which of our weights it changes, and which of its tensors found no place."""

    choice: LoraChoice
    file: TensorFile
    patches: dict[str, Patch]
    elsewhere: list[str] = field(default_factory=list)  # for weights that this model lacks
    unknown: list[str] = field(default_factory=list)  # of a kind that is not understood here

    def read(self, targets: Iterable[str]) -> dict[str, Tensor]:
        """The file's tensors that change these weights."""
        return self.file.read([n for t in targets if t in self.patches for n in self.patches[t].names()])

    def change(self, target: str, tensors: dict[str, Tensor]) -> Tensor:
        """What to add to a weight, fp32: strength * alpha / rank * up @ down, or strength * diff."""
        patch, strength = self.patches[target], self.choice.strength
        if patch.diff:
            return strength * tensors[patch.diff].float()
        down, up = tensors[patch.down].float(), tensors[patch.up].float()
        rank = down.shape[0]
        alpha = self.choice.alpha if self.choice.alpha is not None else rank
        if patch.alpha:
            alpha = float(tensors[patch.alpha])
        return strength * (alpha / rank) * (up.flatten(1) @ down.flatten(1))

    def report(self) -> str:
        """Every tensor accounted for, in one line."""
        used = sum(len(patch.names()) for patch in self.patches.values())
        parts = [f"{self.choice.path.name}: {used} tensors change {len(self.patches)} weights"]
        for names, what in ((self.elsewhere, "are for another model"), (self.unknown, "are not understood")):
            if names:
                shown = ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
                parts.append(f"{len(names)} {what} ({shown})")
        return "; ".join(parts)


def open_lora(choice: LoraChoice, shapes: Shapes) -> Lora:
    """Match a LoRA file with a model of these shapes (our names).

    Raises ValueError when the file is no LoRA, or changes nothing in this model.
    """
    file = open_tensors(choice.path, SECTIONS)
    spelled = {foreign_name(n, s).replace(".", "_"): n for n in shapes for s in ("wan", "diffusers")}
    lora = Lora(choice, file, {})
    for name in file.shapes:
        if not (match := _TENSOR.match(name)):
            lora.unknown.append(name)
            continue
        target = _target(match, spelled)
        patch = lora.patches.setdefault(target, Patch())
        setattr(patch, "diff" if match["kind"] in ("diff", "diff_b") else _role(match), name)
    _keep_what_fits(lora, shapes)
    if not lora.patches:
        looks = family(file.shapes)
        hint = "it is made for another model" if looks == "a LoRA" else f"it looks like {looks}"
        raise ValueError(
            f"{choice.path} changes nothing in this model: none of its {len(file.shapes)} tensors fits; "
            f"{hint}; choose a LoRA for Wan 2.1 1.3B"
        )
    return lora


def _role(match: re.Match) -> str:
    return "down" if match["down"] else "up" if match["up"] else "alpha"


def _target(match: re.Match, spelled: dict[str, str]) -> str:
    """The weight of ours that a LoRA tensor is about."""
    leaf = ".bias" if match["kind"] == "diff_b" else ".weight"
    stem = match["target"] or match["alone"]
    if _UNDERSCORED.match(stem):
        return spelled.get(_UNDERSCORED.sub("", stem) + leaf.replace(".", "_"), stem + leaf)
    name = our_name(stem)
    return name if name.endswith("modulation") else name + leaf


def _keep_what_fits(lora: Lora, shapes: Shapes) -> None:
    """Move everything that has no place in the model to `elsewhere`."""
    sizes = lora.file.shapes
    for target, patch in list(lora.patches.items()):
        if patch.diff:
            fits = shapes.get(target) == sizes[patch.diff]
        else:
            is_whole = patch.down and patch.up and target in shapes and len(shapes[target]) == 2
            fits = is_whole and _product(sizes[patch.up], sizes[patch.down]) == shapes[target]
        if not fits:
            lora.elsewhere += lora.patches.pop(target).names()


def _product(up: tuple[int, ...], down: tuple[int, ...]) -> tuple[int, int] | None:
    """Shape of up @ down, None if there is none."""
    return (up[0], down[1]) if len(up) >= 2 and len(down) >= 2 and up[1] == down[0] else None
