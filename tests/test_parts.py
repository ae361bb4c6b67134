"""A real model's files, headless: checkpoint, LoRA, text encoder, VAE, all tiny -> a video by one command."""

import hashlib
import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType

import av
import pytest
import torch
from safetensors.torch import load_file, save_file

from longlive_core.cli import EXIT_BAD_INPUT, main
from longlive_core.config import LONGLIVE_1_3B, VERSION, ModelConfig
from longlive_core.model.causal_wan import CausalWan
from longlive_core.pipeline import ModelFiles, Request, load_pipeline
from longlive_core.schedule.schedule import PromptSchedule
from longlive_core.weights.lora import LoraChoice
from longlive_core.weights.names import foreign_name
from longlive_core.weights.published import DOWNLOADS

HERE = Path(__file__).parent
SCHEDULE = "0 a red fox runs\n1s => recache: a blue fox over the snow"


def neighbour(name: str) -> ModuleType:
    """Another test file, for the tiny files that it knows how to write."""
    spec = importlib.util.spec_from_file_location(name, HERE / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> ModelFiles:
    folder, text, vae = tmp_path_factory.mktemp("model"), neighbour("test_text"), neighbour("test_vae")
    pieces = text.train_pieces(pad_id=0, eos_id=1, bos_id=2, unk_id=3)
    encoder = text.Layouts(folder, pieces).comfyui()
    text_dim = text.settings(text.GOLDEN)["dim"]
    torch.manual_seed(0)
    config = ModelConfig(dim=128, ffn_dim=64, num_heads=1, num_layers=2, text_dim=text_dim, freq_dim=32)
    state = {foreign_name(n, "wan"): t.clone() for n, t in CausalWan(config).state_dict().items()}
    state["patch_embedding.weight"] = state["patch_embedding.weight"].view(128, 16, 1, 2, 2)
    torch.save({"generator": {f"model.{n}": t for n, t in state.items()}}, folder / "longlive_base.pt")
    stem = "base_model.model.blocks.0.ffn.0.lora"
    save_file(
        {f"{stem}_A.weight": torch.randn(4, 128), f"{stem}_B.weight": torch.randn(64, 4)},
        folder / "lora.safetensors",
    )
    save_file(vae.wan_state(), folder / "Wan2.1_VAE.safetensors")
    save_file(vae.taehv_state(), folder / "taew2_1.safetensors")
    return ModelFiles(
        model=folder / "longlive_base.pt",
        text_encoder=encoder,
        vae=folder / "Wan2.1_VAE.safetensors",
        lora=(LoraChoice(folder / "lora.safetensors"),),
        device="cpu",
        embeddings=folder / "embeddings",
    )


def arguments(files: ModelFiles, out: Path, **changes: str) -> list[str]:
    """The command line that means these files."""
    schedule = out.with_suffix(".txt")
    schedule.write_text(SCHEDULE)
    options = {
        "schedule": schedule,
        "seconds": "2",
        "size": "64x48",
        "model": files.model,
        "lora": f"{files.lora[0].path}:0.5",
        "vae": files.vae,
        "text-encoder": files.text_encoder,
        "device": "cpu",
        "out": out,
    }
    return ["generate", *(f"--{name}={value}" for name, value in (options | changes).items() if value)]


@pytest.mark.parametrize("decoder", ["Wan2.1_VAE", "taew2_1"])
@pytest.mark.parametrize("precision", ["bf16", "fp8", "int8"])
def test_files_become_a_video_by_one_command(
    decoder, precision, files, tmp_path, monkeypatch, capsys
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    vae = str(files.vae.with_name(f"{decoder}.safetensors"))
    out = tmp_path / "video.mp4"
    assert main(arguments(files, out, vae=vae, precision=precision, tile="32")) == 0
    assert "2 tensors change 1 weights" in capsys.readouterr().err
    with av.open(str(out)) as video:
        frames = list(video.decode(video=0))
    assert len(frames) == 32 and (frames[0].width, frames[0].height) == (64, 48)
    assert main(["info", str(out)]) == 0
    settings = json.loads(capsys.readouterr().out)
    assert settings["model"] == LONGLIVE_1_3B.name and settings["precision"] == precision
    assert settings["checkpoint"] == "longlive_base.pt" and settings["loras"] == {"lora.safetensors": 0.5}
    assert settings["sha256"] == hashlib.sha256(files.model.read_bytes()).hexdigest()
    assert settings["version"] == VERSION and settings["torch"] == torch.__version__
    assert settings["device"] == "cpu" and settings["vae"] == Path(vae).name


def test_the_text_encoder_is_read_once_and_kept_on_disk(files, monkeypatch) -> None:
    request = Request(PromptSchedule.parse(SCHEDULE), 2.0, width=64, height=48)

    def latents() -> list[torch.Tensor]:
        pipeline = load_pipeline(**vars(files))
        return [block.latents for block in pipeline.blocks(pipeline.plan(request))]

    first = latents()
    monkeypatch.setattr("longlive_core.pipeline.load_umt5", None)  # calling it fails from now on
    second = latents()
    assert len(first) == 3 and all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_a_checkpoint_alone_says_what_else_is_needed(files, tmp_path, capsys) -> None:
    for option in ("vae", "text-encoder"):
        assert main(arguments(files, tmp_path / "v.mp4", **{option: ""})) == EXIT_BAD_INPUT
        assert f"needs --{option}" in capsys.readouterr().err


def test_info_tells_what_a_file_of_weights_is(files, capsys) -> None:
    for path, what in (
        (files.model, "a Wan text-to-video transformer"),
        (files.lora[0].path, "a LoRA"),
        (files.vae, "a VAE"),
        (files.text_encoder, "a text encoder"),
    ):
        assert main(["info", str(path)]) == 0
        assert json.loads(capsys.readouterr().out)["is"] == what


def test_the_plan_lists_what_fits(capsys) -> None:
    assert main(["plan", "--vram", "8"]) == 0
    text = capsys.readouterr().out
    assert text in (HERE.parent / "README.md").read_text(), "as the README shows it"
    assert "kv cache" in text and "tiled decoder" in text
    caches = []
    for seconds in ("5", "60"):
        assert main(["plan", "--window", "0", "--seconds", seconds]) == 0
        caches.append(float(re.search(r"kv cache +([0-9.]+)", capsys.readouterr().out).group(1)))
    assert caches[1] > 10 * caches[0] > 10 * 3.22, "full attention holds all of the video"
    assert main(["plan", "--model=nobody"]) == EXIT_BAD_INPUT


def test_the_readme_says_what_each_model_needs(capsys) -> None:
    """In its table of models: the totals of `plan` in bf16 and in fp8."""
    readme = (HERE.parent / "README.md").read_text()
    rows = [line for line in readme.splitlines() if line.startswith("| `") and line.endswith(" GiB |")]
    assert len(rows) == 5
    for row in rows:
        models = re.findall(r"`([-.\w]+)`", row.split("|")[1].replace("`-1step", "`causal-forcing-1step"))
        pairs = re.findall(r"([0-9.]+) / ([0-9.]+)", row.rpartition(" | ")[2])
        for model, pair in zip(
            [f"causal-forcing{m}" if m == "-1step" else m for m in models], pairs * 2, strict=False
        ):
            for precision, total in zip(("bf16", "fp8"), pair, strict=True):
                assert main(["plan", "--model", model, "--precision", precision]) == 0
                planned = re.search(r"total +([0-9.]+)", capsys.readouterr().out).group(1)
                assert float(total) == round(float(planned), 1), (model, precision)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
@pytest.mark.parametrize("device", ["nonsense", "cuda"])
def test_a_device_that_is_not_here_is_one_sentence(device, files, tmp_path, capsys) -> None:
    assert main(arguments(files, tmp_path / "v.mp4", device=device)) == EXIT_BAD_INPUT
    assert f"device '{device}' cannot be used" in capsys.readouterr().err or device == "nonsense"
    assert main(["plan", "--device=nonsense"]) == EXIT_BAD_INPUT
    assert "'nonsense' is not a device" in capsys.readouterr().err


def test_a_download_is_loaded_by_its_name(files, tmp_path) -> None:
    """Where `longlive download` put the files; what is missing there is named."""
    with pytest.raises(ValueError, match=r"longlive-1.3b needs .*run longlive download longlive-1.3b"):
        load_pipeline("longlive-1.3b", folder=tmp_path)
    torch.save(load_file(files.lora[0].path), tmp_path / "lora.pt")
    sources = {"diffusion_models": files.model, "loras": tmp_path / "lora.pt", "vae": files.vae}
    for file in DOWNLOADS["longlive-1.3b"]:
        target = tmp_path / file.kind / file.name
        target.parent.mkdir(exist_ok=True)
        target.symlink_to(sources.get(file.kind, files.text_encoder))
    notes = []
    options = {"device": "cpu", "embeddings": files.embeddings, "on_note": notes.append}
    pipeline = load_pipeline("longlive-1.3b", folder=tmp_path, **options)
    assert pipeline.source["checkpoint"] == "longlive_base.pt"
    assert pipeline.source["loras"] == {"longlive_lora.pt": 1.0} and "2 tensors change 1 weights" in notes[0]


def test_python_refuses_what_the_command_line_refuses() -> None:
    with pytest.raises(ValueError, match=r"--vae, --precision cannot be used with the built-in model mini"):
        load_pipeline("mini", vae=Path("vae.pt"), precision="fp8")
    with pytest.raises(ValueError, match=r"'nobody' is neither a file nor one of mini, sgf-plus, .*longlive"):
        load_pipeline("nobody")
    with pytest.raises(ValueError, match="unknown speed 'warp'"):
        load_pipeline("mini", speed="warp")
    notes = []
    assert load_pipeline("mini", speed="graphs", on_note=notes.append).speed == "compiled"
    assert "graphs was replaced by compiled" in notes[0]
    assert load_pipeline("mini", attention="sdpa-flash", on_note=notes.append).source["attention"] == "auto"
    assert "sdpa-flash was replaced by auto" in notes[1] and len(notes) == 2
