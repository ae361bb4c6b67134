"""The second run of a graph in a real ComfyUI, only its seed changed: nothing is done twice."""

import pytest

SIZE = {"width": 16, "height": 16, "seconds": 0.56}  # one block
OPTIONS = {"lora": "none", "lora_strength": 1.0, "attention": "auto", "family": "auto"}
FILE = {**OPTIONS, "second_lora": "none", "second_strength": 1.0, "checkpoint": "small_wan.safetensors"}
NOTES = ("compil", "eagerly")


def node(kind: str, **inputs) -> dict:
    return {"class_type": kind, "inputs": inputs}


def graph(seed: int, speed: str) -> dict:
    """Mini, a checkpoint and a shared MODEL, each with the VAE that is usual with it."""
    links = {"schedule": ["schedule", 0], "seed": seed, **SIZE}
    prompts = "0 a red star drifts over"
    return {
        "clip": node("TestSmallClip"),
        "schedule": node("LongLivePromptSchedule", clip=["clip", 0], prompts=prompts),
        "mini": node("LongLiveLoadMini"),
        "words": node("LongLivePromptSchedule", clip=["mini", 1], prompts=prompts),
        "own": node("LongLiveLoadModel", precision="fp32", speed=speed, **FILE),
        "tiny": node("LongLiveLoadVAE", vae_name="taew2_1.safetensors", tiled=False),
        "unet": node("UNETLoader", unet_name="small_wan.safetensors", weight_dtype="default"),
        "stock": node("LongLiveUseModel", model=["unet", 0], speed=speed, **OPTIONS),
        "vae": node("VAELoader", vae_name="wan_2.1_vae.safetensors"),
        "one": node(
            "LongLiveStream", model=["mini", 0], vae=["mini", 2], **links | {"schedule": ["words", 0]}
        ),
        "two": node("LongLiveStream", model=["own", 0], vae=["tiny", 0], **links),
        "three": node("LongLiveStream", model=["stock", 0], vae=["vae", 0], **links),
        **{f"{name}_out": node("TestDump", name=name, latent=[name, 1]) for name in ("one", "two", "three")},
    }


def counted(server, prompt: dict) -> tuple[dict, list[str]]:
    """What the server did for a prompt, and what it reported of compiling."""
    server.get("/test/counts")
    done = server.run(prompt)
    assert done.has_succeeded, done.event("execution_error")["exception_message"]
    seen = server.get("/test/counts")
    own = tuple(map(str, (server.base / "output", server.base / "temp", "/proc", "/sys")))
    seen["read"] = [path for path in seen["read"] if not path.startswith(own)]
    notes = [note for run in server.get("/longlive/runs")["runs"][:3] for note in run["notes"]]
    return seen, [text for text in [*done.texts, *notes] if any(word in text for word in NOTES)]


@pytest.mark.parametrize("speed", ["plain", "compiled"])
def test_nothing_is_read_compiled_chosen_or_reported_again(server, models, speed):
    first, notes = counted(server, graph(1, speed))
    assert first["calls"]["shared_transformer"] == first["calls"]["load_transformer"] == 1
    assert bool(notes) == (speed == "compiled")
    again, repeated = counted(server, graph(2, speed))
    assert again == {"calls": {}, "read": [], "graphs": 0}
    assert not repeated


def test_the_models_may_be_unloaded_between_the_runs(server, models):
    counted(server, graph(3, "plain"))
    video = server.base / "output" / "three.pt"
    kept = video.read_bytes()
    server.post("/free", {"unload_models": True})
    assert counted(server, graph(4, "plain"))[0]["calls"] == {}
    assert video.read_bytes() != kept
    counted(server, graph(3, "plain"))
    assert video.read_bytes() == kept
