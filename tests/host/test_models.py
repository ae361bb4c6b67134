"""Models from files and from stock nodes, in a real ComfyUI: small random ones in the published layouts."""

import hashlib
import json
import os
import re
import shutil
from pathlib import Path
from urllib.parse import urlencode

import av
import pytest
import torch

from longlive_core.config import VERSION
from longlive_core.output.video import read_settings

FOLDER = Path(__file__).parents[2] / "workflows"
WORKFLOWS = sorted(file for model in ("longlive", "sgf") for file in FOLDER.glob(f"{model}_*.json"))
PROMPTS = "0 a red star drifts over\n0.5s => a blue circle\n"
SIZE = 32
SECONDS = 1.5  # 24 frames: 7 latent frames in 3 blocks
SHORT = {"width": 16, "height": 16, "seconds": 0.75}  # two blocks: a VAE of true size is slow here
CHANGED = 0.01  # a LoRA changes latents by more than this
SAME = 1e-4
ROUNDED = 1e-5
DECODED = 1e-3


def node(kind: str, **inputs) -> dict:
    return {"class_type": kind, "inputs": inputs}


def own_model(checkpoint: str = "small_wan.safetensors", lora: str = "none", **options) -> dict:
    """LongLiveLoadModel."""
    inputs = {"lora_strength": 1.0, "second_lora": "none", "second_strength": 1.0, "precision": "fp32"}
    inputs |= {"attention": "sdpa", "family": "auto", "checkpoint": checkpoint, "lora": lora}
    return node("LongLiveLoadModel", **{**inputs, **options})


def stock_model(name: str = "small_wan.safetensors") -> dict:
    return node("UNETLoader", unet_name=name, weight_dtype="default")


def stock_lora(model: str, strength: float = 1.0) -> dict:
    lora = {"lora_name": "small_lora.safetensors", "strength_model": strength}
    return node("LoraLoaderModelOnly", model=[model, 0], **lora)


def shared(model: str, lora: str = "none", **options) -> dict:
    """LongLiveUseModel."""
    inputs = {"lora": lora, "lora_strength": 1.0, "attention": "sdpa", "family": "auto"}
    return node("LongLiveUseModel", model=[model, 0], **{**inputs, **options})


def stream(model: str, seed: int = 4, **inputs) -> dict:
    sizes = {"width": SIZE, "height": SIZE, "seconds": SECONDS, "seed": seed}
    links = {"model": [model, 0], "schedule": ["schedule", 0], "vae": ["vae", 0]}
    return node("LongLiveStream", **{**links, **sizes, **inputs})


def dump(name: str, **link) -> dict:
    return node("TestDump", name=name, **link)


def graph(**nodes: dict) -> dict:
    """A prompt with the small CLIP, its schedule and the tiny decoder in it."""
    return {
        "clip": node("TestSmallClip"),
        "schedule": node("LongLivePromptSchedule", clip=["clip", 0], prompts=PROMPTS),
        "vae": node("LongLiveLoadVAE", vae_name="taew2_1.safetensors", tiled=False),
        **nodes,
    }


def run(server, prompt: dict):
    done = server.run(prompt)
    assert done.has_succeeded, done.event("execution_error")["exception_message"]
    return done


def dumped(server, name: str) -> torch.Tensor:
    return torch.load(server.base / "output" / f"{name}.pt")


def error_of(server, prompt: dict) -> str:
    """What the page shows when a prompt fails whose video nobody saves."""
    saved = {"saved": dump("never", latent=["video", 1])}
    return server.run(prompt | saved).event("execution_error")["exception_message"]


@pytest.fixture(scope="session")
def latents(server, models) -> dict[str, torch.Tensor]:
    """The same video by every way into the pack."""
    ways = {
        "own": {"own": own_model("longlive_base.pt")},
        "own_lora": {"own_lora": own_model("longlive_base.pt", "longlive_lora.pt")},
        "stock": {"unet": stock_model("longlive_base.pt"), "stock": shared("unet")},
        "stock_lora": {"lora": stock_lora("unet"), "stock_lora": shared("lora")},
        "shared_lora": {"shared_lora": shared("unet", "longlive_lora.pt")},
        "own_mapped": {"own_mapped": own_model("small_wan.safetensors")},
        "stock_mapped": {"mapped": stock_model("small_wan.safetensors"), "stock_mapped": shared("mapped")},
    }
    prompt = graph()
    for name, nodes in ways.items():
        prompt |= nodes
        prompt |= {f"{name}_video": stream(name), f"{name}_out": dump(name, latent=[f"{name}_video", 1])}
    done = run(server, prompt)
    assert any("no LoRA was given" in text for text in done.texts)
    return {name: dumped(server, name) for name in ways}


def test_stock_and_own_loader_give_the_same_latents(latents):
    assert latents["own"].shape == (1, 16, 9, SIZE // 8, SIZE // 8)
    assert torch.equal(latents["own"], latents["stock"])
    assert torch.equal(latents["stock"], latents["stock_mapped"])
    # where the file lies in memory as it is on disk, numbers are not aligned, and products round otherwise
    torch.testing.assert_close(latents["own_mapped"], latents["stock_mapped"], atol=ROUNDED, rtol=ROUNDED)


def test_a_stock_lora_changes_the_video_as_ours_does(latents):
    assert (latents["stock"] - latents["stock_lora"]).abs().mean() > CHANGED
    torch.testing.assert_close(latents["stock_lora"], latents["own_lora"], atol=SAME, rtol=SAME)


def test_the_published_lora_which_stock_nodes_skip_is_applied_to_a_stock_model(latents):
    assert torch.equal(latents["shared_lora"], latents["stock_lora"])


def test_weights_are_shared_counted_and_freed(server, models):
    prompt = graph(
        unet=stock_model(),
        stock=shared("unet"),
        own=own_model(),
        video=stream("stock", seed=5),
        other=stream("own", seed=5),
        look=node(
            "TestInspect", name="stock", model=["stock", 0], host_model=["unet", 0], after=["video", 1]
        ),
        see=node("TestInspect", name="own", model=["own", 0], after=["other", 1]),
    )
    run(server, prompt)
    stock, own = (
        json.loads((server.base / "output" / f"{name}.json").read_text()) for name in ("stock", "own")
    )
    assert stock["shared"] > 0.9 * stock["size"]
    assert own["size"] == own["weights"]
    assert own["freed"] and stock["freed"]
    assert "Requested to load LongLiveWeights" in server.log


def decoding(vae: dict) -> dict:
    """Latents decoded by our node, by the stock node, and as a video."""
    return graph(
        own=own_model(),
        vae=vae,
        video=stream("own", seed=6, **SHORT),
        ours=node("LongLiveDecode", latent=["video", 1], vae=["vae", 0]),
        theirs=node("VAEDecode", samples=["video", 1], vae=["vae", 0]),
        first=dump("ours", image=["ours", 0]),
        second=dump("theirs", image=["theirs", 0]),
        kept=node("SaveVideo", video=["video", 0], filename_prefix="decoded", format="auto", codec="auto"),
    )


def frames_of(path) -> torch.Tensor:
    """The frames [F, H, W, 3] of a video in [0, 1]."""
    with av.open(str(path)) as container:
        pictures = [torch.from_numpy(frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]
    return torch.stack(pictures) / 255


def test_streamed_decode_is_the_hosts_decode_of_the_whole(server, models):
    done = run(server, decoding(node("VAELoader", vae_name="wan_2.1_vae.safetensors")))
    ours, theirs = dumped(server, "ours"), dumped(server, "theirs")
    assert ours.shape == theirs.shape == (21, 16, 16, 3)
    assert ours.std() > 0.05, "a picture with something in it"
    assert (ours - theirs).abs().max() < DECODED
    video = frames_of(server.path_of(done.outputs["kept"]["images"][0]))
    assert (video - ours[: len(video)]).abs().mean() < 0.05, "the stream decodes the same latents"


def test_the_hosts_tiny_decoder_is_shared_too(server, models):
    loader = server.get("/object_info/VAELoader")["VAELoader"]
    if "lighttaew2_1.safetensors" not in loader["input"]["required"]["vae_name"][0]:
        pytest.skip("this ComfyUI knows no tiny video decoders")
    run(server, decoding(node("VAELoader", vae_name="lighttaew2_1.safetensors")))
    ours, theirs = dumped(server, "ours"), dumped(server, "theirs")
    assert (ours - theirs.clamp(0, 1)).abs().max() < DECODED


@pytest.mark.parametrize(("name", "tiled"), [("wan_2.1_vae", False), ("taew2_1", True)])
def test_own_vae_decodes_for_stock_nodes(server, models, name, tiled):
    run(server, decoding(node("LongLiveLoadVAE", vae_name=f"{name}.safetensors", tiled=tiled)))
    assert torch.equal(dumped(server, "ours"), dumped(server, "theirs"))


def test_a_video_from_the_stock_encoder_is_continued(server, models):
    prompt = graph(
        own=own_model(),
        vae=node("VAELoader", vae_name="wan_2.1_vae.safetensors"),
        video=stream("own", seed=7, **SHORT),
        pictures=node("VAEDecode", samples=["video", 1], vae=["vae", 0]),
        encoded=node("VAEEncode", pixels=["pictures", 0], vae=["vae", 0]),
        more=stream("own", seed=8, continue_from=["encoded", 0], **SHORT),
        first=dump("encoded", latent=["encoded", 0]),
        second=dump("more", latent=["more", 1]),
    )
    run(server, prompt)
    encoded, more = dumped(server, "encoded"), dumped(server, "more")
    assert torch.equal(more[:, :, : encoded.shape[2]], encoded)
    assert (encoded.shape[2], more.shape[2]) == (6, 9)


def test_the_hosts_clip_reads_the_schedule(server, models):
    prompt = graph(
        seen=dump("schedule", longlive_schedule=["schedule", 0]),
        stock=node("CLIPTextEncode", clip=["clip", 0], text="a blue circle"),
        shown=dump("stock", conditioning=["stock", 0]),
    )
    run(server, prompt)
    ours, stock = dumped(server, "schedule")["a blue circle"], dumped(server, "stock")
    assert stock.shape == (1, 512, 4096) and torch.equal(ours, stock.float().cpu())
    assert not ours[0, 100:].any() and ours[0, 0].any()


def test_out_of_memory_is_explained_and_the_server_goes_on(server, models):
    broken = graph(
        own=own_model(),
        worse=node("TestBreakMemory", model=["own", 0], passes=5),
        video=stream("worse", seed=9),
    )
    message = error_of(server, broken)
    assert "not enough memory for 32x32, fp32, tiny decoder, window 12" in message
    assert re.search(r"weights 0\.\d\d GiB, kv cache .* total", message) and "what should fit" in message
    kept = re.search(r"the first (\S+) s are kept as (\S+\.mp4)", message)
    assert float(kept[1]) == 0.6 and kept[2].startswith("output/longlive/"), "no folder of the user's"
    assert len(frames_of(server.base / kept[2])) == 9
    fine = graph(own=own_model(), video=stream("own", seed=9), out=dump("after", latent=["video", 1]))
    run(server, fine)
    assert dumped(server, "after").isfinite().all()


def test_fp8_files_and_8_bits_of_every_kind_run(server, models, latents):
    prompt = graph(
        unet=stock_model("small_wan_fp8.safetensors"),
        stock=shared("unet"),
        packed=own_model("small_wan_fp8.safetensors", precision="fp8"),
        own=own_model(precision="fp8"),
        quick=own_model(precision="fp8-fast"),
        int8=own_model(precision="int8"),
    )
    names = ("stock", "packed", "own", "quick", "int8")
    for name in names:
        prompt |= {
            f"{name}_video": stream(name),
            f"{name}_out": dump(f"fp8_{name}", latent=[f"{name}_video", 1]),
        }
    run(server, prompt)
    for name in names:
        found = dumped(server, f"fp8_{name}")
        correlation = torch.corrcoef(torch.stack((found.flatten(), latents["own"].flatten())))[0, 1]
        assert correlation > 0.98, name


@pytest.mark.newest
def test_a_changed_file_is_loaded_again(server, models):
    path = models / "diffusion_models" / "small_wan.safetensors"
    prompt = graph(
        own=own_model(precision="bf16"), video=stream("own", seed=10), out=dump("x", latent=["video", 1])
    )
    assert "own" not in run(server, prompt).event("execution_cached")["nodes"]
    assert "own" in run(server, prompt).event("execution_cached")["nodes"]
    os.utime(path)
    assert "own" not in run(server, prompt).event("execution_cached")["nodes"]


def test_width_and_height_are_the_models_own_unless_set(server, models):
    info = server.get("/object_info/LongLiveStream")["LongLiveStream"]["input"]["required"]
    assert info["width"][1]["default"] == info["height"][1]["default"] == 0
    assert info["width"][1]["min"] == 0
    prompt = graph(mini=node("LongLiveLoadMini"))
    prompt["schedule"]["inputs"]["clip"] = ["mini", 1]
    prompt["video"] = stream("mini", width=0, height=0, vae=["mini", 2])
    prompt["out"] = dump("mini", latent=["video", 1])
    run(server, prompt)
    assert dumped(server, "mini").shape[-2:] == (8, 8)


def test_a_frame_wise_file_is_known_by_its_metadata(server, models):
    stock = {"unet": stock_model("small_ar.safetensors"), "stock": shared("unet")}
    prompt = graph(own=own_model("small_ar.safetensors"), **stock)
    for name in ("own", "stock"):
        prompt |= {
            f"{name}_video": stream(name, seed=12),
            f"{name}_out": dump(name, latent=[f"{name}_video", 1]),
        }
    done = run(server, prompt)
    assert any(text.startswith("causal-forcing-framewise, fp32") for text in done.texts)
    assert dumped(server, "own").shape[2] == 7, "blocks of one latent frame"
    if not server.version.startswith("0.3."):  # older ones do not read these metadata
        assert dumped(server, "stock").shape[2] == 7


def test_a_lora_is_found_by_its_publishers_name_as_a_browser_saves_it(server, models, latents):
    ours = models / "loras" / "longlive_lora.pt"
    theirs = ours.rename(ours.with_name("lora.pt"))
    try:
        own = own_model("longlive_base.pt", ours.name)
        run(server, graph(own=own, video=stream("own"), out=dump("renamed", latent=["video", 1])))
    finally:
        theirs.rename(ours)
    assert torch.equal(dumped(server, "renamed"), latents["own_lora"])


def test_two_sets_of_weights_make_a_video_with_lora_and_window(server, models):
    own = own_model("small_sgf_plus.safetensors", "small_lora.safetensors", precision="fp8")
    sink = node("LongLiveFrameSink", window=9, sink=3, on_switch="auto", positions="auto")
    prompt = graph(own=own, sink=sink, video=stream("own", window=["sink", 0]))
    done = run(server, prompt | {"out": dump("pair", latent=["video", 1])})
    assert any(text.startswith("sgf-plus-chunkwise, fp8") for text in done.texts)
    assert any("both sets of weights are changed alike" in text for text in done.texts)
    assert torch.isfinite(dumped(server, "pair")).all()
    prompt["sink"]["inputs"]["positions"] = "absolute"
    assert "choose auto or endless" in error_of(server, prompt)


def test_a_merged_file_is_saved_and_every_loader_reads_it(server, models):
    asked = own_model("longlive_base.pt", "longlive_lora.pt", precision="bf16", save_merged="merged")
    save = {"video": ["video", 0], "filename_prefix": "merged", "format": "auto", "codec": "auto"}
    prompt = graph(own=asked, video=stream("own", 15, **SHORT), saved=node("SaveVideo", **save))
    (note,) = run(server, prompt).outputs["own"]["text"]
    assert "40 tensors change" in note and "merged.safetensors is written" in note
    before = (models / "diffusion_models" / "merged.safetensors").read_bytes()
    asked["inputs"]["lora_strength"] = 0.5
    (note,) = run(server, prompt).outputs["own"]["text"]
    assert "merged.safetensors exists and was not written" in note
    assert (models / "diffusion_models" / "merged.safetensors").read_bytes() == before
    ways = {
        "merged": own_model("merged.safetensors", precision="fp32"),
        "unet": stock_model("merged.safetensors"),
    }
    prompt = graph(**ways, stock=shared("unet"))
    for name in ("merged", "stock"):
        prompt[f"{name}_video"] = stream(name, 15, **SHORT)
        prompt[f"{name}_out"] = dump(name, latent=[f"{name}_video", 1])
    done = run(server, prompt)
    assert server.version.startswith("0.3.6") or not any("no LoRA was given" in text for text in done.texts)
    assert torch.equal(dumped(server, "merged"), dumped(server, "stock"))
    asked["inputs"]["save_merged"] = "../merged"
    assert "without folders" in error_of(server, graph(own=asked, video=stream("own")))


@pytest.mark.parametrize("way", ["LongLiveLoadModel", "LongLiveUseModel"])
def test_choices_of_older_workflows_run_with_a_note(server, models, way):
    """A speed too, which is then compiled: in tests/browser/test_browser.py."""
    old = {"attention": "sdpa-cudnn"}
    made = {"made": own_model(**old)}
    if way == "LongLiveUseModel":
        made = {"unet": stock_model(), "made": shared("unet", **old)}
    prompt = graph(**made, video=stream("made", seed=13, **SHORT | {"seconds": 0.56}))
    save = {"video": ["video", 0], "filename_prefix": "old", "format": "auto", "codec": "auto"}
    done = run(server, prompt | {"saved": node("SaveVideo", **save)})
    (note,) = done.outputs["made"]["text"]
    assert "attention sdpa-cudnn was replaced by auto" in note
    assert len(frames_of(server.path_of(done.outputs["saved"]["images"][0]))) == 9


def test_the_page_asks_how_long_the_blocks_of_a_model_are(server, models):
    folder = models / "diffusion_models"

    def answer(checkpoint: str, family: str = "auto") -> int:
        query = urlencode({"checkpoint": checkpoint, "family": family})
        return server.get(f"/longlive/block?{query}")["latent_frames"]

    (models / "sgf_framewise.pt").write_bytes(b"")
    (folder / "broken.safetensors").write_bytes(b"no header")
    shutil.copy(folder / "small_wan.safetensors", folder / "sgf_framewise_small.safetensors")
    shutil.copy(folder / "small_wan.safetensors", folder / "replaced.safetensors")
    names = ("small_wan.safetensors", "small_ar.safetensors", "sgf_framewise_small.safetensors")
    assert [answer(name) for name in names] == [3, 1, 1]
    assert answer("replaced.safetensors") == 3
    shutil.copy(folder / "small_ar.safetensors", folder / "replaced.safetensors")
    assert answer("replaced.safetensors") == 1
    assert answer("SGF+ (download)") == 3
    assert answer("small_wan.safetensors", "sgf-framewise") == answer("", "causal-forcing-2step") == 1
    assert answer("small_ar.safetensors", "self-forcing") == 3
    stock = [server.get(f"/longlive/block?family=auto&stock={name}")["latent_frames"] for name in names]
    assert stock == [3, 1, 3], "a stock loader's file is known by its metadata alone"
    query = "family=sgf-framewise&stock=small_wan.safetensors"
    assert server.get(f"/longlive/block?{query}") == {"latent_frames": 1}
    outside = (
        "../sgf_framewise.pt",
        str(models / "sgf_framewise.pt"),
        "framewise.pt",
        "broken.safetensors",
        "",
    )
    assert {answer(name) for name in outside} == {3}
    assert server.get("/longlive/block") == {"latent_frames": 3}


def test_an_unknown_speed_or_attention_is_refused(server, models):
    for name, sentence in (("speed", "unknown speed 'warp'"), ("attention", "attention backend 'warp'")):
        prompt = graph(own=own_model(**{name: "warp"}), video=stream("own"))
        assert sentence in error_of(server, prompt)


def test_a_video_names_what_it_was_made_with(server, models):
    own = {"own": own_model("small_wan.safetensors", "longlive_lora.pt"), "one": stream("own", 14, **SHORT)}
    stock = {"unet": stock_model(), "stock": shared("unet"), "other": stream("stock", 14, **SHORT)}
    dumps = {name: dump(name, latent=[name, 1]) for name in ("one", "other")}
    outputs = run(server, graph(**own, **stock) | {f"{n}_out": d for n, d in dumps.items()}).outputs
    one, other = (read_settings(server.path_of(outputs[n]["longlive_video"][0])) for n in dumps)
    system = server.get("/system_stats")["system"]
    for settings in (one, other):
        assert settings["version"] == VERSION and settings["torch"] == system["pytorch_version"]
        assert (settings["device"], settings["precision"], settings["speed"]) == ("cpu", "fp32", "plain")
    file = models / "diffusion_models" / "small_wan.safetensors"
    assert one["checkpoint"] == file.name and one["loras"] == {"longlive_lora.pt": 1.0}
    assert one["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert (other["model_class"], other["is_patched"], other["loras"]) == ("WAN21", False, {})
    if not server.version.startswith("0.3.6"):  # which keeps no name of the file
        assert other["checkpoint"] == file.name


def test_wrong_parts_end_in_one_sentence(server, models):
    unet = {"unet": stock_model("small_i2v.safetensors"), "own": shared("unet"), "video": stream("own")}
    assert "this MODEL is a Wan image-to-video model" in error_of(server, graph(**unet))
    flash = graph(own=own_model(attention="flash2"), video=stream("own"))
    assert "needs an NVIDIA GPU; choose sdpa" in error_of(server, flash)
    i2v = graph(own=own_model("small_i2v.safetensors"), video=stream("own"))
    assert "small_i2v.safetensors is a Wan image-to-video model" in error_of(server, i2v)
    pair = graph(own=own_model("small_sgf_plus.safetensors", family="sgf-framewise"), video=stream("own"))
    assert "two sets of weights and sgf-framewise has one" in error_of(server, pair)
    half = {"unet": stock_model("small_sgf_plus.safetensors")}
    half["own"] = shared("unet", family="sgf-plus-chunkwise")
    assert "load the file with LongLive: Load Model" in error_of(server, graph(**half, video=stream("own")))
    mini = graph(mini=node("LongLiveLoadMini"), own=own_model(), video=stream("own", vae=["mini", 2]))
    assert "connect the VAE that belongs to the model" in error_of(server, mini)
    pixels = graph(own=own_model(), vae=node("VAELoader", vae_name="pixel_space"), video=stream("own"))
    assert "this VAE cannot decode a stream" in error_of(server, pixels)
    words = graph(mini=node("LongLiveLoadMini"), own=own_model(), video=stream("own"))
    words["schedule"]["inputs"]["clip"] = ["mini", 1]
    assert "encoded 64 wide and this model takes 4096" in error_of(server, words)
    run(server, graph(own=own_model(), video=stream("own", seed=11), out=dump("good", latent=["video", 1])))


@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.stem)
def test_workflow_runs_on_files_of_these_names(server, models, object_info, comfy, file):
    prompt = comfy.shortened(comfy.as_prompt(json.loads(file.read_text()), object_info), SHORT["seconds"])
    for key, named in prompt.items():
        if named["class_type"] == "LongLiveStream":
            named["inputs"] |= SHORT
        if named["class_type"] == "CLIPLoader":
            assert named["inputs"]["type"] in object_info["CLIPLoader"]["input"]["required"]["type"][0]
            prompt[key] = node("TestSmallClip")
    done = run(server, prompt)
    (saved,) = (done.outputs[key] for key in prompt if prompt[key]["class_type"] == "SaveVideo")
    assert len(frames_of(server.path_of(saved["images"][0]))) == 12


def test_the_published_files_are_fetched_by_a_choice_in_the_loader(server, models, latents):
    places = {"models/longlive_base.pt": models / "diffusion_models" / "longlive_base.pt"}
    places["models/lora.pt"] = models / "loras" / "longlive_lora.pt"
    for name, place in places.items():
        server.hub.files[f"Efficient-Large-Model/LongLive-1.3B/{name}"] = place.read_bytes()
        place.unlink()
    asked = own_model("LongLive-1.3B (download)")
    refused = error_of(server, graph(own=asked, video=stream("own")))
    assert "accept_licence is off" in refused and "CC-BY-NC-SA" in refused
    (models / "diffusion_models" / "sgf_plus_chunkwise.pt").unlink()
    free = error_of(server, graph(own=own_model("SGF+ (download)"), video=stream("own")))
    assert "Self_Gradient_Forcing_Plus) says Apache-2.0" in free and "The hub gives the licence of" in free
    assert not any(place.exists() for place in places.values())
    asked["inputs"]["accept_licence"] = True
    run(server, graph(own=asked, video=stream("own"), out=dump("fetched", latent=["video", 1])))
    assert all(place.exists() for place in places.values())
    assert torch.equal(dumped(server, "fetched"), latents["own_lora"])
