"""A video that is continued: from the exact state bit for bit, from latents alone without a seam."""

import errno
import json
import os
import random
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from longlive_core.cli import main
from longlive_core.config import (
    ModelConfig,
    Policy,
    SigmaConfig,
    TinyAutoencoderConfig,
    WanAutoencoderConfig,
    WindowConfig,
)
from longlive_core.geometry import FRAME_RATE, block_at, block_first_frame
from longlive_core.model.causal_wan import CausalWan
from longlive_core.output.video import read_settings
from longlive_core.pipeline import UNTIL_STOPPED, Pipeline, Request, load_pipeline
from longlive_core.resume import METADATA_KEY, Ending, VideoState
from longlive_core.rollout.noise import SeededNoise, shifted_sigmas
from longlive_core.rollout.rollout import Hook, Switch, rollout
from longlive_core.schedule.schedule import PromptSchedule
from longlive_core.steering.live import LiveControl
from longlive_core.vae.autoencoder import WanAutoencoder
from longlive_core.vae.streaming import StreamingDecoder
from longlive_core.vae.tiled import TiledDecoder
from longlive_core.vae.tiny import TinyAutoencoder

CONFIG = ModelConfig(
    dim=48, ffn_dim=96, num_heads=2, num_layers=2, text_dim=8, text_tokens=4, freq_dim=16, latent_channels=4
)
SIGMAS = shifted_sigmas(SigmaConfig())
PROMPTS = torch.randn(3, 1, 4, 8, generator=torch.Generator().manual_seed(5))
WINDOWS = [
    WindowConfig(),
    WindowConfig(endless=True),
    WindowConfig(3, 1, 7),
    WindowConfig(2, 2, 9, endless=True),
    WindowConfig(1, 0, 4),
    WindowConfig(3, 3, None),
    WindowConfig(has_small_cache=True),
]


class Opened(Hook):
    def on_open(self, scene):
        self.scene = scene


@pytest.fixture(scope="module")
def random_model(loud_model) -> CausalWan:
    return loud_model(CONFIG)


@pytest.mark.parametrize("window", WINDOWS, ids=str)
@pytest.mark.parametrize("policies", [(Policy.RECACHE, Policy.REFRESH), (Policy.KEEP, Policy.CUT)])
def test_a_rollout_continues_from_its_state(random_model, window, policies) -> None:
    """Switches before the seam, right at it and behind it; what a state holds is copied, not shared."""
    shape = (1, 4, window.block_latent_frames, 4, 6)
    switches = {0: Switch(PROMPTS[0]), 2: Switch(PROMPTS[1], policies[0])}
    switches |= {5: Switch(PROMPTS[2], policies[1]), 6: Switch(PROMPTS[0], policies[0])}

    def made(blocks, past=None, hook=None):
        noise = SeededNoise(0, shape)
        return list(rollout(random_model, switches.get, noise, SIGMAS, window, blocks, past, hook))

    whole, opened = made(range(7)), Opened()
    for first in (3, 5):
        made(range(first), hook=opened)
        state = opened.scene.state(PROMPTS[1])
        for _ in range(2):
            again = made(range(first, 7), state)
            assert all(torch.equal(a.latents, b.latents) for a, b in zip(whole[first:], again, strict=True))
            assert [a.opens_scene for a in again] == [a.opens_scene for a in whole[first:]]


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return load_pipeline("mini")


PLAIN = {}  # videos of a schedule and a length alone: several tests begin with the same one


def made(pipeline, text: str, seconds: float, **options):
    """Frames [F, H, W, 3], latents [1, C, T, H, W] and the state at the end of a video of Mini."""
    if options:
        return rendered(pipeline, text, seconds, **options)
    if (text, seconds) not in PLAIN:
        PLAIN[text, seconds] = rendered(pipeline, text, seconds)
    return PLAIN[text, seconds]


@torch.inference_mode()
def rendered(pipeline, text: str, seconds: float, live=None, **request):
    ending = Ending()
    asked = Request(PromptSchedule.parse(text), seconds, seed=3, **request)
    chunks = list(pipeline.run(pipeline.plan(asked), live=live, ending=ending))
    return (
        torch.cat([chunk.frames for chunk in chunks]),
        torch.cat([chunk.block.latents for chunk in chunks], dim=2),
        ending.state,
    )


def joined(*parts) -> tuple[torch.Tensor, torch.Tensor]:
    """The frames and the latents of videos that follow each other."""
    return torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts], dim=2)


def is_same(one, other) -> bool:
    return all(map(torch.equal, one[:2], other[:2]))


RED, BLUE, GREEN = "a red circle drifts right over navy", "it turns into a blue star", "it turns green"
PLUM = "cut: a red square rests over plum"
# schedule of the whole; where it is parted, in seconds; schedule of the second part, counted from there
PARTED = {
    "no switch": (f"0 {RED}", 3.0, f"0 {RED}"),
    "a switch at the seam": (f"0 {RED}\n3s => {BLUE}", 3.0, f"0 {BLUE}"),
    "a switch behind": (f"0 {RED}\n4s => {BLUE}", 3.0, f"0 {RED}\n1s => {BLUE}"),
    "the same prompt, with a policy": (f"0 {RED}\n3s => refresh: {RED}", 3.0, f"0 => refresh: {RED}"),
    "a blend across": (f"0 {RED}\n2s => blend 3s: {GREEN}", 3.0, f"0 {GREEN}"),
    "a blend cut short": (
        f"0 {RED}\n2s => blend 3s: {GREEN}\n3s => blend: {BLUE}",
        3.0,
        f"0 => blend: {BLUE}",
    ),
    "a cut before": (f"0 {RED}\n2s => {PLUM}", 3.5, "0 a red square rests over plum"),
    "a cut behind": (f"0 {RED}\n4s => {PLUM}", 2.5, f"0 {RED}\n1.5s => {PLUM}"),
    "a seed before and one behind": (
        f"0 {RED}\n2s => seed 7: {BLUE}\n4s => cut, seed 9: {GREEN}",
        *(3.0, f"0 {BLUE}\n1s => cut, seed 9: {GREEN}"),
    ),
    "a seed at the seam": (f"0 {RED}\n3s => seed 7: {BLUE}", 3.0, f"0 => seed 7: {BLUE}"),
    "one frame": (f"0 {RED}", 0.0625, f"0 {RED}"),
    "whole blocks": (f"0 {RED}", block_first_frame(4, 3) / FRAME_RATE, f"0 {RED}"),
}
SECONDS = 4.5


@pytest.mark.parametrize("case", PARTED)
def test_two_parts_are_the_whole(pipeline, case) -> None:
    whole, seam, second = PARTED[case]
    lines = whole.splitlines()
    first = "\n".join(line for line in lines if line[0] == "0" or float(line.split("s")[0]) < seam)
    one = made(pipeline, first, seam)
    assert len(one[0]) == round(seam * FRAME_RATE) == one[2].num_frames
    other = made(pipeline, second, SECONDS - seam, state=one[2])
    assert is_same(joined(one, other), made(pipeline, whole, SECONDS))


@pytest.mark.parametrize(
    "window",
    [
        WindowConfig(window_latent_frames=6),
        WindowConfig(3, 0, None),
        WindowConfig(3, 3, 12, True),
    ],
    ids=str,
)
def test_two_parts_are_the_whole_in_any_window(pipeline, window) -> None:
    one = made(pipeline, f"0 {RED}\n1s => {BLUE}", 2.8, window=window)
    other = made(pipeline, f"0 {BLUE}\n1s => refresh: {GREEN}", 1.6875, state=one[2])
    whole = made(pipeline, f"0 {RED}\n1s => {BLUE}\n3.8125s => refresh: {GREEN}", 4.5, window=window)
    assert is_same(joined(one, other), whole)


def test_many_parts_and_a_saved_state_are_the_whole_too(pipeline, tmp_path) -> None:
    parts, state = [], None
    for index, seconds in enumerate((1.5, 0.75, 1.0, 1.25)):
        parts.append(made(pipeline, f"0 {RED}", seconds, state=state))
        parts[-1][2].save(tmp_path / f"{index}.safetensors")
        state = VideoState.load(tmp_path / f"{index}.safetensors")
    assert is_same(joined(*parts), made(pipeline, f"0 {RED}", SECONDS))
    assert is_same(parts[1], made(pipeline, f"0 {RED}", 0.75, state=parts[0][2])), "a state serves twice"


@pytest.mark.parametrize("padding", range(0, 64, 8))
def test_a_saved_state_continues_alike_wherever_its_tensors_lie_in_the_file(pipeline, tmp_path, padding):
    """A longer field of metadata moves all tensors: by 0 to 56 bytes, the multiples of 8 within 64."""
    one = made(pipeline, f"0 {BLUE}", 3.0)
    one[2].save(tmp_path / "state")
    with safe_open(tmp_path / "state", "pt") as file:
        metadata = file.metadata() | {"padding": "x" * padding}
    save_file(load_file(tmp_path / "state"), tmp_path / "padded", metadata)
    state = VideoState.load(tmp_path / "padded")
    tensors = (*state.rollout.tensors.values(), *state.script.tensors.values(), *state.decoder.tensors)
    assert {tensor.data_ptr() % 64 for tensor in tensors} == {0}, "as tensors of torch itself lie"
    other = made(pipeline, f"0 {BLUE}", 1.5, state=state)
    assert is_same(joined(one, other), made(pipeline, f"0 {BLUE}", 4.5))


def test_another_take_of_a_cue_changes_it_and_nothing_before_it(pipeline) -> None:
    def take(seed: str) -> torch.Tensor:
        return made(pipeline, f"0 {RED}\n2s => {seed}{BLUE}\n4s => {GREEN}", SECONDS)[1]

    first = 3 * block_at(2.0, 3)
    usual, same, *takes = map(take, ("", "seed 3: ", "seed 7: ", "seed 8: "))
    assert torch.equal(usual, same), "the video's own"
    assert torch.equal(take("seed 3, recache: "), same)
    for one, other in combinations((usual, *takes), 2):
        assert torch.equal(one[:, :, :first], other[:, :, :first])
        blocks = zip(one[:, :, first:].split(3, 2), other[:, :, first:].split(3, 2), strict=True)
        assert not any(torch.equal(*pair) for pair in blocks), "with the cue after it"


def test_a_seed_in_effect_is_in_a_state_and_another_seed_of_the_video_ends_it(pipeline, tmp_path) -> None:
    large = 2**64 - 1
    one = made(pipeline, f"0 {RED}\n1s => seed {large}: {BLUE}\n2s => seed 8: {GREEN}", 1.9)
    one[2].save(tmp_path / "state")
    state = VideoState.load(tmp_path / "state")
    assert (state.seed, state.cue_seed) == (3, large)
    other = made(pipeline, f"0 {BLUE}", 1.1, state=state)
    assert is_same(joined(one, other), made(pipeline, f"0 {RED}\n1s => seed {large}: {BLUE}", 3.0))
    assert other[2].cue_seed == large
    again = Request(PromptSchedule.single(BLUE), 1.1, seed=4, state=state)
    assert pipeline.plan(again).cue_seeds == () and pipeline.plan(replace(again, seed=3)).cue_seeds
    assert made(pipeline, f"0 {RED}", 1.0)[2].cue_seed is None


def test_a_video_that_was_stopped_is_continued_too(pipeline) -> None:
    live = LiveControl()

    class StopInBlock2(Hook):
        def on_step(self, block, step, flow, clean):
            if block == 2:
                live.stop()

    asked, ending = Request(PromptSchedule.single(RED), UNTIL_STOPPED, seed=3), Ending()
    with torch.inference_mode():
        chunks = list(pipeline.run(pipeline.plan(asked), StopInBlock2(), live, ending))
    one = torch.cat([c.frames for c in chunks]), torch.cat([c.block.latents for c in chunks], dim=2)
    assert len(one[0]) == ending.state.num_frames == block_first_frame(3, 3)
    other = made(pipeline, f"0 {RED}", 1.0, state=ending.state, live=LiveControl())
    seconds = 1 + len(one[0]) / FRAME_RATE
    assert is_same(joined(one, other), made(pipeline, f"0 {RED}", seconds, positions="endless"))


def test_times_of_the_second_part_count_from_the_end_of_the_first(pipeline) -> None:
    """The first ends 3 frames into its last block: what is asked for at 0 begins 9 frames later."""
    state = made(pipeline, f"0 {RED}", 24 / FRAME_RATE)[2]
    schedule = PromptSchedule.parse(f"0 {BLUE}\n0.6s => {RED}")
    plan = pipeline.plan(Request(schedule, 2.0, state=state))
    assert [segment.seconds for segment in plan.timeline.segments] == [9 / FRAME_RATE, 21 / FRAME_RATE]
    latents = made(pipeline, f"0 {RED}", 24 / FRAME_RATE)[1]
    alone = pipeline.plan(Request(schedule, 2.0, past=latents, cut_off=9))
    assert alone.timeline.segments == plan.timeline.segments and alone.blocks == plan.blocks


@pytest.mark.parametrize("seconds", [24 / FRAME_RATE, 4.5])
def test_latents_alone_continue_smoothly_and_on_the_same_clock(pipeline, seconds) -> None:
    """The step across the seam is an ordinary one, as large as those around it in the video itself."""
    one = made(pipeline, f"0 {RED}", seconds)
    cut_off = len(one[2].cut_off)
    other = made(pipeline, f"0 {RED}", 2.0, past=one[1], cut_off=cut_off)
    assert len(other[0]) == 2 * FRAME_RATE
    held = one[2].cut_off.permute(0, 2, 3, 1)
    torch.testing.assert_close(other[0][:cut_off], held, atol=1e-5, rtol=0)
    frames = torch.cat((one[0], other[0]))
    steps = (frames[1:] - frames[:-1]).square().mean((1, 2, 3)).sqrt()
    seams = {len(one[0]) - 1, len(one[0]) + cut_off - 1}  # of the files, and of the blocks
    ordinary = steps[len(one[0]) - FRAME_RATE : len(one[0]) - 1]
    assert max(steps[seam] for seam in seams) < 1.5 * ordinary.max()


def test_a_hook_gets_every_event_also_where_the_state_is_kept(pipeline) -> None:
    events = []

    class Recording(Hook):
        def __getattribute__(self, name):
            return (
                (lambda *_: events.append(name)) if name.startswith("on_") else super().__getattribute__(name)
            )

    asked = Request(PromptSchedule.parse(f"0 {RED}\n0.5s => {BLUE}"), 1.0, seed=3)
    with torch.inference_mode():
        list(pipeline.run(pipeline.plan(asked), Recording()))
        alone, events = events, []
        list(pipeline.run(pipeline.plan(asked), Recording(), ending=Ending()))
    assert alone == events and {"on_open", "on_step", "on_commit", "on_recache"} <= set(events)


def test_a_first_cue_may_cut_also_where_there_are_latents_alone(pipeline) -> None:
    latents, ending = made(pipeline, f"0 {RED}", SECONDS)[1][:, :, :12], Ending()
    asked = Request(PromptSchedule.parse(f"0 {PLUM}"), 2.0, seed=3, past=latents)
    with torch.inference_mode():
        chunks = list(pipeline.run(pipeline.plan(asked), ending=ending))
    assert [chunk.block.opens_scene for chunk in chunks] == [True, False, False]
    assert [len(chunk.frames) for chunk in chunks] == [12, 12, 8] and ending.state.rollout.end == 9


DECODERS = {
    "wan": lambda: WanAutoencoder(WanAutoencoderConfig(width=8)),
    "tiles": lambda: TiledDecoder(WanAutoencoder(WanAutoencoderConfig(width=8)), 32, 16, past_device="cpu"),
    "tiny": lambda: TinyAutoencoder(TinyAutoencoderConfig(16, (16, 8, 8, 8), (1, 2, 1), 1, None)),
}


@torch.inference_mode()
@pytest.mark.parametrize("kind", DECODERS)
def test_any_decoder_continues_from_its_state(kind, tmp_path) -> None:
    torch.manual_seed(0)
    autoencoder, blocks = DECODERS[kind](), torch.randn(3, 1, 16, 3, 2, 6)
    whole = StreamingDecoder(autoencoder)
    for index, block in enumerate(blocks):
        if index == 2:
            state = whole.state()
        frames = whole.push(block, index == 0)
    save_file({str(index): tensor.contiguous() for index, tensor in enumerate(state.tensors)}, tmp_path / "x")
    read = load_file(tmp_path / "x")
    loaded = replace(state, tensors=tuple(read[str(index)] for index in range(len(read))))
    for kept in (state, state, loaded):
        other = StreamingDecoder(autoencoder)
        other.restore(kept)
        assert torch.equal(other.push(blocks[2]), frames)
    with pytest.raises(ValueError, match="decoded on cuda:77, which this machine does not have"):
        StreamingDecoder(autoencoder).restore(replace(state, device="cuda:77"))


@torch.inference_mode()
def test_too_little_memory_is_no_fault_of_a_state(monkeypatch) -> None:
    """In the words of cuDNN too; a pipeline then tries once more."""
    autoencoder = DECODERS["tiny"]()
    first = StreamingDecoder(autoencoder)
    first.push(torch.randn(1, 16, 3, 2, 6), True)
    second = StreamingDecoder(autoencoder)
    second.restore(first.state())

    def short_of_memory(latents, past) -> None:
        raise RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED")

    monkeypatch.setattr(autoencoder, "decode", short_of_memory)
    with pytest.raises(RuntimeError, match="ALLOC_FAILED"):
        second.push(torch.randn(1, 16, 3, 2, 6))


def test_what_does_not_fit_is_one_sentence(pipeline, tmp_path) -> None:
    state = made(pipeline, f"0 {RED}", 1.0)[2]
    asked = Request(PromptSchedule.single(RED), 1.0, state=state)
    bad = {
        r"model other \(now mini\)": replace(asked, state=replace(state, model="other")),
        r"size 64x64 \(now 128x64\)": replace(asked, width=128),
        r"with window latent frames 12 \(now 9\); leave": replace(asked, window=WindowConfig(3, 3, 9)),
        r"with endless False \(now True\); leave": replace(asked, positions="endless"),
        "make the continuation longer than 0.3125 s": replace(asked, seconds=0.3),
    }
    for sentence, request in bad.items():
        with pytest.raises(ValueError, match=sentence):
            pipeline.plan(request)
    half = replace(state, dtype="torch.bfloat16")
    with pytest.raises(ValueError, match=r"made with dtype torch\.bfloat16 \(now torch\.float32\)"):
        next(pipeline.run(pipeline.plan(replace(asked, state=half))))
    wrong = replace(state, decoder=replace(state.decoder, tensors=state.decoder.tensors[::-1]))
    with pytest.raises(ValueError, match="does not fit this VAE"):
        list(pipeline.run(pipeline.plan(replace(asked, state=wrong))))
    with pytest.raises(ValueError, match="12 frames cannot be cut off"):
        pipeline.plan(Request(asked.schedule, 1.0, past=torch.zeros(1, 16, 6, 8, 8), cut_off=12))
    (tmp_path / "x").write_bytes(b"nothing")
    for file in (tmp_path / "x", tmp_path / "none", tmp_path):
        with pytest.raises(ValueError, match="cannot be read as the state"):
            VideoState.load(file)
    state.save(tmp_path / "whole")
    with safe_open(tmp_path / "whole", "pt") as file:
        facts, names = file.metadata(), list(file.keys())
    for parts in names[:1], [*names, "other.part"]:
        save_file({part: torch.zeros(1) for part in parts}, tmp_path / "parts", facts)
        with pytest.raises(ValueError, match="parts of it are damaged"):
            VideoState.load(tmp_path / "parts")


def facts_of(path: Path) -> dict:
    with safe_open(path, "pt") as file:
        return json.loads(file.metadata()[METADATA_KEY])


@pytest.fixture(scope="module")
def saved(pipeline, tmp_path_factory) -> Path:
    """A state amid a blend, as a file."""
    path = tmp_path_factory.mktemp("states") / "state"
    made(pipeline, f"0 {RED}\n1.5s => blend 3s: {BLUE}", 3.0)[2].save(path)
    return path


def flipped(data: bytes, bit: int) -> bytes:
    return data[: bit // 8] + bytes([data[bit // 8] ^ 1 << bit % 8]) + data[bit // 8 + 1 :]


@pytest.mark.parametrize("part", ["header", "tensors"])
def test_a_flipped_bit_is_one_sentence_or_changes_nothing(saved, tmp_path, part) -> None:
    data, dice = saved.read_bytes(), random.Random(3)
    header = 8 + int.from_bytes(data[:8], "little")
    first, last = {"header": (0, header), "tensors": (header, len(data))}[part]
    facts, tensors = facts_of(saved), load_file(saved)
    for _ in range(120):
        (tmp_path / "x").write_bytes(flipped(data, dice.randrange(first * 8, last * 8)))
        try:
            VideoState.load(tmp_path / "x")
        except ValueError as error:
            assert str(error).startswith(f"{tmp_path / 'x'} ")
            continue
        found = load_file(tmp_path / "x")
        assert facts_of(tmp_path / "x") == facts and found.keys() == tensors.keys()
        assert all(torch.equal(found[name], tensors[name]) for name in tensors)


BAD_FACTS = {
    "format": [2, None],
    "model": [None, 5, "other"],
    "dtype": [None, 16, "torch.nothing"],
    "width": ["64", 63, 0, 128, 1e9],
    "height": [None, -64, 10**9],
    "num_frames": [-1, 10**18, True, "48"],
    "num_blocks": [27.5, None, 0, 10**9],
    "seed": [{}, "7", 1.5],
    "steps": ["4", 9, -1],
    "end": ["x", None, 10**12, 0, 10],
    "sink_position": [10**15, -1, "0"],
    "prompt": [5, None, []],
    "has_made": ["no", 0],
    "blend": [["a", "b"], [], [3, 1], [0.5, 4], [4, 4], [1, 10**9], None],
    "decoder": [[["tensor", "x"], "cpu"], [[], "cpu"], [["tensor"], "cpu"], [None, "cpu"], ["tensor"], 5],
    "window": [[], {"endless": 1}, {"has_small_cache": "no"}, {"block_latent_frames": "3"}, {"x": 1}],
}


@pytest.mark.parametrize(
    ("name", "value"), [(n, v) for n, values in BAD_FACTS.items() for v in values], ids=lambda v: repr(v)[:30]
)
def test_a_damaged_field_of_an_older_state_is_one_sentence(pipeline, saved, tmp_path, name, value) -> None:
    facts = facts_of(saved)
    if name == "window" and value and isinstance(value, dict):
        value = facts["window"] | value
    refuses(pipeline, tmp_path / "x", facts | {name: value}, load_file(saved))


@pytest.mark.parametrize("text", ["[]", "null", "[" * 100_000, "x", "", "7", '{"format": 1}', "{}"], ids=len)
def test_metadata_of_another_kind_is_one_sentence(saved, tmp_path, text) -> None:
    save_file(load_file(saved), tmp_path / "x", {METADATA_KEY: text})
    with pytest.raises(
        ValueError, match=f"^{tmp_path / 'x'} is the state of a video, but parts of it are damaged"
    ):
        VideoState.load(tmp_path / "x")


def refuses(pipeline, path: Path, facts: dict, tensors: dict) -> None:
    """A state without a check sum, as older ones are, is refused with a sentence before or at its use."""
    save_file(tensors, path, {METADATA_KEY: json.dumps(facts)})
    with pytest.raises(ValueError) as caught, torch.inference_mode():
        state = VideoState.load(path)
        next(pipeline.run(pipeline.plan(Request(PromptSchedule.single(RED), 1.0, state=state))))
    assert len(str(caught.value)) > 30 and "\n" not in str(caught.value)


LAYER = "rollout.layers.2.keys"
BAD_TENSORS = {
    **{f"no {name}": {name: None} for name in ("rollout.embeds", "rollout.recent", "script.embeds", LAYER)},
    **{f"no {name}": {name: None} for name in ("video.cut_off", "decoder.0", "script.target")},
    **{
        f"short {n}": {n: torch.zeros(3)}
        for n in ("rollout.embeds", "rollout.recent", "script.embeds", LAYER)
    },
    **{f"short {n}": {n: torch.zeros(3)} for n in ("video.cut_off", "decoder.0", "script.start")},
    **{f"nan {n}": {n: float("nan")} for n in ("rollout.embeds", "video.cut_off", "decoder.0", LAYER)},
    "ints": {LAYER: torch.int32},
    "more layers": {"rollout.layers.6.keys": torch.zeros(3)},
    "another part": {"other.part": torch.zeros(3)},
    "no number": {"decoder.x": torch.zeros(3)},
}


@pytest.mark.parametrize("case", BAD_TENSORS)
def test_a_damaged_tensor_of_an_older_state_is_one_sentence(pipeline, saved, tmp_path, case) -> None:
    tensors = {name: tensor.clone() for name, tensor in load_file(saved).items()}
    for name, change in BAD_TENSORS[case].items():
        if change is None:
            del tensors[name]
        elif isinstance(change, float):
            tensors[name].view(-1)[5] = change
        else:
            tensors[name] = change if isinstance(change, torch.Tensor) else tensors[name].to(change)
    refuses(pipeline, tmp_path / "x", facts_of(saved), tensors)


@pytest.mark.parametrize("window", [*WINDOWS[1:2], *WINDOWS[5:]], ids=str)
@pytest.mark.parametrize("text", [f"0 {RED}", f"0 {RED}\n1s => {PLUM}\n2s => blend 0.7s: {BLUE}"], ids=len)
def test_every_whole_state_is_accepted_with_and_without_its_check_sum(
    pipeline, tmp_path, window, text
) -> None:
    state = made(pipeline, text, 4.2, window=window)[2]
    state.save(tmp_path / "new")
    save_file(
        load_file(tmp_path / "new"), tmp_path / "old", {METADATA_KEY: json.dumps(facts_of(tmp_path / "new"))}
    )
    for name in ("new", "old"):
        loaded = VideoState.load(tmp_path / name)
        assert is_same(*(made(pipeline, f"0 {RED}", 0.5, state=one) for one in (state, loaded)))


FACTS = {
    *("format", "model", "dtype", "width", "height", "num_frames", "num_blocks", "seed", "steps"),
    *("window", "end", "sink_position", "prompt", "blend", "decoder"),
}


def test_a_state_says_what_it_was_made_with_and_older_ones_need_not(pipeline, tmp_path) -> None:
    state = made(pipeline, f"0 {RED}", 1.0, steps=3)[2]
    assert (state.seed, state.steps) == (3, 3)
    asked = Request(PromptSchedule.single(RED), 1.0, state=state)
    assert len(pipeline.plan(asked).sigmas) == 3 and len(pipeline.plan(replace(asked, steps=2)).sigmas) == 2
    state.save(tmp_path / "new")
    assert (loaded := VideoState.load(tmp_path / "new")).seed == 3 and loaded.steps == 3
    with safe_open(tmp_path / "new", "pt") as file:
        facts, names = json.loads(file.metadata()[METADATA_KEY]), list(file.keys())
    assert {name.split(".")[0] for name in names} == {"rollout", "script", "decoder", "video"}
    assert set(facts) == FACTS, "what earlier versions wrote"
    del facts["seed"], facts["steps"]
    save_file(load_file(tmp_path / "new"), tmp_path / "old", {METADATA_KEY: json.dumps(facts)})
    older = VideoState.load(tmp_path / "old")
    assert older.seed is None and len(pipeline.plan(replace(asked, state=older)).sigmas) == 4


def test_a_state_is_written_through_a_link_and_keeps_its_permissions(pipeline, tmp_path) -> None:
    state, place, link = made(pipeline, f"0 {RED}", 1.0)[2], tmp_path / "a", tmp_path / "link"
    place.touch(0o640)
    link.symlink_to(place)
    state.save(link)
    assert link.is_symlink() and place.stat().st_mode & 0o777 == 0o640
    assert VideoState.load(link).num_frames == 16


def test_an_earlier_state_stays_until_a_new_one_is_whole(pipeline, tmp_path, monkeypatch) -> None:
    state, place = made(pipeline, f"0 {RED}", 1.0)[2], tmp_path / "a.state"
    state.save(place)
    before = place.read_bytes()

    def fails(tensors, path, metadata) -> None:
        Path(path).write_bytes(b"half of it")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr("longlive_core.resume.save_file", fails)
    with pytest.raises(OSError, match="No space left"):
        state.save(place)
    assert place.read_bytes() == before and [*tmp_path.iterdir()] == [place]


def test_a_video_without_end_needs_someone_to_stop_it(pipeline) -> None:
    with pytest.raises(ValueError, match="needs a LiveControl"):
        next(pipeline.run(pipeline.plan(Request(PromptSchedule.single(RED), UNTIL_STOPPED))))


def frames_of(path) -> np.ndarray:
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def test_the_command_line_continues_a_video(tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    common = ["generate", "--prompt", RED, "--seed", "4"]
    assert main([*common, "--seconds", "1.3", "--window", "9", "--state", "a.state", "--out", "a.mp4"]) == 0
    more = ["--prompt", RED, "--resume", "a.state", "--on-switch", "cut", "--state", "b.state"]
    assert main(["generate", "--seconds", "1", *more, "--out", "b.mp4"]) == 0
    made = read_settings("b.mp4")
    assert (made["seed"], made["past_latent_frames"]) == (4, 6)
    assert Path("a.state").stat().st_mode == Path("a.mp4").stat().st_mode
    assert main([*common, "--seconds", "2.3", "--window", "9", "--out", "whole.mp4"]) == 0
    both = np.concatenate((frames_of("a.mp4"), frames_of("b.mp4")))
    whole = frames_of("whole.mp4")
    assert len(both) == len(whole) == 37 and VideoState.load("b.state").num_frames == 37
    assert np.abs(both.astype(int) - whole).mean() < 2, "but for what H.264 makes of them"
    joined = ["--resume", "a.state", "--with-source", "a.mp4", "--out", "joined.mp4"]
    assert main([*common, "--seconds", "1", *joined]) == 0
    assert (
        np.abs(frames_of("joined.mp4").astype(int) - both).mean() < 2 and len(frames_of("joined.mp4")) == 37
    )
    capsys.readouterr()
    for wrong, sentence in (
        (["--with-source", "a.mp4"], "give its --resume STATE too"),
        (
            ["--resume", "a.state", "--with-source", "whole.mp4"],
            "has 37 frames of 64x64, and --resume continues 21",
        ),
        (["--resume", "a.state", "--with-source", "a.state"], "a.state cannot be read as a video"),
        (["--resume", "a.mp4"], "cannot be read as the state"),
        (["--resume", "a.state", "--size", "128x64"], "size 64x64 (now 128x64)"),
        (["--resume", "a.state", "--state", "a.state"], "is the state itself"),
        (["--state", "c.mp4"], "are the same file"),
        (["--state", "/nowhere/a.state"], "cannot be written"),
    ):
        assert main([*common, "--seconds", "1", "--out", "c.mp4", *wrong]) == 2
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert sentence in error and not (tmp_path / "c.mp4").exists()
