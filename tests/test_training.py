"""Training sees what inference does; the world keeps its promises; a run resumes where it stopped."""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.testing import assert_close

from longlive_core.config import CONTEXT_CHANNELS, MINI, Policy
from longlive_core.mini.loader import WEIGHTS
from longlive_core.model.vace import ControlledWan
from longlive_core.rollout.rollout import recache
from longlive_core.rollout.scene import Scene
from longlive_training.card import with_figures
from longlive_training.control import fresh_vace, shoot_followed
from longlive_training.episodes import BLOCK, Episodes, Kind, unnamed_prompt
from longlive_training.forcing import Layout, plan, plan_unchanged
from longlive_training.judge import position_steps, read
from longlive_training.muon import orthogonalised
from longlive_training.runs import MuonAndAdam, Run, exponential_average
from longlive_training.transformer import (
    Generator,
    by_pass,
    frozen_autoencoder,
    given_frames,
    load_generator,
    predict,
)
from longlive_training.tuning import Stage, Trajectory, clock_of
from longlive_training.world import (
    VALUES,
    Attributes,
    Motion,
    change_prompt,
    combinations,
    film,
    is_held_out,
    random_attributes,
    random_change,
    vocabulary,
)

PROMPTS = ("a red circle rests over navy", "a red circle rests over navy", "it turns blue")


def test_teacher_forcing_computes_what_the_cached_rollout_computes() -> None:
    """Every noisy pass, before and after early, late and belated switches, against the cached rollout."""
    for recached, switch in ((3, 3), (6, 6), (5, 7)):
        torch.manual_seed(switch)
        rng = torch.Generator().manual_seed(0)
        model = Generator().eval()
        latents = torch.randn(1, MINI.model.latent_channels, 11 * BLOCK, 4, 4)
        episodes = Episodes(
            latents, torch.zeros(1, 11 * BLOCK, 4, 4, dtype=torch.bool), [PROMPTS], switch, Kind.NEAR
        )
        with torch.no_grad():
            for block, ours in noisy_flows(model, episodes, plan(recached, switch, Kind.NEAR, rng, 12)):
                assert_close(ours, cached_flow(model, latents, block, recached), atol=1e-4, rtol=1e-4)


def noisy_flows(model: Generator, episodes: Episodes, layout: Layout) -> Iterator[tuple[int, Tensor]]:
    """Block and flow of every noisy pass, all of them computed at once."""
    is_noisy = torch.tensor([one.is_noisy for one in layout.passes]).repeat_interleave(BLOCK)
    sigmas = torch.where(is_noisy, 0.8, 0.0)[None]
    flow = predict(model, by_pass(episodes.latents, layout, 2), sigmas, layout, episodes, gap=0)
    for index, one in enumerate(layout.passes):
        if one.is_noisy:
            yield one.block, flow[:, :, index * BLOCK : (index + 1) * BLOCK]


def test_teacher_forcing_of_an_image_computes_what_the_rollout_does_with_a_given_frame() -> None:
    torch.manual_seed(0)
    model, rng = Generator().eval(), torch.Generator().manual_seed(0)
    latents = torch.randn(1, MINI.model.latent_channels, 11 * BLOCK, 4, 4)
    episodes = Episodes(latents, torch.zeros(1, 11 * BLOCK, 4, 4), [PROMPTS], 3, Kind.IMAGE)
    layout = plan(3, 3, Kind.IMAGE, rng, 8)
    given = given_frames(layout, 1)
    is_noisy = torch.tensor([p.is_noisy for p in layout.passes]).repeat_interleave(BLOCK)
    sigmas = torch.where(is_noisy & ~given, 0.8, 0.0)[None]
    scene = Scene(model.transformer, latents[:, :, :BLOCK], MINI.window, 0)
    scene.open(0, BLOCK)
    with torch.no_grad():
        flow = predict(model, by_pass(latents, layout, 2), sigmas, layout, episodes, gap=0)
        text = model.transformer.encode_text(model.words([PROMPTS[0]]))
        cached = scene.flow(latents[:, :, :BLOCK], 0.8, text, num_clean=1)
    asked = [index for index, one in enumerate(layout.passes) if one.is_noisy and one.block == 0]
    assert len(asked) == 2 and given.sum() == 2, "block 0 is asked for twice, and its first frame is given"
    for index in asked:
        assert_close(flow[:, :, index * BLOCK : (index + 1) * BLOCK], cached, atol=1e-4, rtol=1e-4)


def test_teacher_forcing_of_a_given_past_computes_what_the_rollout_does_with_it() -> None:
    """Blocks that are given are computed together, under the prompt that goes on from them."""
    torch.manual_seed(0)
    model, rng = Generator().eval(), torch.Generator().manual_seed(0)
    latents = torch.randn(1, MINI.model.latent_channels, 11 * BLOCK, 4, 4)
    prompts = [(PROMPTS[2],) * 3]
    episodes = Episodes(latents, torch.zeros(1, 11 * BLOCK, 4, 4), prompts, 6, Kind.FOOTAGE)
    layout = plan_unchanged(6, 3, rng, 8)
    is_noisy = torch.tensor([p.is_noisy for p in layout.passes]).repeat_interleave(BLOCK)
    sigmas = torch.where(is_noisy, 0.8, 0.0)[None]
    with torch.no_grad():
        flow = predict(model, by_pass(latents, layout, 2), sigmas, layout, episodes, gap=0)
        asked = [index for index, one in enumerate(layout.passes) if one.is_noisy]
        assert {layout.passes[index].block for index in asked} == {3, 4, 5}
        for index in asked:
            ours = flow[:, :, index * BLOCK : (index + 1) * BLOCK]
            cached = cached_flow(model, latents, layout.passes[index].block, 3)
            assert_close(ours, cached, atol=1e-4, rtol=1e-4)


def test_what_a_prompt_leaves_unnamed() -> None:
    assert unnamed_prompt("a red circle drifts left over navy") == "it drifts left"
    assert unnamed_prompt("it circles") == "it circles" and unnamed_prompt("it goes on") == "it goes on"


def test_teacher_forcing_under_control_computes_what_the_controlled_rollout_computes() -> None:
    for recached, switch in ((3, 3), (6, 7)):
        torch.manual_seed(switch)
        model, rng = Generator().eval(), torch.Generator().manual_seed(0)
        model.transformer.vace = fresh_vace(model.transformer)
        for layer in model.transformer.vace.layers:
            torch.nn.init.normal_(layer.after_proj.weight, std=0.1)
        latents = torch.randn(1, MINI.model.latent_channels, 11 * BLOCK, 4, 4)
        context = torch.randn(1, CONTEXT_CHANNELS, 11 * BLOCK, 4, 4)
        cells = torch.zeros(1, 11 * BLOCK, 4, 4)
        episodes = Episodes(latents, cells, [PROMPTS], switch, Kind.NEAR, context)
        with torch.no_grad():
            for block, ours in noisy_flows(model, episodes, plan(recached, switch, Kind.NEAR, rng, 8)):
                cached = cached_flow(model, latents, block, recached, context)
                assert_close(ours, cached, atol=1e-4, rtol=1e-4)
                assert not torch.allclose(cached, cached_flow(model, latents, block, recached), atol=1e-2)


def test_silhouettes_show_where_the_shape_of_the_video_is() -> None:
    rng = torch.Generator().manual_seed(0)
    autoencoder = frozen_autoencoder(WEIGHTS)
    episodes = shoot_followed(autoencoder, 2, 4, Kind.IMAGE, 64, rng)
    context = episodes.context.float()
    assert context.shape == (2, CONTEXT_CHANNELS, 33, 8, 8) and context[:, 32:, 1:].eq(1).all()
    assert context[:, 32:, 0].eq(0).all(), "the first frame is given"
    assert torch.equal(context[:, :16, 0].half(), episodes.latents[:, :, 0])
    with torch.no_grad():
        shown = [autoencoder.decode(part.float())[0] for part in (context[:, 16:32], episodes.latents)]
    far = []
    for white, frames in zip(*shown, strict=True):
        is_free = read(white).mass < 0.05
        both = torch.stack((read(white).place, read(frames).place), dim=1).flatten(0, 1)
        far.append(position_steps(both)[::2][~is_free][5:])
    assert len(torch.cat(far)) > 129 and torch.cat(far).median() < 1


def cached_flow(
    model: Generator,
    latents: torch.Tensor,
    block: int,
    switch: int,
    context: torch.Tensor | None = None,
) -> torch.Tensor:
    """The flow of a block by inference: committed block by block, recached at the switch."""
    transformer = model.transformer
    if context is not None:
        transformer = ControlledWan(transformer, lambda index, _: context.split(BLOCK, dim=2)[index])
    scene = Scene(transformer, latents[:, :, :BLOCK], MINI.window, 0)
    text = transformer.encode_text(model.words([PROMPTS[0]]))
    for past in range(block):
        if past == switch:
            text = transformer.encode_text(model.words([PROMPTS[2]]))
            recache(scene, text, Policy.RECACHE)
        clean = latents[:, :, past * BLOCK : (past + 1) * BLOCK]
        if context is not None:
            scene.control(transformer.context_of(past, False))
        scene.open(past * BLOCK, BLOCK)
        scene.fill_cache(clean, text)
        scene.append(clean)
    if block == switch:
        text = transformer.encode_text(model.words([PROMPTS[2]]))
        recache(scene, text, Policy.RECACHE)
    if context is not None:
        scene.control(transformer.context_of(block, False))
    scene.open(block * BLOCK, BLOCK)
    return scene.flow(latents[:, :, block * BLOCK : (block + 1) * BLOCK], 0.8, text)


def test_streaming_tuning_trains_on_what_its_own_rollout_left_in_the_cache(monkeypatch) -> None:
    """The pass with gradients sees what the rollout's pass saw; a switch recaches and trains on."""
    monkeypatch.setattr("longlive_training.tuning.VIDEOS", 2)
    torch.manual_seed(0)
    flows, seen, step = [], [], Trajectory.on_step
    monkeypatch.setattr(Trajectory, "on_step", lambda *at: (flows.append(at[3]), step(*at)))
    model = load_generator(WEIGHTS)
    trained = model.transformer.forward
    monkeypatch.setattr(
        model.transformer, "forward", lambda *inputs: seen.append(trained(*inputs)) or seen[-1]
    )
    stage = Stage(model, frozen_autoencoder(WEIGHTS), torch.Generator().manual_seed(1), 64)
    for is_switch in (False, False, True):
        stage.segment_left = 0 if is_switch else 9
        del flows[:], seen[:]
        loss, error = stage.next_block()
        loss.backward()
        assert loss.isfinite() and 0 <= error <= 1
        with_gradient = [flow for flow in seen if flow.requires_grad]
        assert with_gradient and all(
            any(torch.allclose(flow, made, atol=1e-4) for made in flows) for flow in with_gradient
        )
    assert model.transformer.layers[0].self_attn.k.weight.grad.abs().max() > 0
    assert stage.scene.end == 3 * BLOCK


def test_every_prompt_is_made_of_known_words_and_fits() -> None:
    rng = torch.Generator().manual_seed(0)
    words = set(vocabulary())
    for _ in range(300):
        before = random_attributes(rng)
        after = random_change(rng, before)
        for prompt in (before.prompt(), change_prompt(before, after)):
            assert set(prompt.split()) <= words and len(prompt.split()) <= MINI.model.text_tokens


def test_held_out_combinations_are_an_eighth_and_leave_every_word_in_training() -> None:
    held = [c for c in combinations() if is_held_out(c)]
    trained = [c for c in combinations() if not is_held_out(c)]
    assert len(combinations()) == 672 and len(held) == 84
    for name, values in VALUES.items():
        assert {getattr(c, name) for c in trained} == set(values)


def test_a_switch_fades_and_the_shape_goes_on() -> None:
    before = Attributes("red", "circle", "drifts right", "navy")
    after = Attributes("blue", "star", "drifts right", "navy")
    rng = torch.Generator().manual_seed(0)
    frames, places = film([before], Motion.at_start(1, rng), 30, 64, [after], 12)
    steps = ((places.diff(dim=1) + 0.5) % 1 - 0.5).norm(dim=-1) * 64
    assert steps.max() < 1.31 and frames.min() >= 0 and frames.max() <= 1
    middle = [
        frame[:, int(p[1] * 64) % 64, int(p[0] * 64) % 64]
        for frame, p in zip(frames[0], places[0], strict=True)
    ]
    assert middle[11][0] > 0.8 and middle[18][2] > 0.9


def test_clocks_are_read_from_paths() -> None:
    rng = torch.Generator().manual_seed(0)
    for motion in ("circles", "bounces"):
        moving = Motion.anywhere([Attributes("red", "circle", motion, "navy")], rng)
        _, places = film([Attributes("red", "circle", motion, "navy")], moving, 24, 64)
        period = 48 if motion == "circles" else 32
        off = (clock_of(places[0], motion) - float(moving.clock - 1)) % period
        assert min(off, period - off) <= 3


def test_muon_updates_are_nearly_orthogonal() -> None:
    generator = torch.Generator().manual_seed(0)
    for shape in ((3, 16, 16), (2, 8, 32), (2, 32, 8)):
        values = torch.linalg.svdvals(orthogonalised(torch.randn(shape, generator=generator)))
        assert values.min() > 0.3 and values.max() < 1.6


def test_a_run_resumes_where_it_stopped(tmp_path) -> None:
    def steps(count: int, total: int) -> Run:
        torch.manual_seed(0)
        model = torch.nn.ModuleDict({"layers": torch.nn.ModuleList([torch.nn.Linear(4, 4)])})
        wrapped = torch.nn.ModuleDict({"transformer": model})
        optimizer = MuonAndAdam(wrapped, 1e-2)
        run = Run(tmp_path, wrapped, optimizer, exponential_average(wrapped, 0.9), total)
        for _ in range(count):
            torch.manual_seed(run.step)
            loss = wrapped["transformer"]["layers"][0](torch.randn(8, 4)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            run.after_step(loss=float(loss.detach()))
        run.save()
        return run

    steps(3, 10)
    resumed = steps(3, 10)
    assert resumed.step == 6
    (tmp_path / "last.pt").unlink()
    whole = steps(6, 10)
    for one, other in zip(resumed.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_the_model_card_keeps_the_figures_that_were_not_measured_again() -> None:
    empty = "before\n<!-- figures -->\n<!-- /figures -->\nafter\n"
    card = with_figures(empty, {"one": {"a": 1.0}, "two": {"b": 0.5}})
    card = with_figures(card, {"two": {"b": 0.25, "c": 3}})
    table = [
        "| videos | figure | value |",
        "|---|---|---|",
        "| one | a | 1 |",
        "| two | b | 0.25 |",
        "| two | c | 3 |",
    ]
    assert card == "\n".join(["before", "<!-- figures -->", *table, "<!-- /figures -->", "after", ""])
