"""What the packaged Mini shows, read from its pixels: the bars that matter, and the ablation's real effects.

Few videos, so that it is quick; the figures of the model card come from many.
"""

import pytest
import torch
from safetensors.torch import load_file, save_file

from longlive_core.config import Policy, WindowConfig
from longlive_core.mini.loader import VACE_NAME, WEIGHTS, Mini, load_mini
from longlive_training.evaluate import autoencoder_figures, single_prompt_figures, switch_figures
from longlive_training.evaluate_control import followed_figures, prompt_of_another_motion
from longlive_training.evaluate_given import image_figures
from longlive_training.package import package
from longlive_training.world import Attributes

VIDEOS = 8


@pytest.fixture(scope="module")
def mini() -> Mini:
    return load_mini()


@torch.inference_mode()
def test_the_autoencoder_is_sharp(mini) -> None:
    figures = autoencoder_figures(mini)
    assert figures["psnr"] >= 32 and figures["psnr_object"] >= 26


def test_one_prompt_is_followed_and_half_a_window_cannot_hold_a_motion(mini) -> None:
    whole = single_prompt_figures(mini, VIDEOS, 10)
    assert whole["colour"] >= 0.98 and whole["background"] >= 0.98
    assert whole["shape"] >= 0.95 and whole["motion"] >= 0.93 and whole["block0_shape"] >= 0.85
    half = single_prompt_figures(mini, VIDEOS, 10, WindowConfig(window_latent_frames=6))
    assert half["motion"] < whole["motion"] - 0.2


def test_a_switch_is_followed_smoothly_and_a_cut_jumps(mini) -> None:
    recache, cut = (switch_figures(mini, VIDEOS, policy) for policy in (Policy.RECACHE, Policy.CUT))
    assert recache["changed_colour_frame_8"] >= 0.95 and recache["changed_all_in_1.5s"] >= 0.9
    assert recache["seam_to_ordinary"] <= 3 < cut["seam_to_ordinary"]


def test_a_given_image_is_gone_on_from_even_when_the_prompt_names_only_its_motion(mini) -> None:
    named = image_figures(mini, VIDEOS, Attributes.prompt)
    assert named["shape"] >= 0.97 and named["without_jump"] == 1
    assert named["first_frame_psnr"] > named["autoencoder_alone_psnr"] - 1
    unnamed = image_figures(mini, VIDEOS, lambda attributes: f"it {attributes.motion}")
    assert unnamed["colour"] >= 0.9 and unnamed["shape"] >= 0.4


def test_the_shape_goes_where_a_silhouette_goes_whatever_the_prompt_says(mini) -> None:
    followed = followed_figures(mini, VIDEOS, prompt_of_another_motion)
    assert followed["place_px_median"] <= 2 and followed["motion"] >= 0.95
    assert min(followed[name] for name in ("colour", "shape", "background")) >= 0.95
    free = followed_figures(mini, VIDEOS, prompt_of_another_motion, scale=0)
    assert free["place_px_median"] > 10


def test_generators_are_averaged_when_packaged(tmp_path) -> None:
    tensors = load_file(WEIGHTS)
    name = "transformer.layers.0.ffn.0.weight"
    save_file(tensors | {name: tensors[name] + 1}, tmp_path / "other.safetensors")
    package(
        WEIGHTS, WEIGHTS, out=tmp_path / "mini.safetensors", other=tmp_path / "other.safetensors", share=0.75
    )
    averaged = load_file(tmp_path / "mini.safetensors")
    assert torch.allclose(averaged[name].float(), tensors[name].float() + 0.25, atol=1e-3)
    assert torch.equal(averaged["words.table.weight"], tensors["words.table.weight"])


def test_vace_layers_are_packaged_next_to_the_weights(tmp_path) -> None:
    layers = {f"vace.{name}": tensor for name, tensor in load_mini().transformer.vace.state_dict().items()}
    save_file(layers, tmp_path / "trained.safetensors")
    out = tmp_path / "mini.safetensors"
    package(WEIGHTS, WEIGHTS, out=out)
    assert load_mini(out).transformer.vace is None and out.read_bytes() == WEIGHTS.read_bytes()
    package(WEIGHTS, WEIGHTS, tmp_path / "trained.safetensors", out)
    again = load_mini(out).transformer.vace.state_dict()
    assert all(torch.equal(again[name.removeprefix("vace.")], tensor) for name, tensor in layers.items())
    parts = [WEIGHTS, WEIGHTS.with_name(VACE_NAME)]
    assert sum(part.stat().st_size for part in parts) < 20e6
