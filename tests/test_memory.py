"""The memory plan against what runs really allocate."""

import json
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch

from longlive_core.config import LONGLIVE_1_3B, ModelConfig, Preset, TinyAutoencoderConfig, WindowConfig
from longlive_core.geometry import latent_size, tokens_per_frame
from longlive_core.memory import (
    GIB,
    LiveBytes,
    Needs,
    Setting,
    bounded,
    decoder_bytes,
    estimate,
    fitting,
    layers_bytes,
    run_passes,
    smaller,
    transformer_bytes,
)
from longlive_core.model.causal_wan import CausalWan
from longlive_core.rollout.scene import Scene
from longlive_core.vae.streaming import StreamingDecoder
from longlive_core.vae.tiled import TiledDecoder, num_tiles
from longlive_core.vae.tiny import TinyAutoencoder

RESULTS = Path(__file__).parents[1] / "benchmarks/results/gpu.json"
SMALL = Preset(
    "small",
    ModelConfig(dim=256, ffn_dim=1024, num_heads=2, num_layers=3, text_dim=64, text_tokens=32),
    autoencoder=None,
)
CPU, CUDA = torch.device("cpu"), torch.device("cuda")
SIZE = (128, 96)
TINY = TinyAutoencoderConfig(widths=(32, 16, 16, 16), memory_blocks=(1, 1, 1))


@pytest.mark.parametrize("window", [WindowConfig(), WindowConfig(endless=True), WindowConfig(3, 1, 7)])
def test_the_plan_of_a_transformer_is_what_a_run_allocates(window: WindowConfig) -> None:
    needs = estimate(SMALL, Setting(*SIZE, "fp32", "tiny", window), CPU)
    model, cells = CausalWan(SMALL.model).requires_grad_(False), latent_size(*SIZE)
    with torch.inference_mode(), LiveBytes() as held:
        text = model.encode_text(torch.ones(1, SMALL.model.text_tokens, SMALL.model.text_dim))
        scene = Scene(model, torch.zeros(1, 16, window.block_latent_frames, *cells), window, 0)
        scene.append(torch.zeros(1, 16, scene.cache.frames, *cells))
    with torch.inference_mode(), LiveBytes() as passes:
        run_passes(scene, text, window)
    assert needs.weights == sum(tensor.nbytes for tensor in model.state_dict().values())
    assert needs.kv_cache + needs.text == pytest.approx(held.now, rel=0.02)
    assert needs.working >= 0.9 * passes.peak


@pytest.mark.parametrize("num_layers", [1, 2, 3, 7])
@pytest.mark.parametrize(
    "window",
    [
        WindowConfig(),
        WindowConfig(endless=True),
        WindowConfig(has_small_cache=True),
        WindowConfig(3, 0, 30),
    ],
    ids=str,
)
def test_few_layers_tell_what_all_take(window: WindowConfig, num_layers: int) -> None:
    config = replace(SMALL.model, num_layers=num_layers)
    asked = config, window, SIZE, torch.bfloat16
    assert transformer_bytes(*asked) == layers_bytes(*asked)


def test_the_plan_of_a_decoder_is_what_decoding_allocates() -> None:
    mini = replace(SMALL, autoencoder=TINY)
    needs = estimate(mini, Setting(*SIZE, "fp32"), CPU)
    decoder = TinyAutoencoder(mini.autoencoder)
    stream, latents = StreamingDecoder(decoder), torch.zeros(1, 16, 3, *latent_size(*SIZE))
    with LiveBytes(has_copies=True) as live:
        for _ in range(2):
            stream.push(latents)
    held = sum(tensor.nbytes for tensor in decoder.state_dict().values()) + live.now
    assert needs.decoder + needs.decoder_past == pytest.approx(held, rel=0.02)
    assert needs.beside_weights == needs.kv_cache + needs.text + needs.decoder_past + needs.working
    passing = transformer_bytes(mini.model, WindowConfig(), SIZE, torch.float32)[2]  # goes on meanwhile
    assert needs.working - passing == pytest.approx(live.peak - live.now, rel=0.1)


def test_the_cache_of_the_real_model_is_its_arithmetic() -> None:
    """2 buffers x 30 layers x 12 latent frames x 1,560 tokens x 1,536 values x 2 bytes."""
    needs = estimate(LONGLIVE_1_3B, Setting(832, 480, decoder="tiny"), CUDA)
    frames = 12 * tokens_per_frame(*latent_size(832, 480)) * 1536 * 2
    assert needs.kv_cache == pytest.approx(2 * 30 * frames, rel=0.01)
    assert needs.weights == pytest.approx(1_418_996_800 * 2, rel=0.001)
    assert needs.total == needs.weights + needs.decoder + needs.beside_weights


@pytest.mark.parametrize("decoder", ["tiny", "wan"])
def test_the_plan_is_what_a_card_measured(decoder) -> None:
    """benchmarks/gpu.py, end to end at 832x480, compiled."""
    measured = json.loads(RESULTS.read_text())["cases"][f"all {decoder}"]["peak_gib"]
    setting = Setting(832, 480, decoder=decoder, speed="compiled")
    assert estimate(LONGLIVE_1_3B, setting, CUDA).total / GIB == pytest.approx(measured, rel=0.03)
    assert next(islice(smaller(setting), 1, None)) == replace(setting, speed="plain")


def test_smaller_settings_need_less() -> None:
    needs = [
        estimate(SMALL, Setting(*SIZE, precision, decoder, window), CUDA).total
        for precision, decoder, window in (
            ("bf16", "wan", WindowConfig()),
            ("fp8", "wan", WindowConfig()),
            ("fp8", "tiny", WindowConfig()),
            ("fp8", "tiny", WindowConfig(window_latent_frames=6)),
        )
    ]
    assert needs == sorted(needs, reverse=True) and len(set(needs)) == len(needs)


def test_only_settings_within_the_budget_are_offered_and_the_wanted_one_comes_first() -> None:
    wanted = Setting(*SIZE)
    assert next(smaller(wanted)) == wanted
    everything = list(fitting(SMALL, wanted, 2**40, CUDA))
    assert everything[0][0] == wanted
    budget = sorted(needs.total for _, needs in everything)[1]
    assert [needs.total <= budget for _, needs in fitting(SMALL, wanted, budget, CUDA)] == [True, True]
    assert not list(fitting(SMALL, wanted, 0, CUDA))


def test_full_attention_is_planned_for_all_its_frames() -> None:
    full = WindowConfig(3, 0, None)
    assert bounded(WindowConfig(), 40) == WindowConfig()
    assert bounded(full, 40) == WindowConfig(3, 0, 120)
    with pytest.raises(ValueError, match="full attention"):
        estimate(SMALL, Setting(*SIZE, window=full), CUDA)


def test_a_portrait_stays_one() -> None:
    sizes = [(setting.width, setting.height) for setting in smaller(Setting(480, 832))]
    assert all(width < height for width, height in sizes) and (192, 320) in sizes


def test_windows_that_cannot_be_are_not_offered() -> None:
    wanted = Setting(*SIZE, window=WindowConfig(6, 3, 24))
    assert {setting.window.window_latent_frames for setting in smaller(wanted)} == {24, 9}


def test_a_tiled_decoder_keeps_the_pasts_of_all_tiles_on_a_cpu() -> None:
    size, tiny = (512, 272), replace(SMALL, autoencoder=TINY)
    asked = tiny, "tiled", 3, size, torch.float32
    decoder = TinyAutoencoder(TINY)
    stream = StreamingDecoder(TiledDecoder(decoder, past_device="cpu"))
    latents = torch.zeros(1, 16, 3, *latent_size(*size))
    with LiveBytes() as live:
        for _ in range(2):
            stream.push(latents)
    held = live.now
    assert decoder_bytes(*asked, is_cpu=True)[1] == pytest.approx(held, rel=0.05)
    assert decoder_bytes(*asked)[1] == pytest.approx(held / num_tiles(*latent_size(*size)), rel=0.05)


def test_the_table_adds_up() -> None:
    lines = Needs(2**30, 2**29, 0, 0, 0, 0).lines()
    assert lines[0].split() == ["weights", "1.00", "GiB"] and lines[-1].split() == ["total", "1.50", "GiB"]
