"""Scenes that begin with an image: in a schedule, sent live, from the command; Mini, end to end."""

import hashlib
import weakref
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils._pytree import tree_leaves

from longlive_core.bench.random_model import random_pipeline
from longlive_core.cli import main
from longlive_core.config import PRESETS
from longlive_core.footage import Footage, ImageFolder
from longlive_core.geometry import FRAME_RATE, num_frames
from longlive_core.output.video import read_settings
from longlive_core.pipeline import NO_ENCODER, Pipeline, Request, load_pipeline
from longlive_core.resume import Ending, Restart, Snapshots, VideoState
from longlive_core.schedule.cue import ScheduleError
from longlive_core.schedule.schedule import PromptSchedule
from longlive_core.steering.live import LiveControl
from tests.test_live import wait_for
from tests.test_two_sets import TINY

RED, GREEN = "a red circle drifts right over navy", "a green star drifts left over plum"
SCENE = f"0 {RED}\n0.5s => cut, image star.png: {GREEN}"  # at block 1
SECONDS, LONG = 1.3, 1.6  # two blocks, three


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return load_pipeline("mini")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("images")
    image = torch.rand(5, 6, 3, generator=torch.Generator().manual_seed(2)) * 255
    image = Image.fromarray(image.byte().numpy()).resize((90, 70))
    image.save(path / "star.png")
    (path / "sub").mkdir()
    image.rotate(90).save(path / "sub" / "a b.webp")
    image.save(path / "moving.gif", save_all=True, append_images=[image.rotate(90)])
    (path / "text.png").write_text("no image")
    return path


@pytest.fixture(scope="module")
def whole(pipeline, folder) -> tuple[Tensor, Tensor, VideoState]:
    return made(pipeline, asked(folder, SCENE, LONG))


def asked(folder: Path, text: str, seconds: float = SECONDS, **more) -> Request:
    return Request(PromptSchedule.parse(text), seconds, images=ImageFolder(folder), **more)


def made(pipeline: Pipeline, request: Request, live: LiveControl | None = None, on_block=None):
    """Frames, latents, state at the end."""
    ending, chunks = Ending(), []
    for chunk in pipeline.run(pipeline.plan(request), live=live, ending=ending):
        chunks.append(chunk)
        if on_block:
            on_block(chunk.block.index)
    frames = torch.cat([chunk.frames for chunk in chunks])
    return frames, torch.cat([chunk.block.latents for chunk in chunks], dim=2), ending.state


def encoded(pipeline: Pipeline, path: Path) -> Tensor:
    return pipeline.encode(next(Footage(path).frames(64, 64)))


@pytest.mark.parametrize("commits_past", [False, True])
def test_an_image_at_the_beginning_is_a_start_image(pipeline, folder, commits_past) -> None:
    """For SGF it is held to one block, which is committed."""
    one = replace(pipeline, preset=replace(pipeline.preset, commits_past=commits_past))
    given = encoded(one, folder / "star.png")
    assert given.shape[2] == (3 if commits_past else 1)
    begins = made(one, asked(folder, f"0 {RED}", given=given))
    named = made(one, asked(folder, f"0 image star.png: {RED}"))
    assert torch.equal(begins[0], named[0]) and torch.equal(begins[1], named[1])


@pytest.fixture(scope="module")
def small(pipeline):
    """A small random pipeline of any preset, which encodes as Mini does."""

    def make(name: str) -> Pipeline:
        preset = PRESETS[name]
        config = replace(TINY, latent_channels=preset.model.latent_channels)
        preset = replace(preset, model=config, width=32, height=32)
        made = random_pipeline(torch.device("cpu"), torch.float32, preset=preset)
        return replace(made, encoder=pipeline.encoder)

    return make


NAMED, LATER = "0 image star.png: a", "\n0.75s => b\n1s => recache: c"


@pytest.mark.parametrize("name", PRESETS)
def test_an_image_at_the_beginning_is_a_start_image_for_every_model(name, small, folder) -> None:
    one = small(name)
    given = one.encode(ImageFolder(folder).frames("star.png", 32, 32))
    begins = made(one, asked(folder, f"0 a{LATER}", given=given))
    named = made(one, asked(folder, NAMED + LATER))
    assert torch.equal(begins[0], named[0]) and torch.equal(begins[1], named[1])


@pytest.mark.parametrize("name", PRESETS)
def test_a_video_goes_on_right_after_its_image(name, small, folder, tmp_path) -> None:
    """Bit for bit, as another video, from a snapshot, and from recorded latents."""
    one, states = small(name), []
    length = one.preset.window.block_latent_frames
    plan = one.plan(asked(folder, NAMED + LATER))
    snapshots = Snapshots(lambda block: not block, states.append)
    whole = [chunk.block.latents for chunk in one.run(plan, snapshots=snapshots)]
    for restart in (Restart(state=states[0]), Restart({0: whole[0]}.get)):
        rest = [block.latents for block in one.blocks(plan, restart=restart)]
        assert all(map(torch.equal, reversed(rest), reversed(whole)))
    seam = num_frames(length) / FRAME_RATE
    made(one, asked(folder, NAMED, seam))[2].save(tmp_path / "state")
    later = f"0 a\n{0.75 - seam}s => b\n{1 - seam}s => recache: c"
    request = asked(folder, later, SECONDS - seam, state=VideoState.load(tmp_path / "state"))
    assert torch.equal(made(one, request)[1], torch.cat(whole[1:], dim=2))


def test_a_scene_begins_with_it_and_nothing_before_it_knows(pipeline, folder, whole) -> None:
    """Of several cues with the same file it is encoded once."""
    counted = []

    class Counting:
        def __getattr__(self, name):
            counted.append(name)
            return getattr(pipeline.encoder, name)

    text = f"0 image sub/a b.webp: {RED}\n0.5s => image star.png: {GREEN}\n1s => image sub/a b.webp: {RED}"
    frames, latents, _ = made(replace(pipeline, encoder=Counting()), asked(folder, text, 2.0))
    plain = made(pipeline, asked(folder, f"0 image sub/a b.webp: {RED}", 0.5))
    assert torch.equal(latents[:, :, :3], plain[1]) and torch.equal(frames[:8], plain[0])
    assert torch.equal(latents[:, :, 3:6], whole[1][:, :, 3:6]), "nothing of what was before"
    assert torch.equal(latents[:, :, 3:4], encoded(pipeline, folder / "star.png"))
    assert torch.equal(latents[:, :, 6:7], latents[:, :, :1]) and counted == ["encode"] * 2
    shown = next(Footage(folder / "star.png").frames(64, 64))[0]
    assert all((frame - shown).abs().mean() < 0.1 for frame in frames[9:13]), "it is shown at once"


@pytest.mark.parametrize("seconds", [0.5, 0.75])
def test_two_parts_are_the_whole(pipeline, folder, tmp_path, whole, seconds) -> None:
    """Parted before the image, and in its block; a part may begin with it."""
    one = made(pipeline, asked(folder, SCENE, seconds))
    one[2].save(tmp_path / "state")
    rest = f"0.0625s => image star.png: {GREEN}" if seconds == 0.5 else ""
    text = f"0 {RED}\n{rest}" if rest else f"0 {GREEN}"
    state = VideoState.load(tmp_path / "state")
    other = made(pipeline, asked(folder, text, LONG - seconds, state=state))
    assert torch.equal(torch.cat((one[0], other[0])), whole[0])


def test_what_was_sent_live_is_frozen_with_its_image(pipeline, folder) -> None:
    live = LiveControl()

    def send(block: int) -> None:
        if block == 0:
            lost = live.send(RED, image="lost.png")
            wait_for(lambda: lost.state == "failed")
            assert "the image lost.png is not in the folder" in lost.error
            ticket = live.send(GREEN, image="star.png")
            wait_for(lambda: ticket.state == "ready")
            assert live.snapshot()["pending"]["image"] == "star.png"

    frames, latents, _ = made(pipeline, asked(folder, f"0 {RED}"), live, send)
    frozen = live.schedule().to_text()
    assert frozen.splitlines()[1].endswith(f"=> cut, image star.png: {GREEN}")
    assert live.snapshot()["cues"][1] | {"policy": "cut", "image": "star.png"} == live.snapshot()["cues"][1]
    again = made(pipeline, asked(folder, frozen))
    assert torch.equal(frames, again[0]) and torch.equal(latents, again[1])
    with pytest.raises(ScheduleError, match="came with keep"):
        LiveControl().send(RED, "keep", image="star.png")


def test_the_past_of_the_decoder_is_freed_before_an_image_that_was_sent_is_encoded(pipeline, folder) -> None:
    past, alive = [], []

    def decode(latents: Tensor, before: list | None = None) -> tuple[Tensor, list]:
        frames, news = pipeline.decoder.decode(latents, before)
        past[:] = [weakref.ref(tensor) for tensor in tree_leaves(news)]
        return frames, news

    def encode(frames: Tensor) -> Tensor:
        alive.append([tensor() is not None for tensor in past])
        return pipeline.encoder.encode(frames)

    def send(block: int) -> None:
        if block == 1:
            ticket = live.send(GREEN, image="star.png")
            wait_for(lambda: ticket.state == "ready")

    parts = {"decoder": SimpleNamespace(decode=decode), "encoder": SimpleNamespace(encode=encode)}
    live = LiveControl()
    made(replace(pipeline, **parts), asked(folder, f"0 {RED}", LONG), live, send)
    assert live.snapshot()["cues"][1]["image"] == "star.png" and len(past) > 1
    assert alive == [[False] * len(past)]


def test_settings_name_the_image(pipeline, folder) -> None:
    settings = pipeline.plan(asked(folder, SCENE)).settings()
    digest = hashlib.sha256((folder / "star.png").read_bytes()).hexdigest()
    assert settings["made_from"]["images"] == {
        "star.png": {"file": "star.png", "sha256": digest, "start": 0.0, "fit": "crop"}
    }
    assert "made_from" not in pipeline.plan(asked(folder, f"0 {RED}\n9s => image lost.png: {RED}")).settings()


def test_what_is_no_image_is_one_sentence_before_anything_is_made(pipeline, folder) -> None:
    bad = {
        "lost.png": "the image lost.png is not in the folder .*put it there",
        "sub/star.png": "is not in the folder",
        "sub.dir/a.png": "is not in the folder",
        f"{'a' * 300}.png": "is not in the folder",
        "text.png": "text.png cannot be read as an image",
        "moving.gif": "is footage, and a cue begins with one image",
    }
    for name, sentence in bad.items():
        with pytest.raises(ValueError, match=sentence):
            pipeline.plan(asked(folder, f"0 {RED}\n0.5s => image {name}: {GREEN}"))
    with pytest.raises(ValueError, match="drops the given frames"):
        given = encoded(pipeline, folder / "star.png")
        pipeline.plan(asked(folder, f"0 image star.png: {RED}", given=given))
    with pytest.raises(ValueError, match="no folder for the images that cues name"):
        pipeline.plan(replace(asked(folder, SCENE), images=None))
    with pytest.raises(ValueError, match=NO_ENCODER):
        replace(pipeline, encoder=None).plan(asked(folder, SCENE))


def test_the_command_finds_images_next_to_the_schedule(folder, capsys) -> None:
    file, out = folder / "scenes.txt", folder / "v.mp4"
    file.write_text(SCENE)
    given = ["generate", "--schedule", str(file), "--seconds", "1", "--out", str(out)]
    assert main([*given, "--fit", "stretch"]) == 0
    assert read_settings(out)["made_from"]["images"]["star.png"]["fit"] == "stretch"
    assert "is only 90x70" not in capsys.readouterr().err
    assert main([*given, "--contact-sheet", str(folder / "star.png")]) == 2
    assert "star.png is the image of the schedule itself" in capsys.readouterr().err
    out.unlink()
    (folder / "star.png").unlink()
    assert main(given) == 2 and not out.exists()
    assert "the image star.png is not in the folder" in capsys.readouterr().err
