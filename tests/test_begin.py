"""Videos of the command line that begin with an image, go on from footage, or transform it."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from longlive_core.cli import main
from longlive_core.config import MINI
from longlive_core.output.video import VideoWriter, read_frames
from longlive_core.pipeline import load_pipeline
from longlive_training.judge import read
from longlive_training.world import BACKGROUNDS, COLOURS, SHAPES, Attributes, Motion, film
from tests.test_vace import published, random_vace

pytestmark = pytest.mark.usefixtures("mini_once")
BEFORE = Attributes("red", "circle", "drifts right", "navy")
PROMPT = BEFORE.prompt()


@pytest.fixture(scope="module")
def shot() -> np.ndarray:
    """Three seconds of the world in the middle of a motion, uint8 [48, 64, 64, 3]."""
    rng = torch.Generator().manual_seed(3)
    frames, _ = film([BEFORE], Motion.anywhere([BEFORE], rng), 48, 64)
    return (frames[0].permute(0, 2, 3, 1) * 255).round().byte().numpy()


@pytest.fixture
def files(tmp_path, shot, monkeypatch) -> Path:
    """A folder with footage.mp4 and image.png, the current one."""
    with VideoWriter(tmp_path / "footage.mp4", 64, 64) as writer:
        writer.append(shot)
    Image.fromarray(shot[0]).save(tmp_path / "image.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def generate(*options: str, out: str = "v.mp4") -> int:
    return main(["generate", "--seed", "1", "--out", out, *options])


def frames_of(name: str) -> np.ndarray:
    return np.concatenate(
        [frames if frames.ndim == 4 else frames[None] for frames in read_frames(Path(name))]
    )


def looks(frames: np.ndarray) -> list[tuple[str, str, str]]:
    """Colour, shape and background of some frames."""
    reading = read(torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 255)
    columns = zip(reading.colour, reading.shape, reading.background, strict=True)
    return [(list(COLOURS)[c], SHAPES[s], list(BACKGROUNDS)[b]) for c, s, b in columns]


def settings_of(name: str, capsys) -> dict:
    capsys.readouterr()
    assert main(["info", name]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_video_begins_with_an_image(files, shot, capsys) -> None:
    assert generate("--image", "image.png", "--prompt", PROMPT, "--seconds", "2") == 0
    frames = frames_of("v.mp4")
    assert len(frames) == 32 and np.abs(frames[0].astype(float) - shot[0]).mean() < 8
    assert looks(frames[::8]) == [("red", "circle", "navy")] * 4
    settings = settings_of("v.mp4", capsys)
    digest = hashlib.sha256(Path("image.png").read_bytes()).hexdigest()
    facts = {"file": "image.png", "sha256": digest, "start": 0.0, "fit": "crop"}
    assert settings["made_from"] == {"image": facts} and settings["given_latent_frames"] == 1


def test_an_image_of_any_size_gives_the_video_its_proportions(files) -> None:
    Image.new("RGB", (640, 320), (20, 30, 100)).save("wide.png")
    assert generate("--image", "wide.png", "--prompt", PROMPT, "--seconds", "0.5") == 0
    assert frames_of("v.mp4").shape == (8, 48, 96, 3)
    assert generate("--image", "wide.png", "--size", "64x64", "--prompt", PROMPT, "--seconds", "0.5") == 0
    assert frames_of("v.mp4").shape == (8, 64, 64, 3)


def test_footage_is_transformed_and_the_video_is_as_long(files, shot, capsys) -> None:
    prompt = "a blue circle drifts right over plum"
    assert generate("--video", "footage.mp4", "--strength", "0.25", "--prompt", prompt) == 0
    frames = frames_of("v.mp4")
    assert len(frames) == len(shot) and looks(frames[::12]) == [("blue", "circle", "plum")] * 4
    settings = settings_of("v.mp4", capsys)
    assert settings["strength"] == 0.25 and settings["seconds"] == 3
    assert settings["made_from"]["video"]["file"] == "footage.mp4"
    where, was = (read(torch.from_numpy(f).permute(0, 3, 1, 2).float() / 255).place for f in (frames, shot))
    assert ((where - was + 0.5) % 1 - 0.5).abs().median() * 64 < 2


def test_a_longer_video_goes_on_without_the_footage_and_a_late_start_skips_some(files, capsys) -> None:
    options = ("--video", "footage.mp4", "--start", "1.5", "--prompt", PROMPT)
    assert generate(*options, "--seconds", "3") == 0
    assert len(frames_of("v.mp4")) == 48
    assert "the source ends after 1.5 s; the video goes on without it" in capsys.readouterr().err
    assert generate(*options) == 0 and len(frames_of("v.mp4")) == 24


def test_a_strength_of_one_is_text_alone(files) -> None:
    options = ("--prompt", PROMPT, "--seconds", "1")
    assert generate("--video", "footage.mp4", "--strength", "1", *options) == 0
    assert generate(*options, out="text.mp4") == 0
    assert np.array_equal(frames_of("v.mp4"), frames_of("text.mp4"))


@pytest.mark.parametrize("is_joined", [False, True])
def test_a_video_goes_on_where_footage_ends(files, shot, is_joined) -> None:
    joined = ["--with-source"] if is_joined else []
    assert generate("--extend", "footage.mp4", *joined, "--prompt", PROMPT, "--seconds", "2") == 0
    frames = frames_of("v.mp4")
    assert len(frames) == 32 + len(shot) * is_joined
    new = torch.from_numpy(np.concatenate((shot[-1:], frames[-32:]))).permute(0, 3, 1, 2).float() / 255
    steps = ((read(new).place.diff(dim=0) + 0.5) % 1 - 0.5).norm(dim=1) * 64
    assert steps.max() < 3, "no jump at the seam or after it"
    if is_joined:
        assert np.abs(frames[: len(shot)].astype(float) - frames_of("footage.mp4")).mean() < 3


def test_the_same_files_make_the_same_video(files) -> None:
    edited = ("--image", "image.png", "--video", "footage.mp4", "--prompt", "a blue star rests over plum")
    assert generate(*edited, "--seconds", "1") == 0
    assert generate(*edited, "--seconds", "1", out="again.mp4") == 0
    assert np.array_equal(frames_of("v.mp4"), frames_of("again.mp4"))


def test_a_state_goes_on_from_a_video_with_an_image(files) -> None:
    start = ("--image", "image.png", "--prompt", PROMPT)
    assert generate(*start, "--seconds", "2", out="whole.mp4") == 0
    assert generate(*start, "--seconds", "1", "--state", "end.safetensors") == 0
    assert generate("--prompt", PROMPT, "--seconds", "1", "--resume", "end.safetensors", out="two.mp4") == 0
    both = np.concatenate((frames_of("v.mp4"), frames_of("two.mp4"))).astype(float)
    assert np.abs(both - frames_of("whole.mp4")).mean() < 1, "each file is encoded for itself"


@pytest.mark.parametrize("options, sentence", [
    (["--image", "none.png"], "none.png does not exist; give an image or a video"),
    (["--image", "text.png"], "text.png cannot be read as an image or a video"),
    (["--video", "image.png"], "image.png is one image; give it as --image, or footage as --video"),
    (["--video", "footage.mp4", "--start", "9"], "footage.mp4 is 3.0 s long; it cannot begin at 9 s"),
    (["--video", "footage.mp4", "--strength", "0"], "a strength of 0.0 is not possible"),
    (["--strength", "0.5"], "--strength is of --video; give its --video FILE too"),
    (["--start", "1"], "--start is of --video; give its --video FILE too"),
    (["--image", "image.png", "--extend", "footage.mp4"], "--image and --extend exclude each other"),
    (["--video", "footage.mp4", "--extend", "footage.mp4"], "--video and --extend exclude each other"),
    (["--image", "image.png", "--resume", "x.state"], "--image and --resume exclude each other"),
    (["--mask", "image.png"], "--mask is of --control; give its --control FILE too"),
    (["--control-strength", "2"], "--control-strength is of --control; give its --control FILE too"),
    (["--control", "footage.mp4", "--model", "x.pt"], "control needs the layers of VACE; give --vace"),
    (["--control", "footage.mp4", "--vace", "vace-1.3b"], "run longlive download vace-1.3b --folder models"),
    (["--with-source"], "--with-source names the video that --resume continues, or goes with --extend FILE"),
    (["--extend", "footage.mp4", "--with-source", "other.mp4"], "--with-source needs no name"),
    (["--extend", "footage.mp4", "--out", "footage.mp4"], "footage.mp4 is the footage to extend itself"),
    (["--seconds", "0"], "a video of 0.0 seconds is not possible"),
])  # fmt: skip
def test_what_cannot_be_is_one_sentence(options, sentence, files, capsys) -> None:
    Path("text.png").write_text("a letter")
    capsys.readouterr()
    assert generate("--prompt", PROMPT, *options) == 2
    captured = capsys.readouterr().err
    assert sentence in captured and captured.strip().count("\n") == 0
    assert not Path("v.mp4").exists()


def test_transformed_footage_goes_on_from_a_state(files, capsys) -> None:
    footage = (
        "--video",
        "footage.mp4",
        "--strength",
        "0.25",
        "--prompt",
        "a blue circle drifts right over plum",
    )
    assert generate(*footage, out="whole.mp4") == 0
    assert generate(*footage, "--seconds", "1", "--state", "end.safetensors") == 0
    assert generate(*footage, "--seconds", "2", "--resume", "end.safetensors", out="two.mp4") == 0
    both = np.concatenate((frames_of("v.mp4"), frames_of("two.mp4"))).astype(float)
    assert np.abs(both - frames_of("whole.mp4")).mean() < 1, "each file is encoded for itself"


def test_a_video_follows_control(files, shot, capsys) -> None:
    """Random layers of VACE: another video at strength 1, the same at 0, and the settings name the files."""
    save_file(published(random_vace(MINI.model)), "vace.safetensors")
    follows = ("--vace", "vace.safetensors", "--control", "footage.mp4", "--reference", "image.png")
    video = ("--prompt", PROMPT, "--seconds", "1")
    assert generate(*video, out="text.mp4") == 0
    assert generate(*video, *follows, "--mask", "image.png") == 0
    settings = settings_of("v.mp4", capsys)
    assert settings["made_from"].keys() == {"control", "mask", "reference_1"}
    assert np.abs(frames_of("v.mp4").astype(float) - frames_of("text.mp4")).mean() > 1
    assert generate(*video, *follows, "--control-strength", "0") == 0
    assert np.array_equal(frames_of("v.mp4"), frames_of("text.mp4"))


def test_mini_follows_control_by_layers_of_its_own(files, capsys) -> None:
    video = ("--prompt", PROMPT, "--seconds", "1")
    assert generate(*video, out="text.mp4") == 0
    assert generate(*video, "--control", "footage.mp4") == 0
    assert np.abs(frames_of("v.mp4").astype(float) - frames_of("text.mp4")).mean() > 1
    assert generate(*video, "--control", "footage.mp4", "--control-strength", "0") == 0
    assert np.array_equal(frames_of("v.mp4"), frames_of("text.mp4"))


def test_plan_counts_the_encoder(capsys) -> None:
    assert main(["plan"]) == 0
    plain = capsys.readouterr().out
    assert main(["plan", "--video"]) == 0
    assert "encoder" in capsys.readouterr().out and "encoder" not in plain


def test_latents_of_a_pipeline_begin_a_video(shot) -> None:
    pipeline = load_pipeline("mini")
    given = pipeline.encode(torch.from_numpy(shot[:1]).float() / 255)
    frames = torch.cat(list(pipeline.stream(PROMPT, seconds=1, given=given)))
    assert frames.shape == (16, 64, 64, 3)
