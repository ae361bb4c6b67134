"""Images, footage and control in a real ComfyUI: from stock nodes that give them to videos, or sentences."""

import hashlib
import os
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

from longlive_core.output.video import VideoWriter, read_settings
from longlive_training.world import Attributes, Motion, film

BEFORE = Attributes("red", "circle", "drifts right", "navy")
SIZE = {"width": 64, "height": 64}
BLUE = BEFORE.prompt().replace("red", "blue")
LARGE_FRAMES = int(os.environ.get("LONGLIVE_4K_FRAMES", 100))  # 1000 take minutes to decode
MOST_GROWN = 1.2 * 2**30  # bytes: Mini's own growth, the decoder's frames and one in fp32


def node(kind: str, **inputs) -> dict:
    return {"class_type": kind, "inputs": inputs}


def graph(prompt: str = BEFORE.prompt(), **stream) -> dict:
    """Mini and a stream of a second, with what may be connected to it."""
    parts = {"model": ["mini", 0], "schedule": ["prompts", 0], "vae": ["mini", 2]}
    return {
        "mini": node("LongLiveLoadMini"),
        "prompts": node("LongLivePromptSchedule", clip=["mini", 1], prompts=prompt),
        "image": node("LoadImage", image="wide.png"),
        "file": node("LoadVideo", file="shot.mp4"),
        "made": node("CreateVideo", images=["many", 0], fps=8.0),
        "many": node("RepeatImageBatch", image=["image", 0], amount=100),
        "stream": node("LongLiveStream", **(parts | {"seconds": 1.0, "seed": 51} | SIZE | stream)),
    }


def source(video: str, **settings) -> dict:
    chosen = {"use": "transform", "strength": 0.25, "fit": "crop", "start": 0.0} | settings
    return {"source": node("LongLiveSource", video=[video, 0], **chosen)}


@pytest.fixture(scope="module")
def shot(server) -> np.ndarray:
    """Puts two seconds of the world, 48 frames of 24 a second, and a wide image into the input folder."""
    folder = server.base / "input"
    folder.mkdir(exist_ok=True)
    frames, _ = film([BEFORE], Motion.anywhere([BEFORE], torch.Generator().manual_seed(3)), 32, 64)
    pixels = (frames[0].permute(0, 2, 3, 1) * 255).round().byte().numpy()
    with VideoWriter(folder / "shot.mp4", 64, 64) as writer:
        writer.append(pixels)
    wide = Image.fromarray(pixels[0]).resize((96, 96)).crop((0, 16, 96, 80))
    wide.putalpha(255)  # LoadImage gives alpha as a MASK
    wide.save(folder / "wide.png")
    return pixels


def run(server, prompt: dict):
    done = server.run(prompt)
    assert done.has_succeeded, done.event("execution_error")["exception_message"]
    return done


def path_of(server, done, key: str = "stream"):
    return server.path_of(done.outputs[key]["longlive_video"][0])


def pixels_of(path) -> np.ndarray:
    """The frames [F, H, W, 3] of a video."""
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def notes(server) -> str:
    return " | ".join(server.get("/longlive/runs")["runs"][0]["notes"])


def test_a_video_begins_with_the_image_of_load_image_in_its_proportions(server, shot):
    """A red circle on navy is in the first frame and stays; 80x48 has about as many pixels as 64x64."""
    done = run(server, graph(start_image=["image", 0], width=0, height=0))
    made, settings = pixels_of(path_of(server, done)), read_settings(path_of(server, done))
    assert made.shape == (16, 48, 80, 3) and "80x48" in notes(server)
    wanted = np.asarray(Image.open(server.base / "input" / "wide.png").convert("RGB").resize((80, 54)))
    assert np.abs(made[0].astype(int) - wanted[3:51]).mean() < 6
    assert settings["given_latent_frames"] == 1 and settings["made_from"]["start_image"]["size"] == [96, 64]


@pytest.mark.newest
def test_one_side_follows_the_other(server, shot):
    for size, expected in (((0, 64), (96, 64)), ((48, 0), (48, 32))):
        done = run(server, graph(start_image=["image", 0], width=size[0], height=size[1], seconds=0.5))
        assert pixels_of(path_of(server, done)).shape[1:3] == expected[::-1]
    done = run(server, graph(width=0, height=32, seconds=0.5))
    assert pixels_of(path_of(server, done)).shape[1:3] == (32, 32)


def test_footage_of_load_video_is_transformed_at_its_length(server, shot):
    prompt = graph(BLUE, source=["source", 0], seconds=0.0, width=0, height=0) | source("file", start=0.5)
    done = run(server, prompt)
    made, settings = pixels_of(path_of(server, done)), read_settings(path_of(server, done))
    assert len(made) == len(shot) - 8
    assert settings["strength"] == 0.25 and settings["made_from"]["source"]["file"] == "shot.mp4"
    wanted = shot[8:].astype(int).sum(axis=3) > 200  # where the circle is
    assert (wanted == (made.astype(int).sum(axis=3) > 200)).mean() > 0.95, "it is still there"
    assert np.median(made[wanted], axis=0)[2] > 100 > np.median(made[wanted], axis=0)[0], "and blue"


def test_footage_without_a_file_is_transformed(server, shot):
    """A VIDEO of images, 8 a second, is seen twice as long as the IMAGE batch."""
    for video, seconds in (("made", 2.5), ("many", 1.25)):
        prompt = graph(source=["source", 0], seconds=0.0) | source(video)
        prompt["many"]["inputs"]["amount"] = 20
        done = run(server, prompt)
        assert read_settings(path_of(server, done))["seconds"] == seconds


def test_a_clip_is_continued_and_begins_the_file(server, shot):
    """Of another stream's file, which is in the temp folder by then."""
    prompt = graph(source=["source", 0], whole_video=True) | source("clip", use="continue")
    inputs = {name: link for name, link in prompt["stream"]["inputs"].items() if name != "source"}
    prompt["clip"] = node("LongLiveStream", **(inputs | {"whole_video": False, "seconds": 1.5}))
    done = run(server, prompt)
    made, before = pixels_of(path_of(server, done)), pixels_of(path_of(server, done, "clip"))
    assert len(made) == 16 + 24 and np.abs(made[:24].astype(int) - before).mean() < 4
    assert np.abs(made[24].astype(int) - made[23]).mean() < 12, "no jump"
    assert read_settings(path_of(server, done))["made_from"]["source"]["fit"] == "crop"


IMAGE, LATENT = ["image", 0], ["a", 1]
TINY = "taew2_1.safetensors"
OPTIONS = {"lora": "none", "lora_strength": 1.0, "second_lora": "none", "second_strength": 1.0}
OPTIONS |= {"attention": "auto", "speed": "plain", "family": "auto"}
OWN = {"model": ["own", 0], "schedule": ["words", 0], "vae": ["tiny", 0]}  # Mini has layers of VACE
REFUSED = {
    "start_image and continue_from exclude each other": {"start_image": IMAGE, "continue_from": LATENT},
    "source and continue_from exclude each other": {"source": ["source", 0], "continue_from": LATENT},
    "control needs VACE, and this model has none": {"control": ["control", 0], **OWN},
    "multiples of 16": {"start_image": IMAGE, "width": 72},
}


@pytest.mark.newest
@pytest.mark.parametrize("words", REFUSED)
def test_what_cannot_be_is_said_in_a_sentence(server, models, shot, words):
    prompt = graph(**REFUSED[words]) | source("file")
    prompt["own"] = node("LongLiveLoadModel", checkpoint="small_wan.safetensors", precision="fp32", **OPTIONS)
    prompt["words"] = node("LongLivePromptSchedule", clip=["clip", 0], prompts="a red star")
    prompt["clip"], prompt["tiny"] = (
        node("TestSmallClip"),
        node("LongLiveLoadVAE", vae_name=TINY, tiled=False),
    )
    prompt["a"] = graph()["stream"]
    prompt["control"] = node("LongLiveControl", strength=1.0, control_video=["many", 0])
    message = server.run(prompt).event("execution_error")["exception_message"]
    assert words in message and "\n" not in message.strip(), message


@pytest.mark.newest
def test_footage_that_is_not_there_is_said_in_a_sentence(server, shot):
    begins_late, is_continued = ({"start": 9.0}, "cannot begin at 9 s"), ({"use": "continue"}, "exclude each")
    for settings, words in (begins_late, is_continued):
        prompt = graph(source=["source", 0], start_image=["image", 0]) | source("file", **settings)
        assert words in server.run(prompt).event("execution_error")["exception_message"]
    prompt = graph(control=["control", 0]) | {"control": node("LongLiveControl", strength=1.0)}
    assert "nothing to follow" in server.run(prompt).event("execution_error")["exception_message"]


@pytest.mark.newest
def test_a_trimmed_video_begins_and_ends_where_it_was_trimmed(server, shot):
    prompt = graph(source=["source", 0], seconds=0.0) | source("part", start=0.25)
    trim = {"start_time": 0.5, "duration": 1.0, "strict_duration": False}
    prompt["part"] = node("Video Slice", video=["file", 0], **trim)
    settings = read_settings(path_of(server, run(server, prompt)))
    assert settings["made_from"]["source"]["start"] == settings["seconds"] == 0.75
    prompt |= source("part", start=1.0)
    message = server.run(prompt).event("execution_error")["exception_message"]
    assert "the footage is 1.0 s long; it cannot begin at 1 s" in message


def write_large(path: Path, count: int) -> None:
    """A video of 4K and 50 frames a second: ten that move, again and again."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=50, options={"preset": "ultrafast", "bf": "0"})
        stream.width, stream.height, stream.pix_fmt, stream.time_base = 3840, 2160, "yuv420p", Fraction(1, 50)
        packets = []
        for number in range(10):
            pixels = np.full((3240, 3840), 128, np.uint8)  # planes Y, U, V
            pixels[:2160, : 380 * number + 200] = 60
            packets += stream.encode(av.VideoFrame.from_ndarray(pixels, format="yuv420p"))
        packets += stream.encode()
        coded = [bytes(packet) for packet in packets]
        for number in range(count):
            packet = av.Packet(coded[number % len(coded)])
            packet.stream, packet.time_base = stream, Fraction(1, 50)
            packet.pts = packet.dts = number
            packet.is_keyframe = number % len(coded) == 0
            container.mux(packet)


def memory_of(pid: int, name: str) -> int:
    """Bytes of a process: VmRSS now, VmHWM at most since `forget`."""
    lines = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return int(lines[name].split()[0]) * 1024


@pytest.mark.newest
def test_a_long_video_of_4k_is_read_within_bounded_memory(server, shot):
    """All of it is decoded, to go on from its end; of LONGLIVE_4K_FRAMES frames, if that is set."""
    write_large(server.base / "input" / "large.mp4", LARGE_FRAMES)
    prompt = graph(source=["source", 0]) | source("file", use="continue")
    run(server, prompt)  # what stays is there by then
    prompt["file"]["inputs"]["file"] = "large.mp4"
    prompt["stream"]["inputs"]["seed"] = 52
    before = memory_of(server.pid, "VmRSS")
    Path(f"/proc/{server.pid}/clear_refs").write_text("5")
    done = run(server, prompt)
    grown = memory_of(server.pid, "VmHWM") - before
    print(f"{LARGE_FRAMES} frames of 4K: {grown / 2**30:.2f} GiB more")
    assert grown < MOST_GROWN, f"{grown / 2**30:.2f} GiB"
    latents = read_settings(path_of(server, done))["past_latent_frames"]
    assert latents == min(12, 1 + (LARGE_FRAMES * 16 // 50 - 1) // 4)


def test_batches_of_many_large_images_are_used_and_those_of_none_are_a_sentence(server, shot):
    """100 of 832x480: up to 45 begin a video, all are footage."""
    large = node("EmptyImage", width=832, height=480, batch_size=100, color=0x3366CC)
    done = run(server, graph(start_image=["large", 0], seconds=3.0) | {"large": large})
    assert "of 100 start images the first 45 are used" in notes(server)
    assert read_settings(path_of(server, done))["given_latent_frames"] == 12
    prompt = graph(source=["source", 0], seconds=1.0) | source("large") | {"large": large}
    made_from = read_settings(path_of(server, run(server, prompt)))["made_from"]["source"]
    assert made_from == {"frames": 100, "size": [832, 480], "fit": "crop"}
    none = {"large": node("TestNoImages")}
    for inputs, words in (
        ({"start_image": ["large", 0]}, "start_image has no images"),
        ({"source": ["source", 0]}, "the footage has no frames"),
        ({"control": ["control", 0]}, "the footage has no frames"),
        ({"source": ["source", 0], "height": 40}, "multiples of 16"),
    ):
        prompt = graph(**inputs) | source("file" if "height" in inputs else "large") | none
        prompt["control"] = node("LongLiveControl", strength=1.0, control_video=["large", 0])
        message = server.run(prompt).event("execution_error")["exception_message"]
        assert words in message and "\n" not in message.strip(), message


@pytest.mark.newest
def test_a_cue_begins_a_new_scene_with_an_image_of_the_input_folder(server, shot):
    """The settings name its file, another one by that name makes the video again, what is none is refused."""
    file = server.base / "input" / "a scene.png"
    Image.open(server.base / "input" / "wide.png").convert("RGB").save(file)
    prompt = graph(f"0 {BLUE}\n0.5s => image a scene.png: {BEFORE.prompt()}", seconds=1.0)
    done = run(server, prompt)
    made, settings = pixels_of(path_of(server, done)), read_settings(path_of(server, done))
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    assert settings["made_from"]["images"]["a scene.png"]["sha256"] == digest
    Image.new("RGB", (64, 64), (0, 80, 0)).save(file)
    other = pixels_of(path_of(server, run(server, prompt)))
    assert np.abs(other[9:].astype(int) - made[9:]).mean() > 10 and np.array_equal(other[:9], made[:9])
    file.unlink()
    lost, outside = (f"0 image {name}: {BLUE}" for name in ("a scene.png", "../a scene.png"))
    for text, words in ((lost, "is not in ComfyUI's input folder"), (outside, "without .. and , :")):
        failed = server.run(graph(text)).event("execution_error")
        assert failed["node_id"] == "prompts" and words in failed["exception_message"]


@pytest.mark.newest
def test_of_many_start_images_the_first_are_used(server, shot):
    done = run(server, graph(start_image=["many", 0], seconds=3.0))
    assert "of 100 start images the first 45 are used" in notes(server)
    assert read_settings(path_of(server, done))["given_latent_frames"] == 12


def controlled(strength: float, **inputs) -> dict:
    """A small random model with VACE under control of images, a mask and a reference; its latents dumped."""
    images = node("EmptyImage", width=96, height=64, batch_size=20, color=0x3366CC)
    loaded = {"checkpoint": "small_wan.safetensors", "lora": "none", "second_lora": "none"}
    loaded |= {"lora_strength": 1.0, "second_strength": 1.0}
    loaded |= {"precision": "auto", "attention": "auto", "family": "auto"}
    parts = {"model": ["model", 0], "schedule": ["prompts", 0], "vae": ["vae", 0], "control": ["control", 0]}
    wanted = {"control_video": ["images", 0], "control_masks": ["mask", 0], "reference_image": ["images", 0]}
    return {
        "model": node("LongLiveLoadModel", **(loaded | {"vace": "small_vace.safetensors"})),
        "clip": node("TestSmallClip"),
        "vae": node("VAELoader", vae_name="wan_2.1_vae.safetensors"),
        "prompts": node("LongLivePromptSchedule", clip=["clip", 0], prompts="a red star drifts over"),
        "images": images,
        "one": node("EmptyImage", width=96, height=64, batch_size=1, color=0xCC6633),
        "mask": node("SolidMask", value=1.0, width=96, height=64),
        "control": node("LongLiveControl", strength=strength, **(wanted | {"reference_image": ["one", 0]})),
        "stream": node("LongLiveStream", **parts, **({"seconds": 1.0, "seed": 3} | SIZE | inputs)),
        "dump": node("TestDump", name=f"controlled_{strength}", latent=["stream", 1]),
    }


def test_control_by_vace_changes_the_video(server, models, shot):
    latents = {}
    for strength in (0.0, 1.0):
        done = run(server, controlled(strength))
        latents[strength] = torch.load(server.base / "output" / f"controlled_{strength}.pt")
    settings = read_settings(path_of(server, done))
    assert settings["vace"] == "small_vace.safetensors"
    assert settings["control"] == {"scale": 1.0, "references": 1}
    assert not torch.equal(latents[0.0], latents[1.0]) and latents[1.0].isfinite().all()


@pytest.mark.newest
def test_control_of_a_stock_model_leaves_its_weights_alone(server, models, shot):
    """The same weights in both loaders give the same latents, also after VACE was next to them."""
    stock = node("UNETLoader", unet_name="small_wan.safetensors", weight_dtype="default")
    used = {
        "model": ["stock", 0],
        "lora": "none",
        "lora_strength": 1.0,
        "attention": "auto",
        "family": "auto",
    }
    prompt = controlled(1.0, seed=4) | {"stock": stock}
    own = prompt["model"]["inputs"]
    prompt["model"] = node("LongLiveUseModel", **used, vace=own["vace"])
    prompt["plain"] = node("LongLiveUseModel", **used)
    inputs = {name: link for name, link in prompt["stream"]["inputs"].items() if name != "control"}
    prompt["after"] = node("LongLiveStream", **(inputs | {"model": ["plain", 0]}))
    prompt["own"] = node("LongLiveLoadModel", **(own | {"vace": "none"}))
    prompt["other"] = node("LongLiveStream", **(inputs | {"model": ["own", 0]}))
    prompt["a"] = node("TestDump", name="after", latent=["after", 1])
    prompt["b"] = node("TestDump", name="other", latent=["other", 1])
    done = run(server, prompt)
    assert read_settings(path_of(server, done))["vace"] == "small_vace.safetensors"
    after, other, made = (
        torch.load(server.base / "output" / f"{name}.pt") for name in ("after", "other", "controlled_1.0")
    )
    assert torch.allclose(after, other, atol=1e-3) and not torch.allclose(made, after, atol=1e-1)


@pytest.mark.newest
def test_a_tiny_decoder_has_no_encoder(server, models, shot):
    prompt = controlled(1.0)
    prompt["vae"] = node("LongLiveLoadVAE", vae_name="taew2_1.safetensors", tiled=False)
    message = server.run(prompt).event("execution_error")["exception_message"]
    assert "connect the Wan 2.1 VAE" in message


@pytest.mark.newest
def test_a_stock_vae_encodes_the_image_that_a_video_begins_with(server, models, shot):
    prompt = controlled(0.0, start_image=["one", 0], width=0, height=0, seconds=0.5)
    prompt["stream"]["inputs"] |= {"width": 96, "height": 0}
    del prompt["dump"]
    done = run(server, prompt)
    assert pixels_of(path_of(server, done)).shape == (8, 64, 96, 3)
