"""Streaming long tuning against the reference's own training loop, in its clean variant (fp32, CPU).

`pytest tests/test_golden_tuning.py --golden-dir DIR` runs every clean scenario of another folder: sizes,
sequences, ranks, exit steps, noise levels and rates come from each file; weights, prompts and noise
regenerate from its seed.

`second_reading` is not of the reference: a second implementation, written from a description of the method,
made it for what the others lack: two sequences side by side, chunks of several lengths, two of them a step, a
switch inside a chunk, three denoising steps.
"""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from longlive_core.config import SigmaConfig, WanAutoencoderConfig, WindowConfig
from longlive_core.vae.autoencoder import WanAutoencoder
from longlive_core.weights.vae_files import build_wan_autoencoder, from_reference
from longlive_training.distil import stream as streams
from longlive_training.distil.adapters import DOWN, PEFT, REFERENCE
from longlive_training.distil.loop import Models, Trained, Tuning
from longlive_training.distil.recipe import RECIPES, Recipe
from tests.test_golden import in_time_order, metadata, model_config, seeded, seeded_model

ROOT = Path(__file__).parent
CLOSE, RELATIVE = 1e-4, 1e-3
GAINS = {True: 1.7, False: 0.5}  # of lora_A, lora_B
GRADIENT = re.compile(r"i(\d+)\.(generator|critic)\.(?:grad\.(.+)|(grad_norm))")
CLIP = re.compile(r"c(\d+)\.clip")
NO_SWITCH = 10**6
ROLES = {"generator": "student", "critic": "critic"}


class Golden:
    """One scenario: what is in its file, and the models, prompts and recipe that it was made with."""

    def __init__(self, file: Path):
        self.tensors = load_file(file)
        self.meta = {name: _read(text) for name, text in metadata(file).items()}
        self.set, self.spec, self.events = (self.meta[name] for name in ("set", "spec", "events"))
        self.seed = self.set["seed"]
        numbers = (CLIP.fullmatch(name) for name in self.tensors)
        self.judged = sorted(int(number[1]) for number in numbers if number)
        self.batch, self.clip, *self.size = self.tensors[f"c{self.judged[0]}.clip"].shape
        self.chunks = [event for event in self.events if event["event"] == "chunk"]
        self.sequences = [event for event in self.events if event["event"] == "batch"]
        self.text = self.set["text"]["text_len"], self.set["text"]["text_dim"]

    def recipe(self) -> Recipe:
        """The official numbers, but for those of the file."""
        meta, spec, is_short = self.meta, self.spec, self.spec["stage"] == "init"
        window = WindowConfig(meta["block"], meta["sink"], meta["window"])
        judged = [self.chunks[index] for index in self.judged if self.chunks]
        at_once = [e for e in judged if (e["iteration"], e["trains"]) == (0, "critic")]
        later = [event["new"] for event in self.chunks if event["start"]]
        least = min([spec.get("min_new", 18), self.clip - meta["block"], *later])
        lora = {} if is_short else {"rank": self.set["rank"], "alpha": float(self.set["alpha"])}
        steps = meta.get("denoising_step_list") or spec.get("denoising_step_list") or (1000, 750, 500, 250)
        return replace(
            RECIPES["init" if is_short else "long"],
            **lora,
            clip=self.clip,
            min_new=least,
            longest=self.clip if is_short else spec["max_length"],
            lr=meta["lr"],
            critic_lr=meta["lr_critic"],
            beta2=meta["betas"][1],
            weight_decay=meta["weight_decay"],
            guidance=meta["guidance"],
            ratio=spec.get("ratio", 5),
            streams=self.batch,
            accumulate=max(len(at_once), 1),
            window=window,
            sigmas=SigmaConfig(tuple(steps), meta["shift"]),
        )

    def model(self, name: str, offset: int):
        sizes = self.set.get(name, self.set["student"]) | self.set["text"]
        return seeded_model(model_config(json.dumps(sizes)), self.seed + offset)

    def autoencoder(self) -> WanAutoencoder:
        """The reference's names are those of another golden; shapes are those of this one's width."""
        names = json.loads(metadata(ROOT / "golden" / "vae_golden.safetensors")["weights"])
        with torch.device("meta"):
            sizes = WanAutoencoder(WanAutoencoderConfig(width=self.set["vae"]["dim"])).state_dict()
        ours = from_reference({name: name for name in names})
        shapes = {name: tuple(sizes[our].shape) for our, name in ours.items()}
        state = {n: seeded.vae_param(self.seed + 4, n, shape) for n, shape in shapes.items()}
        return build_wan_autoencoder(state)

    def prompt(self, name: str) -> Tensor:
        """`p0` or `negative` -> embeddings [tokens, dim], padding zero."""
        index = int(name[1:]) if name != "negative" else None
        embeds = seeded.normal(self.seed, f"prompt.{name if index is None else index}", self.text)
        if index is not None:
            embeds[self.set["prompts_lens"][index] :] = 0
        return embeds

    def prompts(self, sequences: list[int]) -> tuple[Tensor, Tensor]:
        event = self.sequences[sequences[0]]
        return tuple(
            torch.stack([self.prompt(name) for name in event[key]]) for key in ("prompts", "switch_prompts")
        )

    def tuning(self) -> Tuning:
        models = Models(
            self.model("student", 1),
            self.model("critic", 3),
            self.model("teacher", 2),
            self.autoencoder(),
            self.prompt("negative")[None],
        )
        tuning = Tuning(models, self.recipe(), GoldenDraws(self), self.prompts)
        for trained, offset in ((tuning.student, 11), (tuning.critic, 12)):
            self.fill(trained, offset)
        return tuning

    def fill(self, trained: Trained, offset: int) -> None:
        """The seeded LoRA, where there is one."""
        for name, weight in trained.weights.items():
            if name.startswith(PEFT):
                shape = tuple(weight.shape)
                start = seeded.uniform(self.seed + offset, name, shape) * GAINS[name.endswith(DOWN)]
                weight.data.copy_(start / shape[1] ** 0.5)


def _read(text: str):
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


class GoldenDraws:
    """What the reference drew, as a tuning run asks for it."""

    def __init__(self, golden: Golden):
        self._golden, self._block = golden, golden.meta["block"]

    def exit(self, chunk: int) -> int:
        return self._golden.spec["exits"][chunk]

    def new_frames(self, chunk: int, choices: range) -> int:
        new = self._golden.chunks[chunk]["new"]
        assert new in choices
        return new

    def switch(self, sequence: int) -> int:
        chunks = self._golden.chunks
        starts = [index for index, event in enumerate(chunks) if event["start"] == 0]
        found = chunks[starts[sequence]]["switch"] if chunks else None
        return NO_SWITCH if found is None else found

    def pairs(self, sequence: int) -> list[int]:
        return [sequence]

    def noise(self, chunk: int, block: int, step: int) -> Tensor:
        if step:
            name, frames = f"c{chunk}.renoise.b{block}.s{step - 1}", self._golden.batch * self._block
            drawn = self._normal(name, frames).unflatten(0, (self._golden.batch, self._block))
        else:
            counts = [event["new"] for event in self._golden.chunks]
            count = counts[chunk] if counts else self._golden.clip
            frames = slice(block * self._block, (block + 1) * self._block)
            drawn = self._normal(f"c{chunk}.noise", self._golden.batch, count)[:, frames]
        return drawn.transpose(1, 2).contiguous()

    def level(self, chunk: int) -> Tensor:
        drawn = torch.tensor(self._golden.spec["u"][chunk])
        return drawn.expand(self._golden.batch) if drawn.ndim == 0 else drawn

    def clip_noise(self, chunk: int) -> Tensor:
        shape = self._golden.batch, self._golden.clip
        return self._normal(f"c{chunk}.score_noise", *shape).transpose(1, 2).contiguous()

    def _normal(self, name: str, *shape: int) -> Tensor:
        return seeded.normal(self._golden.seed, name, (*shape, *self._golden.size))


def near(ours: Tensor, golden: Tensor, what: str, relative: bool = False) -> None:
    """Within 1e-4, or within 1e-3 of the golden's largest value."""
    error = (ours.reshape(golden.shape).double() - golden.double()).abs().max()
    limit = RELATIVE * float(golden.abs().max()) if relative else CLOSE
    assert error <= limit, f"{what}: {float(error):.3g}, allowed {limit:.3g}"


def check_clip(golden: Golden, chunk: int, name: str, judged, checked: set[str]) -> None:
    """What was judged, and what came of it."""
    in_time = {"clip": judged.clip.transpose(1, 2), "score_t": judged.timesteps / 1000}
    is_student = name == "student"
    outcome, loss = ("dmd_grad", "dmd_loss") if is_student else ("critic_flow", "critic_loss")
    in_time |= {outcome: judged.outcome.transpose(1, 2), loss: judged.loss}
    if f"c{chunk}.supervised" in golden.tensors:
        in_time["supervised"] = judged.supervised.expand(golden.batch, -1)
    for part, ours in in_time.items():
        theirs = golden.tensors[f"c{chunk}.{part}"]
        if part == "score_t":
            theirs = theirs / 1000
            ours = ours.repeat_interleave(theirs.numel() // golden.batch)
        near(ours, theirs, f"c{chunk}.{part}", relative=part == outcome)
        checked.add(f"c{chunk}.{part}")


def of_weight(trained: Trained, name: str, is_gradient: bool) -> Tensor:
    """A weight or its gradient by the golden's name."""
    weight = trained.weights.get(PEFT + name, trained.weights.get(REFERENCE + name))
    return weight.grad if is_gradient else weight.detach()


def test_scenario(tuning_golden: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every tensor of a scenario: clips, gradients, losses, the cache after a switch, weights at the end."""
    golden, checked = Golden(tuning_golden), set()
    tuning, left = golden.tuning(), [*golden.judged]
    stream, grid = tuning.stream, [side // 2 for side in golden.size[1:]]

    def recached(scene, text, policy) -> bool:
        result = recache(scene, text, policy)
        number = min(stream.chunk, left[0])  # in the backward pass the stream is one further
        for name in (n for n in golden.tensors if n.startswith(f"recache.c{number}.")):
            layer, kind = int(name.split(".")[2].removeprefix("layer")), name[-1]
            near(in_time_order(scene.cache, layer, kind, grid), golden.tensors[name], name)
            checked.add(name)
        return result

    def begun(sequence: int) -> None:
        begin(sequence)
        if stream.chunk not in golden.judged:  # the reference's `train_first_chunk: false`
            stream.next_chunk()

    recache, begin = streams.recache, stream.begin
    monkeypatch.setattr(streams, "recache", recached)
    monkeypatch.setattr(stream, "begin", begun)
    for iteration in range(golden.spec["iters"]):
        figures = tuning.iteration(
            lambda name, judged: check_clip(golden, left.pop(0), name, judged, checked)
        )
        for name, theirs in golden.tensors.items():
            if (match := GRADIENT.fullmatch(name)) and int(match[1]) == iteration:
                trained = getattr(tuning, ROLES[match[2]])
                if match[4]:
                    ours = torch.tensor(figures[f"{trained.name}_norm"])
                else:
                    ours = of_weight(trained, match[3], is_gradient=True)
                near(ours, theirs, name, relative=True)
                checked.add(name)
    for name in (name for name in golden.tensors if name.startswith("final.")):
        _, role, weight = name.split(".", 2)
        near(of_weight(getattr(tuning, ROLES[role]), weight, False), golden.tensors[name], name, True)
        checked.add(name)
    assert checked == golden.tensors.keys()
