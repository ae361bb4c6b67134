"""Run by a checkout's Python: what single parts of the nodes do, without a server. Arguments: checkout, pack.

Prints `OK name` for everything that was as it should be.
"""

import os
import shutil
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

from pack_of import pack_of

checkout, pack = sys.argv[1:]
ours = pack_of(checkout, pack)

import folder_paths  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402

host, io_types, live = ours("nodes.host"), ours("nodes.io_types"), ours("nodes.live")
stream, takes, vaes = ours("nodes.stream"), ours("nodes.takes"), ours("nodes.vaes")
MINI, load_mini = ours("longlive_core.config").MINI, ours("longlive_core.mini.loader").load_mini
num_frames = ours("longlive_core.geometry").num_frames
Block, Rewind = ours("longlive_core.rollout.rollout").Block, ours("longlive_core.resume").Rewind
Journal = ours("longlive_core.journal").Journal
SPACE = io_types.WAN_LATENTS


def a_video_that_cannot_be_moved() -> None:
    """As on Windows, while a player has it open: the copy of shutil.move works, what follows does not."""

    def refused(*_, **__):
        raise PermissionError(13, "The process cannot access the file")

    with tempfile.TemporaryDirectory() as folder:
        folder_paths.set_temp_directory(f"{folder}/temp")
        path = Path(folder, "v.mp4")
        path.write_bytes(b"video")
        allowed = os.rename, os.unlink
        os.rename = os.unlink = refused
        try:
            video = host.VideoFile(path, "")
            video.finish()
        finally:
            os.rename, os.unlink = allowed
        assert video.path == path and video.path.read_bytes() == b"video"
        assert video.folder == host.io.FolderType.output
        video.finish()
        assert video.path.parent == Path(folder, "temp") and not path.exists()
    print("OK a video that cannot be moved is passed on from where it is")


def a_temp_folder_on_a_full_disk() -> None:
    """As where it is another disk: shutil.move copies, and the copy breaks off."""

    def half_of_it(source, target) -> None:
        Path(target).write_bytes(Path(source).read_bytes()[:2])
        raise OSError(28, "No space left on device")

    with tempfile.TemporaryDirectory() as folder:
        folder_paths.set_temp_directory(f"{folder}/temp")
        path, allowed = Path(folder, "v.mp4"), shutil.move
        path.write_bytes(b"video")
        shutil.move = half_of_it
        try:
            video = host.VideoFile(path, "")
            video.finish()
        finally:
            shutil.move = allowed
        assert video.path == path and path.read_bytes() == b"video"
        assert not list(Path(folder, "temp").iterdir())
    print("OK half a copy in a full temp folder is removed")


def latents_that_do_not_fit_the_memory() -> None:
    """The video is made by then: it stays where it is kept, and the error names it."""

    def no_memory(_) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")

    hidden = SimpleNamespace(unique_id="1", prompt=None, extra_pnginfo=None)
    schedules = ours("nodes.schedule").LongLivePromptSchedule
    schedules.hidden = stream.LongLiveStream.hidden = hidden
    model, clip, vae = ours("nodes.loaders").LongLiveLoadMini.execute().args
    schedule, *_ = schedules.execute(clip, "0 a red circle rests over navy").args
    made, gathered = {"width": 64, "height": 64, "seconds": 1.0, "seed": 1}, stream.Run._gathered
    with tempfile.TemporaryDirectory() as folder:
        folder_paths.set_output_directory(f"{folder}/output")
        folder_paths.set_temp_directory(f"{folder}/temp")
        stream.Run._gathered = no_memory
        try:
            stream.LongLiveStream.execute(model, schedule, vae, **made)
        except host.OutOfMemory as error:
            message = str(error)
        finally:
            stream.Run._gathered = gathered
        (video,) = Path(folder, "output").rglob("*.mp4")
        assert (
            message.startswith("not enough memory")
            and f"the first 1.0 s are kept as {video.relative_to(folder)}" in message
        )
    print("OK latents that do not fit the memory cost no video")


def a_decoder_is_built_once_for_the_weights_of_a_vae() -> None:
    """It follows them when they move; copies, of weights in another dtype here, are never kept."""
    module = torch.nn.Linear(2, 2).requires_grad_(False)
    vae = SimpleNamespace(first_stage_model=module, device=torch.device("cpu"), vae_dtype=torch.float32)
    built = []

    def build(weights):
        built.append(weights)
        return weights

    first = host.built_once(vae, build)
    assert host.built_once(vae, build) is first and first["weight"] is module.weight
    module.double()
    assert host.built_once(vae, build)["weight"] is not module.weight and len(built) == 2
    module.weight.fill_(3.0)
    module.float()
    assert host.built_once(vae, build) is first and first["weight"].eq(3.0).all() and len(built) == 2
    module.weight = torch.nn.Parameter(torch.ones(2, 2), requires_grad=False)
    assert host.built_once(vae, build)["weight"] is module.weight and len(built) == 3
    print("OK a decoder is built once for the weights of a VAE")


def plan_of_nine_blocks(*warnings: str) -> SimpleNamespace:
    """As much of a plan as a run asks for before its first block."""
    blocks = {"blocks": range(9), "sigmas": range(4), "num_given": 0}
    return SimpleNamespace(**blocks, is_until_stopped=True, timeline=SimpleNamespace(warnings=warnings))


def how_much_of_a_video_is_kept() -> None:
    """What was written, and only while it is there; more was made."""
    notes: list[str] = []
    plan = plan_of_nine_blocks("late")
    begun = stream.Begun(plan, stream.Past(None, SPACE), {}, None)
    run = stream.Run(SimpleNamespace(space=SPACE), begun, "1", notes, keep_state=False)
    assert notes == ["late"]
    run._frames = 69
    with tempfile.TemporaryDirectory() as folder:
        folder_paths.set_output_directory(f"{folder}/output")
        writer = SimpleNamespace(num_frames=57, path=Path(folder, "output", "longlive", "v.mp4"))
        writer.path.parent.mkdir(parents=True)
        shown = "output/longlive/v.mp4"
        for exists, text, kept in (
            (True, shown, f"the first 3.6 s are kept as {shown}"),
            (False, None, ""),
        ):
            writer.path.touch() if exists else writer.path.unlink()
            notes.clear()
            run._give_up(writer)
            assert notes == ([f"the first 3.6 s are kept as {text}"] if exists else []), notes
            assert run._kept(writer).removeprefix("; ") == kept
    print("OK as much is said to be kept as was written")


def a_scene_that_begins_within_a_block() -> None:
    assert vaes.pieces(9, (0, 4, 6, 30)) == [(0, 3), (3, 4), (4, 6), (6, 9)]
    assert vaes.pieces(4, ()) == [(0, 3), (3, 4)]
    autoencoder = load_mini().autoencoder
    vae = vaes.OwnVae(autoencoder, MINI)
    samples = torch.randn(1, MINI.model.latent_channels, 9, 8, 8)
    whole = vaes.gathered(samples, vaes.decoded(vae, samples, (0, 4)))
    scene = vaes.gathered(samples[:, :, 4:], vaes.decoded(vae, samples[:, :, 4:]))
    begin = num_frames(4) + 3  # its first frame is held for the three before
    assert whole.shape[1] == num_frames(9) and torch.allclose(whole[:, begin:], scene, atol=1e-5)
    print("OK a scene that begins within a block is decoded on its own")


def frames_that_no_block_holds() -> None:
    latent = {"samples": torch.randn(1, 16, 6, 4, 4)}
    for cut_off, taken in ((0, 0), (5, 5), (11, 11), (12, 0), (-67, 0)):
        past = stream.Past(latent | {io_types.FRAMES_KEY: num_frames(6) - cut_off}, SPACE)
        assert past.cut_off == taken, cut_off
    print("OK frames that no block holds are not cut off")


def latents_as_the_model_made_them() -> None:
    """Those on disk are read once; they are the very samples that were kept before, half as large."""
    past = stream.Past({"samples": torch.randn(1, 16, 3, 4, 4)}, SPACE)
    parts = SimpleNamespace(space=SPACE)
    stream.host.Progress = lambda *_: SimpleNamespace(preview=lambda _: None, text=lambda _: None)
    begun = stream.Begun(plan_of_nine_blocks(), past, {}, None)
    run = stream.Run(parts, begun, "1", [], keep_state=False)
    made = [torch.randn(1, 16, 3, 4, 4).bfloat16() for _ in range(3)]
    frames = np.zeros((12, 8, 8, 3), np.uint8)
    with tempfile.TemporaryDirectory() as folder, Journal(f"{folder}/v.mp4", {}) as journal:
        run._rewind = Rewind(disk=journal)
        for index, latents in enumerate(made):
            block = Block(index, latents, opens_scene=index == 1)
            run._rewind.add(block)
            journal.add(block)
            chunk = SimpleNamespace(begins=12 * index, uint8=lambda: frames)
            run._keep(chunk, SimpleNamespace(append=lambda _: None))
        assert journal.latents(0).dtype == torch.bfloat16  # all are on disk now
        run._rewind.add(block)
        assert [*run._rewind.blocks.values()] == [None, None, None]
        latent = run.latents()
        check_what_is_kept_of(run._rewind)
    expected = torch.cat([past.samples, *map(SPACE.raw, made)], dim=2)
    assert latent["samples"].dtype == torch.float32 and torch.equal(latent["samples"], expected)
    assert latent[io_types.SCENES_KEY] == (6,) and latent[io_types.FRAMES_KEY] == 9 + 36
    print("OK latents wait as the model made them")


def check_what_is_kept_of(rewind) -> None:
    """For the next run of the node: the first latents, up to a limit; and no states after these."""
    rewind.states = [SimpleNamespace(num_blocks=number) for number in (1, 2, 3)]
    most, takes.KEPT_BYTES = takes.KEPT_BYTES, 2 * rewind.block(0).latents.nbytes
    kept = takes.Take((), {}, None, "", rewind, dict).finished().rewind
    takes.KEPT_BYTES = most
    assert [block.index for block in kept.blocks.values()] == [0, 1]
    assert [state.num_blocks for state in kept.states] == [1, 2]


def runs_that_were_steered() -> None:
    for node, was_steered, seconds, expected in (
        ("1", 0, 5, 0),
        ("1", 1, 5, 1),
        ("2", 0, 0, 1),
        ("1", 1, 0, 2),
    ):
        run = live.LiveRun(node, (64, 64), {"seconds": seconds})
        ends = {"was_steered": was_steered, "finish": lambda *_: None, "has_ended": True}
        run.control = SimpleNamespace(**ends)
        with run.going_on():
            pass
        assert live.RUNS.num_steered(node) == expected
    assert live.RUNS.num_steered(None) == 3 and live.RUNS.num_steered("3") == 0
    print("OK runs that were steered are counted")


class Umt5:
    """What ComfyUI's encoder is to the nodes: a token a word, then the end, then padding up to 512."""

    def tokenize(self, text: str) -> dict:
        tokens = [(int(word), 1.0) for word in text.split()] + [(1, 1.0)]
        return {"umt5xxl": [tokens + [(0, 1.0)] * (512 - len(tokens))]}

    def encode_from_tokens(self, tokens: dict) -> torch.Tensor:
        return torch.tensor([[[float(token)] for token, _ in tokens["umt5xxl"][0]]])


def long_prompts_are_cut_as_by_the_command() -> None:
    """With the end as the last of 512 tokens, and a warning where words are cut off."""
    schedule, of = ours("nodes.schedule"), ours("longlive_core.schedule.schedule").PromptSchedule.single
    parse = ours("longlive_core.schedule.schedule").PromptSchedule.parse
    for count in (3, 510, 511, 512, 700):
        words = [*range(10, 10 + count)]
        prompt = " ".join(map(str, words))
        kept = [*words[:511], 1]
        made = schedule.encoded(Umt5(), of(prompt)).embeds_of(prompt)[0, :, 0].tolist()
        assert made == kept + [0] * (512 - len(kept)), count
        warnings = schedule.word_warnings(Umt5(), of(prompt))
        more = schedule.encoded(Umt5(), parse(f"always: 7 8\n0 => {prompt}"))
        assert more.embeds.keys() == {f"7 8 {prompt}"}
        assert len(warnings) == (count > 511) and all("cut off" in warning for warning in warnings), count
    print("OK long prompts are cut as by the command")


def times_of_both_kinds_of_models() -> None:
    schedule, of = ours("nodes.schedule"), ours("longlive_core.schedule.schedule").PromptSchedule.parse
    lines = schedule.times(of("0 a\n5s b\n5.2s c\n5.7s d\n9s e\n9s f"))
    assert lines[0].startswith("except in a frame-wise model, cue 3 at 5.2s is never seen"), lines
    assert lines[1].startswith("cue 5 at 9s is never seen"), lines
    late = '9s "f" takes effect at 9.6s (block 13), in a frame-wise model at 9.1s (block 37)'
    assert lines[2:] == [late], lines  # the others are on time
    print("OK times are given for both kinds of models")


times_of_both_kinds_of_models()
a_video_that_cannot_be_moved()
a_temp_folder_on_a_full_disk()
latents_that_do_not_fit_the_memory()
a_decoder_is_built_once_for_the_weights_of_a_vae()
how_much_of_a_video_is_kept()
long_prompts_are_cut_as_by_the_command()
a_scene_that_begins_within_a_block()
frames_that_no_block_holds()
latents_as_the_model_made_them()
runs_that_were_steered()
