"""Mini tuned by a teacher: its bidirectional teacher, tuning without a film, and the table of its success."""

import json
import sys
from pathlib import Path

import pytest
import torch

from longlive_core.config import MINI
from longlive_core.mini.loader import WEIGHTS, load_mini
from longlive_training import proof, teacher, world
from longlive_training.__main__ import main
from longlive_training.distil_mini import LONG, STAGES, world_pairs
from longlive_training.teacher import CLIP, Kind, sampled, shoot
from longlive_training.transformer import frozen_autoencoder, load_generator
from longlive_training.world import Attributes, combinations, is_held_out


def run_command(monkeypatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["longlive_training", *map(str, arguments)])
    main()


def test_clips_of_the_teacher_are_those_that_a_long_video_gives() -> None:
    """A clip is a video of its own; at a change its first three latents show what was before."""
    rng, encoder = torch.Generator().manual_seed(0), frozen_autoencoder(WEIGHTS)
    for kind in Kind:
        clips = shoot(encoder, 2, kind, 32, rng)
        assert clips.latents.shape == (2, MINI.model.latent_channels, CLIP, 4, 4)
        assert clips.cells.shape == (2, CLIP, 4, 4) and clips.cells.any()
        if kind in (Kind.OPENING, Kind.MIDDLE):
            assert all(prompt.startswith("a ") for prompt in clips.prompts)
    picked = clips.pick(5, rng)
    assert len(picked.latents) == len(picked.prompts) == 5


def test_the_teacher_sees_the_whole_clip_and_leaves_the_words(tmp_path: Path, monkeypatch) -> None:
    """Trained for two steps, and resumed for a third."""
    monkeypatch.setattr(teacher, "PER_KIND", 1)
    monkeypatch.setattr(teacher, "BATCH", 2)
    for steps in (2, 3):
        run_command(monkeypatch, "teacher", "--folder", tmp_path, "--steps", steps, "--size", 32)
    before, after = load_generator(WEIGHTS), load_generator(tmp_path / "model.safetensors")
    assert torch.equal(before.words.table.weight, after.words.table.weight)
    k = "layers.0.self_attn.k.weight"
    assert not torch.equal(before.transformer.get_parameter(k), after.transformer.get_parameter(k))
    noise = torch.randn(1, MINI.model.latent_channels, CLIP, 4, 4)
    prompt = ["a red circle rests over navy"]
    one = sampled(after, prompt, noise, steps=1)
    noise[:, :, -1] += 1.0
    assert (sampled(after, prompt, noise, steps=1) - one)[:, :, 0].abs().max() > 1e-6


def test_sampling_ends_at_what_a_perfect_teacher_knows(monkeypatch) -> None:
    """Euler's method by the exact flow of one known clip gives this clip."""
    clip, noise = torch.randn(2, 4, CLIP, 2, 2), torch.randn(2, 4, CLIP, 2, 2)
    monkeypatch.setattr(
        teacher, "whole_flow", lambda model, x, t, embeds: (x - clip) / (t / 1000).view(-1, 1, 1, 1, 1)
    )
    torch.testing.assert_close(sampled(load_generator(WEIGHTS), ["a", "a"], noise), clip, atol=1e-4, rtol=0)


def test_pairs_are_of_combinations_that_are_trained_on() -> None:
    held = {attributes.prompt() for attributes in combinations() if is_held_out(attributes)}
    pairs = world_pairs(100, 0)
    assert pairs == world_pairs(100, 0) != world_pairs(100, 1)
    assert not held & {prompt for pair in pairs for prompt in pair}
    assert {follow_up.split()[0] for _, follow_up in pairs} == {"a", "it"}


def test_mini_is_tuned_without_a_film(tmp_path: Path, monkeypatch) -> None:
    """A degraded student and a teacher; a Mini is left, and no world is ever rendered."""
    degraded = tmp_path / "degraded.safetensors"
    run_command(monkeypatch, "degrade", "--out", degraded, "--noise", 0.1)
    plain, before = load_mini(WEIGHTS), load_mini(degraded)
    assert torch.equal(plain.words.table.weight, before.words.table.weight)
    weight = "layers.0.self_attn.q.weight"
    apart = before.transformer.get_parameter(weight) - plain.transformer.get_parameter(weight)
    assert apart.std() / plain.transformer.get_parameter(weight).std() == pytest.approx(0.1, rel=0.1)

    def never(*at: object) -> None:
        raise AssertionError("a world was rendered")

    monkeypatch.setattr(world, "render", never)
    options = "--student", degraded, "--teacher", WEIGHTS, "--streams", 1, "--lead", 1, "--steps", 2
    folder = tmp_path / "run"
    run_command(monkeypatch, "distil-mini", *options, "--longest", 39, "--folder", folder)
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert ["student_loss" in line for line in log] == [False, True], "the critic leads by one"
    made = load_mini(folder / "model.safetensors")
    assert torch.equal(made.words.table.weight, plain.words.table.weight)
    moved = made.transformer.get_parameter(weight) - before.transformer.get_parameter(weight)
    assert 0 < moved.abs().max() < 0.01
    assert STAGES["init"].is_short and not LONG.is_short


def test_a_teacher_of_other_words_is_refused(tmp_path: Path, monkeypatch) -> None:
    other = load_generator(WEIGHTS)
    torch.nn.init.normal_(other.words.table.weight)
    from safetensors.torch import save_file

    save_file(other.state_dict(), tmp_path / "other.safetensors")
    with pytest.raises(SystemExit, match=r"other.safetensors was trained with other words"):
        folder = "--student", WEIGHTS, "--folder", tmp_path / "run"
        run_command(monkeypatch, "distil-mini", "--teacher", tmp_path / "other.safetensors", *folder)


GOOD = {"colour": 1.0, "background": 1.0, "shape": 0.99, "motion": 0.98, "changed_all_in_1.5s": 0.9}


def test_the_table_says_which_criteria_hold() -> None:
    before = GOOD | {"shape": 0.6, "motion": 0.7}
    figures = {"teacher": GOOD, "packaged": GOOD, "before": before, "after": GOOD | {"shape": 0.95}}
    figures["clips"] = before | {"shape": 0.7}
    found = proof.criteria(figures)
    assert all(one.holds for one in found) and len(found) == 7
    assert found[4].found == "shape 0.897, motion 1.000" and found[6].found == "shape 0.256, motion 0.000"
    figures["clips"]["motion"] = 0.9
    assert not proof.criteria(figures)[6].holds, "in motion alone it is not the long videos"
    drifting = figures | {"after": GOOD | {"shape": 0.8, "latent_std_last_to_first": 1.2}, "clips": GOOD}
    drifting["teacher"] = GOOD | {"motion": 0.89}
    assert [one.holds for one in proof.criteria(drifting)] == [False, True, False, False, False, True, False]
    assert not proof.criteria(figures | {"before": GOOD})[1].holds, "a student that does not decay"
    rows = proof.table(found).splitlines()
    assert (
        rows[1] == "|---|---|---|"
        and rows[2].startswith("| teacher alone | colour 1.000")
        and "| yes |" in rows[2]
    )


def test_the_judge_sees_the_teacher_s_clips(monkeypatch) -> None:
    """A teacher that knows one film: what it shows is right, and another prompt is not."""
    shown = Attributes("red", "circle", "drifts left", "navy")
    rng, mini = torch.Generator().manual_seed(0), load_mini(WEIGHTS)
    films = world.film([shown], world.Motion.anywhere([shown], rng), 81, 64)[0]
    latents = mini.autoencoder.encode(films)
    monkeypatch.setattr(proof, "sampled", lambda model, prompts, noise: latents)
    for asked, right in ((shown, 1.0), (Attributes("blue", "star", "rests", "slate"), 0.0)):
        monkeypatch.setattr(proof, "held_out", lambda count, asked=asked: [asked])
        figures = proof.teacher_figures(load_generator(WEIGHTS), mini, 1)
        assert {figures[name] for name in ("colour", "shape", "background", "motion")} == {right}
