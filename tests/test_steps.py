"""Fewer denoising steps than the model was trained on: which they are, what they make, where it is kept."""

import json
from dataclasses import replace

import pytest
import torch

from longlive_core.cli import main
from longlive_core.config import MINI, PRESETS, SigmaConfig
from longlive_core.pipeline import Pipeline, Request, load_pipeline
from longlive_core.resume import Ending
from longlive_core.rollout.noise import shifted_sigmas
from longlive_core.rollout.rollout import Hook
from longlive_core.schedule.schedule import PromptSchedule

RED = "a red circle drifts right over navy"
SCHEDULE = PromptSchedule.parse(f"0 {RED}\n1s => it turns into a blue star")
STEPS = {4: (1000, 750, 500, 250), 3: (1000, 750, 250), 2: (1000, 500)}


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return load_pipeline("mini")


class Counting(Hook):
    def __init__(self):
        self.steps = []

    def on_step(self, block, step, flow, clean):
        self.steps.append((block, step))


@torch.inference_mode()
def made(pipeline: Pipeline, hook: Hook | None = None, ending: Ending | None = None, **request):
    """Frames [F, H, W, 3] and latents [1, C, T, H, W] of two seconds."""
    chunks = list(pipeline.run(pipeline.plan(Request(SCHEDULE, 2.0, seed=3, **request)), hook, ending=ending))
    return torch.cat([c.frames for c in chunks]), torch.cat([c.block.latents for c in chunks], dim=2)


@pytest.fixture(scope="module")
def usual(pipeline) -> tuple[torch.Tensor, torch.Tensor]:
    """What is made in all steps."""
    return made(pipeline)


@pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS)
def test_every_preset_can_leave_steps_out(preset) -> None:
    sigmas = preset.sigmas
    possible = STEPS if len(sigmas.steps) == 4 else {len(sigmas.steps): sigmas.steps}
    assert {count: sigmas.fewer(count).steps for count in sigmas.choices} == possible
    assert sigmas.fewer(len(sigmas.steps)) is sigmas


def test_what_is_left_keeps_its_noise_levels() -> None:
    config = SigmaConfig((900, 600, 400, 100), shift=8.0)
    trained = shifted_sigmas(config)
    assert shifted_sigmas(config.fewer(3)) == (trained[0], trained[1], trained[3])
    assert shifted_sigmas(config.fewer(2)) == (trained[0], trained[2])


@pytest.mark.parametrize(
    ("steps", "asked", "allowed"),
    [((1000, 750, 500, 250), bad, "4 or 3 or 2") for bad in (5, 1, 0, -1)]
    + [((1000, 500), 4, "2"), ((1000, 500), 3, "2"), ((1000, 800, 600, 400, 200), 3, "5")],
)
def test_other_numbers_are_refused_with_those_that_are_possible(pipeline, steps, asked, allowed) -> None:
    other = replace(pipeline, preset=replace(MINI, sigmas=SigmaConfig(steps)))
    sentence = f"^{asked} denoising steps a block are not possible; choose {allowed}$"
    with pytest.raises(ValueError, match=sentence):
        other.plan(Request(SCHEDULE, 2.0, steps=asked))


@pytest.mark.parametrize("steps", STEPS)
def test_fewer_steps_are_those_of_a_preset_that_has_no_more(pipeline, usual, steps) -> None:
    other = replace(pipeline, preset=replace(MINI, sigmas=SigmaConfig(STEPS[steps])))
    hook = Counting()
    ours, theirs = made(pipeline, hook, steps=steps), made(other)
    assert all(map(torch.equal, ours, theirs)) and len(ours[0]) == 32
    assert hook.steps == [(block, step) for block in range(3) for step in range(steps)]
    assert torch.equal(ours[1], usual[1]) == (steps == 4)


def test_a_video_says_how_many_steps_it_was_made_in(pipeline) -> None:
    asked = Request(SCHEDULE, 2.0)
    assert pipeline.plan(asked).settings()["steps"] == 4
    plan = pipeline.plan(replace(asked, steps=2))
    assert plan.settings()["steps"] == len(plan.sigmas) == 2


def test_a_state_is_continued_in_another_number_of_steps(pipeline) -> None:
    """And back again; only new blocks are made otherwise."""
    ending, again = Ending(), Ending()
    made(pipeline, ending=ending)
    fewer = made(pipeline, ending=again, state=ending.state, steps=2)
    assert len(fewer[0]) == 32 and torch.isfinite(fewer[1]).all()
    assert not torch.equal(fewer[1], made(pipeline, state=ending.state)[1])
    assert len(made(pipeline, state=again.state)[0]) == 32


def test_the_command_makes_fewer_steps_and_writes_it_down(tmp_path, capsys) -> None:
    out = tmp_path / "v.mp4"
    arguments = ["generate", "--prompt", RED, "--seconds", "1", "--out", str(out)]
    for options, steps in (([], 4), (["--steps", "3"], 3)):
        assert main([*arguments, *options]) == 0
        capsys.readouterr()
        assert main(["info", str(out)]) == 0
        assert json.loads(capsys.readouterr().out)["steps"] == steps


def test_the_command_names_the_numbers_it_takes(tmp_path, capsys) -> None:
    out = tmp_path / "v.mp4"
    with pytest.raises(SystemExit) as ended:
        main(["generate", "--prompt", RED, "--seconds", "1", "--steps", "5", "--out", str(out)])
    assert ended.value.code == 2 and not out.exists()
    assert "--steps: invalid choice: 5 (choose from 4, 3, 2)" in capsys.readouterr().err
