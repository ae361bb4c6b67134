"""What the packaged Mini shows, read from its pixels: the bars that matter, and the ablation's real effects.

Few videos, so that it is quick; the figures of the model card come from many.
"""

import pytest
import torch

from longlive_core.config import Policy, WindowConfig
from longlive_core.mini.loader import Mini, load_mini
from longlive_training.evaluate import autoencoder_figures, single_prompt_figures, switch_figures

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
