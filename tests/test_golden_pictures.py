"""Given frames and transformed footage against tensors of the reference's own model (fp32, CPU).

`pytest tests/test_golden_pictures.py --golden-dir DIR` runs every file of another folder: sizes, windows,
steps, how many frames are given and where footage begins come from each file. Noise and weights that a
folder lacks regenerate from its seed.
"""

import json
import math
import re
from pathlib import Path

import torch
from torch import Tensor

from longlive_core.config import WindowConfig
from longlive_core.model.causal_wan import CausalWan
from longlive_core.rollout.rollout import Hook, Noise, SourceNoise, Switch, rollout
from tests.test_golden import PATCH, Recorded, close, golden_model, in_time_order, metadata

KV_END = re.compile(r"kv\.end\.([kv])\.layer_?(last|\d+)\.(slotmean|full)")


class Picture(Recorded):
    """One scenario: some frames are given, or every block begins from footage, or both."""

    def __init__(self, file: Path):
        super().__init__(file)
        self.start = int(self.meta["start_step"])
        self.given = self.golden.get("given")
        self.num_given = 0 if self.given is None else self.given.shape[1]
        self.first = self.num_given // self.block

    def model(self) -> CausalWan:
        return golden_model(self.folder, self.meta.get("lora", "0"))

    def window(self) -> WindowConfig:
        window, is_endless = int(self.meta["local_attn_size"]), self.meta.get("infinity") == "true"
        sizes = self.block, int(self.meta["sink_size"]), None if window < 0 else window
        return WindowConfig(*sizes, endless=is_endless)

    def noise(self, block: int, step: int) -> Tensor:
        """A block that begins at a later step draws what it draws there without footage."""
        return super().noise(block, step + self.start if step else 0)

    def script(self, block: int) -> Switch | None:
        return Switch(self.inputs[f"{self.prefix}prompt_embeds.0"]) if block == self.first else None

    def source(self, block: int, opens_scene: bool) -> Tensor:
        return self.rows("source", block)

    def rows(self, name: str, block: int) -> Tensor:
        """Latents [B, C, T, H, W] of a block among those of a name."""
        return self.golden[name][:, block * self.block : (block + 1) * self.block].transpose(1, 2)

    def begin(self) -> SourceNoise | Noise:
        """What blocks begin from."""
        is_footage = "source" in self.golden
        return SourceNoise(self.noise, self.source, self.sigmas()[self.start]) if is_footage else self.noise

    def latents(self, hook: Hook) -> Tensor:
        """All latents [B, T, C, H, W], those of given whole blocks first."""
        past = None if self.given is None else self.given.transpose(1, 2)
        made = rollout(
            self.model(),
            self.script,
            self.begin(),
            self.sigmas(),
            self.window(),
            range(self.first, self.frames // self.block),
            past,
            hook,
        )
        whole = [] if past is None else [past[:, :, : self.first * self.block]]
        return torch.cat([*whole, *(block.latents for block in made)], dim=2).transpose(1, 2)


class PictureRecorder(Hook):
    """Compares the first flow, of the frames that are made, and what the cache holds at the end."""

    def __init__(self, recorded: Picture):
        self.recorded, self.golden = recorded, recorded.golden
        self.left = {name for name in self.golden if name.startswith(("flow.", "kv."))}

    def on_step(self, block, step, flow, clean):
        if (block, step) == (self.recorded.first, 0) and "flow.first" in self.golden:
            made = flow[:, :, self.recorded.num_given % self.recorded.block :].transpose(1, 2)
            close(made, self.golden["flow.first"], "flow.first")
            self.left.remove("flow.first")

    def on_commit(self, block, cache):
        if (block + 1) * self.recorded.block < self.recorded.frames:
            return
        grid = tuple(n // PATCH for n in self.golden["latents"].shape[-2:])
        for name in sorted(name for name in self.left if KV_END.fullmatch(name)):
            kind, layer, form = KV_END.fullmatch(name).groups()
            ours = in_time_order(cache, len(cache.layers) - 1 if layer == "last" else int(layer), kind, grid)
            ours = ours if form == "full" else ours.unflatten(1, (-1, math.prod(grid))).mean(2)
            close(ours, self.golden[name], name)
            self.left.remove(name)


def test_scenario(picture_golden: Path) -> None:
    recorded = Picture(picture_golden)
    recorder = PictureRecorder(recorded)
    close(recorded.latents(recorder), recorded.golden["latents"], "latents")
    assert not recorder.left, "every stored flow, K and V was compared"
    assert recorded.num_given == int(recorded.meta["given"])
    steps = len(json.loads(recorded.meta["denoising_step_list"]))
    assert recorded.start < steps and metadata(picture_golden)["context_noise"] == "0"
