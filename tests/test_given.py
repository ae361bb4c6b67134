"""Videos that begin with an image or a clip, go on from one, or transform footage: Mini, end to end."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from longlive_core.config import RELATIVES
from longlive_core.geometry import FRAME_RATE, num_frames
from longlive_core.pipeline import UNTIL_STOPPED, Pipeline, Request, Source, load_pipeline
from longlive_core.resume import Ending, VideoState
from longlive_core.rollout.rollout import Hook
from longlive_core.schedule.schedule import PromptSchedule
from longlive_core.source import FrameReader
from longlive_core.steering.live import LiveControl
from longlive_training.judge import position_steps, read
from longlive_training.world import SHAPES, Attributes, Motion, film

RED, BLUE = "a red circle drifts right over navy", "a blue circle drifts right over navy"
ATTRIBUTES = Attributes("red", "circle", "drifts right", "navy")
LOOKS = (
    Attributes("red", "star", "drifts left", "forest"),
    Attributes("white", "square", "drifts up", "navy"),
    Attributes("yellow", "circle", "drifts right", "plum"),
)


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return load_pipeline("mini")


@pytest.fixture(scope="module")
def footage() -> Tensor:
    """58 frames [F, H, W, 3] of the world, in the middle of a motion."""
    motion = Motion.anywhere([ATTRIBUTES], torch.Generator().manual_seed(4))
    return filmed(motion, 58)


def asked(seconds: float, text: str = RED, **options) -> Request:
    return Request(PromptSchedule.parse(f"0 {text}"), seconds, **{"seed": 3, **options})


@torch.inference_mode()
def made(pipeline: Pipeline, request: Request, hook: Hook | None = None) -> tuple[Tensor, Tensor, VideoState]:
    """Frames [F, H, W, 3], latents [1, C, T, H, W], and the state at the end."""
    ending = Ending()
    chunks = list(pipeline.run(pipeline.plan(request), hook, ending=ending))
    frames = torch.cat([chunk.frames for chunk in chunks])
    return frames, torch.cat([chunk.block.latents for chunk in chunks], dim=2), ending.state


def psnr(ours: Tensor, right: Tensor) -> float:
    return float(-10 * (ours - right).square().mean().log10())


class Notes(Hook):
    def __init__(self):
        self.notes = []

    def on_note(self, text):
        self.notes.append(text)


class TestGiven:
    @pytest.mark.parametrize("frames", [1, 20])
    def test_a_video_begins_with_them(self, pipeline, footage, frames) -> None:
        """They are its first frames and count; those that fill no latent frame are dropped at their end."""
        given = pipeline.encode(footage[:frames])
        shown = num_frames(given.shape[2])
        assert frames - 4 < shown <= frames
        ours, latents, _ = made(pipeline, asked(3.5, given=given))
        assert len(ours) == 3.5 * FRAME_RATE and torch.equal(latents[:, :, : given.shape[2]], given)
        assert psnr(ours[:shown], footage[:shown]) > 30

    @pytest.mark.parametrize("frames", [1, 9, 20, 58])
    def test_a_video_goes_on_after_them(self, pipeline, footage, frames) -> None:
        past = pipeline.encode(footage[:frames])
        plan = pipeline.plan(asked(1.0, past=past))
        assert plan.first_block == past.shape[2] // 3 and plan.num_given == past.shape[2] % 3
        ours, latents, _ = made(pipeline, asked(1.0, past=past))
        assert len(ours) == FRAME_RATE
        assert torch.equal(latents[:, :, : plan.num_given], past[:, :, past.shape[2] - plan.num_given :])
        steps = position_steps(
            read(torch.cat((footage[frames - 1 : frames], ours)).permute(0, 3, 1, 2)).place
        )
        assert float(steps[0]) < 4, "no jump at the seam"

    def test_the_same_again_and_another_seed(self, pipeline, footage) -> None:
        given = pipeline.encode(footage[:1])
        one, again = (made(pipeline, asked(1.0, given=given))[1] for _ in range(2))
        assert torch.equal(one, again)
        assert not torch.equal(one, made(pipeline, asked(1.0, given=given, seed=4))[1])

    def test_two_parts_are_the_whole(self, pipeline, footage, tmp_path) -> None:
        given = pipeline.encode(footage[:20])
        whole = made(pipeline, asked(3.0, given=given))
        one = made(pipeline, asked(1.75, given=given))
        one[2].save(tmp_path / "state")
        other = made(pipeline, asked(1.25, state=VideoState.load(tmp_path / "state")))
        assert torch.equal(torch.cat((one[0], other[0])), whole[0])
        assert torch.equal(torch.cat((one[1], other[1]), dim=2), whole[1])

    def test_times_count_from_its_beginning(self, pipeline, footage) -> None:
        """45 frames are given: a cue among them takes effect with the first block that is made."""
        given = pipeline.encode(footage[:45])
        schedule = PromptSchedule.parse(f"0 {RED}\n1s => {BLUE}\n3s => {RED}")
        plan = pipeline.plan(Request(schedule, 5.0, given=given))
        assert [(one.block, one.seconds) for one in plan.timeline.segments] == [(0, 45 / 16), (1, 57 / 16)]
        assert plan.timeline.segments[0].cue.prompt == BLUE and plan.timeline.warnings

    def test_times_count_from_the_end_of_the_past(self, pipeline, footage) -> None:
        past = pipeline.encode(footage[:1])
        plan = pipeline.plan(asked(2, f"{RED}\n0.3s => {BLUE}", past=past))
        assert plan.cut_off == -1
        assert [(one.block, one.seconds) for one in plan.timeline.segments] == [(0, 0), (1, 8 / 16)]

    def test_sgf_has_whole_blocks(self, pipeline, footage) -> None:
        sgf = replace(pipeline, preset=replace(pipeline.preset, commits_past=True))
        still = sgf.encode(footage[:1])
        assert still.shape[2] == 3 and isinstance(sgf.plan(asked(2, given=still)).past, tuple)
        with pytest.raises(ValueError, match="whole blocks of 3 latent frames, not with 1; encode 9 frames"):
            sgf.plan(asked(2, given=still[:, :, :1]))
        plan = sgf.plan(asked(2, past=sgf.encode(footage[:50])))
        assert plan.first_block == 4 and not plan.num_given and "the last 2.8 s" in plan.notes[0]
        assert [name for name, preset in RELATIVES.items() if preset.commits_past] == [
            name for name in RELATIVES if name.startswith("sgf")
        ]

    def test_what_does_not_fit_is_one_sentence(self, pipeline, footage) -> None:
        given = pipeline.encode(footage[:45])
        bad = {
            "the first prompt cuts, which drops the given frames": asked(3, f"cut: {RED}", given=given),
            "the first prompt cuts": asked(3, f"cut: {RED}", past=given[:, :, :10]),
            "leave one of them out": asked(3, given=given, past=given),
            r"already contains these 32 frames; make the video longer than 2\.8125 s": asked(2, given=given),
            r"of shape \[1, 16, 0, 8, 8\]": asked(3, given=given[:, :, :0]),
            "is 64x64, this one 128x64": asked(3, given=given, width=128),
            "choose 0 to 3": asked(3, past=given[:, :, :10], cut_off=4),
        }
        for sentence, request in bad.items():
            with pytest.raises(ValueError, match=sentence):
                pipeline.plan(request)
        assert pipeline.plan(asked(3, f"cut: {RED}", past=given)).first_block == 4
        with pytest.raises(ValueError, match=r"cannot encode frames; use the Wan 2\.1 VAE"):
            replace(pipeline, encoder=None).encode(footage)
        with pytest.raises(ValueError, match="try 64x48"):
            pipeline.encode(footage[:, :50])
        for wrong in (footage[:0], footage[0], footage[..., :1]):
            with pytest.raises(ValueError, match="cannot be encoded"):
                pipeline.encode(wrong)

    def test_a_live_run_and_its_replay(self, pipeline, footage) -> None:
        request, live = asked(2.0, given=pipeline.encode(footage[:20])), LiveControl()
        with torch.inference_mode():
            chunks = list(pipeline.run(pipeline.plan(request), live=live))
        assert live.seconds == 2.0
        again = made(pipeline, replace(request, schedule=live.schedule()))[0]
        assert torch.equal(torch.cat([chunk.frames for chunk in chunks]), again)


class TestSource:
    def test_full_strength_is_text_alone(self, pipeline, footage) -> None:
        ours = made(pipeline, asked(0, source=Source(footage[:33], 1.0)))
        assert all(map(torch.equal, ours[:2], made(pipeline, asked(33 / FRAME_RATE))[:2]))

    @pytest.mark.parametrize("sizes", [[1] * 58, [7, 20, 31]], ids=["one by one", "in pieces"])
    def test_it_is_read_while_the_video_is_made(self, pipeline, footage, sizes) -> None:
        """Whatever pieces the frames come in: the same video, and little is read ahead."""
        whole, read_by_now, ahead = made(pipeline, asked(0, source=Source(footage, 0.5)))[0], [0], []

        def pieces():
            for piece in footage.split(sizes):
                read_by_now[0] += len(piece)
                yield piece

        source, frames = Source(pieces(), 0.5, length=len(footage)), 0
        for chunk in pipeline.run(pipeline.plan(asked(0, source=source))):
            assert torch.equal(chunk.frames, whole[frames : frames + len(chunk.frames)])
            frames += len(chunk.frames)
            ahead.append(read_by_now[0] - frames)
        assert frames == len(footage) and max(ahead) <= max(sizes)

    def test_latents_are_as_good(self, pipeline, footage) -> None:
        latents = pipeline.encode(footage[:45])
        ours = made(pipeline, asked(0, source=Source(latents=latents, strength=0.5)))[1]
        assert torch.equal(ours, made(pipeline, asked(0, source=Source(footage[:45], 0.5)))[1])

    def test_after_its_end_the_video_goes_on_and_says_so(self, pipeline, footage) -> None:
        hook = Notes()
        frames = made(pipeline, asked(3.0, source=Source(footage[:20], 0.5)), hook)[0]
        assert len(frames) == 48
        assert hook.notes == ["the source ends after 1.2 s; the video goes on without it"]

    def test_after_a_cut_it_goes_on_where_it_is(self, pipeline, footage) -> None:
        """The encoder begins again, with the first of nine frames for the four that the decoder holds."""
        text = f"{RED}\n1.3125s => cut: {BLUE}"
        frames = made(pipeline, asked(0, text, source=Source(footage[:45], 0.15)))[0]
        places = [read(some.permute(0, 3, 1, 2)).place for some in (frames[24:45], footage[24:45])]
        assert float((places[0] - places[1]).norm(dim=1).median()) * 64 < 2

    @pytest.mark.parametrize(
        ("seam", "text"),
        [(9 / 16, RED), (1.0, f"{RED}\n1.3125s => cut: {BLUE}"), (2.5, f"{RED}\n1.3125s => cut: {BLUE}")],
        ids=["one scene", "a cut behind", "a cut before"],
    )
    def test_two_parts_are_the_whole(self, pipeline, footage, text, seam, tmp_path) -> None:
        """The second takes the source from its beginning, and goes on in it."""
        source, seconds = Source(footage, 0.5), len(footage) / FRAME_RATE
        whole = made(pipeline, asked(0, text, source=source))
        first = text if seam > 1.3125 else RED
        one = made(pipeline, asked(seam, first, source=source))
        one[2].save(tmp_path / "state")
        state = VideoState.load(tmp_path / "state")
        later = text.splitlines()[1:] if seam < 1.3125 else []
        rest = [f"{1.3125 - seam}s => cut: {BLUE}"] if later else []
        last = BLUE if seam > 1.3125 and "cut" in text else RED
        other = made(pipeline, asked(0, "\n".join([last, *rest]), source=source, state=state))
        assert len(one[0]) + len(other[0]) == round(seconds * FRAME_RATE)
        assert torch.equal(torch.cat((one[0], other[0])), whole[0])

    def test_it_goes_on_from_text_alone_and_from_a_clip(self, pipeline, footage) -> None:
        state = made(pipeline, asked(1.0))[2]
        assert pipeline.plan(asked(0, state=state, source=Source(footage))).frames == len(footage)
        past = pipeline.encode(footage[:20])
        frames = made(pipeline, asked(0, past=past, source=Source(footage[17:], 0.15)))[0]
        assert len(frames) == 41
        assert psnr(frames, footage[17:]) > 20, "on the source's clock"

    @pytest.mark.parametrize("frames", [1, 20])
    def test_with_given_frames_it_begins_with_the_video(self, pipeline, footage, frames) -> None:
        given = pipeline.encode(footage[:frames])
        ours, latents, _ = made(pipeline, asked(0, given=given, source=Source(footage, 0.15)))
        assert torch.equal(latents[:, :, : given.shape[2]], given) and len(ours) == len(footage)
        assert psnr(ours, footage) > 25

    def test_what_does_not_fit_is_one_sentence(self, pipeline, footage) -> None:
        run = pipeline.run
        with pytest.raises(ValueError, match="more than 0 and at most 1"):
            Source(footage, 0)
        with pytest.raises(ValueError, match="either frames or latents"):
            Source()
        with pytest.raises(ValueError, match="length of the source is not known"):
            pipeline.plan(asked(0, source=Source(iter([footage]))))
        for wrong in (footage[:, :32], footage[0], footage[..., :2]):
            with pytest.raises(ValueError, match="do not fit a video of 64x64"):
                next(run(pipeline.plan(asked(1, source=Source([wrong])))))
        with pytest.raises(ValueError, match="the source has no frames"):
            next(run(pipeline.plan(asked(1, source=Source([])))))
        with pytest.raises(ValueError, match="cannot encode frames"):
            next(replace(pipeline, encoder=None).run(pipeline.plan(asked(1, source=Source(footage)))))
        with pytest.raises(ValueError, match="source latents of shape"):
            latents = torch.zeros(1, 16, 3, 4, 4)
            next(run(pipeline.plan(asked(1, source=Source(latents=latents)))))

    def test_too_little_memory_is_tried_again(self, pipeline, footage, monkeypatch) -> None:
        source, encode = Source(footage[:21], 0.5), pipeline.encoder.encode_next
        right = made(pipeline, asked(0, source=source))[0]
        calls, hook = [], Notes()

        def sometimes(frames, past=None):
            calls.append(past)
            made = encode(frames, past)
            if len(calls) in (1, 3):
                raise torch.OutOfMemoryError("out of memory")
            return made

        monkeypatch.setattr(pipeline.encoder, "encode_next", sometimes)
        assert torch.equal(made(pipeline, asked(0, source=source), hook)[0], right)
        assert len(hook.notes) == 2 and "trying once more" in hook.notes[0]

    def test_settings_name_what_a_video_was_made_from(self, pipeline, footage) -> None:
        given, files = pipeline.encode(footage[:5]), {"image": {"file": "sea.png", "sha256": "ab"}}
        request = asked(0, given=given, source=Source(footage), made_from=files)
        settings = pipeline.plan(request).settings()
        assert settings["made_from"] == files and settings["strength"] == 0.35
        assert settings["given_latent_frames"] == 2 and settings["seconds"] == 58 / FRAME_RATE
        text = pipeline.plan(asked(1)).settings()
        assert text.keys() == settings.keys() - {"made_from", "strength", "given_latent_frames"}
        endless = pipeline.plan(asked(UNTIL_STOPPED, source=Source(footage)))
        assert endless.is_until_stopped and endless.settings()["seconds"] == 0


def test_a_reader_holds_the_ends_and_skips_the_rest() -> None:
    frames = torch.arange(10.0).view(10, 1, 1, 1).expand(-1, 2, 2, 3)

    def numbers(first, end, reader):
        taken = reader.take(first, end)
        return None if taken is None else taken[:, 0, 0, 0].tolist()

    for pieces in (frames, iter(frames.split(3)), list(frames.split(1))):
        reader = FrameReader(pieces, (2, 2))
        assert numbers(-2, 2, reader) == [0, 0, 0, 1]
        assert numbers(5, 7, reader) == [5, 6] and numbers(7, 12, reader) == [7, 8, 9, 9, 9]
        assert numbers(12, 14, reader) is None and reader.num_taken == 10


class TestMini:
    """What shared figures say of the packaged weights, at a small count."""

    def test_an_image_anywhere(self, pipeline) -> None:
        for seed, look in enumerate(LOOKS):
            motion = Motion.anywhere([look], torch.Generator().manual_seed(seed))
            image = filmed(motion, 1, look)
            given = pipeline.encode(image)
            frames = made(pipeline, asked(2.0, look.prompt(), given=given, seed=seed))[0]
            reading = read(frames.permute(0, 3, 1, 2))
            assert (reading.shape == SHAPES.index(look.shape)).float().mean() > 0.9, look
            assert float(position_steps(reading.place)[:24].max()) < 6, look
            assert psnr(frames[:1], image) > 30

    def test_strength_is_a_threshold(self, pipeline, footage) -> None:
        """At .25 the colour changes and the place stays, at .9 nothing stays but what the prompt says."""
        places = read(footage.permute(0, 3, 1, 2)).place
        off = {}
        for strength in (0.25, 0.9):
            frames = made(pipeline, asked(0, BLUE, source=Source(footage, strength)))[0]
            reading = read(frames.permute(0, 3, 1, 2))
            away = (reading.place - places + 0.5) % 1 - 0.5
            off[strength] = float(away.norm(dim=1).median()) * 64
            assert set(reading.names(40).items()) >= {("colour", "blue"), ("background", "navy")}
        assert off[0.25] < 2 and off[0.9] > 5


def filmed(motion: Motion, count: int, look: Attributes = ATTRIBUTES) -> Tensor:
    """Frames [F, 64, 64, 3] in [0, 1] of a look in motion."""
    return film([look], motion, count, 64)[0][0].permute(0, 2, 3, 1)
