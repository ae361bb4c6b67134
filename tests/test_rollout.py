"""Switch policies, endless positions, continuing, determinism and failures, on a tiny random model."""

import pytest
import torch
from torch.testing import assert_close

from longlive_core.config import SWITCH_POLICIES, ModelConfig, Policy, SigmaConfig, WindowConfig
from longlive_core.model.attention import BACKENDS, attention_backend
from longlive_core.model.causal_wan import CausalWan, LayerCalls
from longlive_core.rollout.noise import SeededNoise, shifted_sigmas
from longlive_core.rollout.rollout import Hook, RolloutError, Switch, rollout

CONFIG = ModelConfig(
    dim=48, ffn_dim=96, num_heads=2, num_layers=3, text_dim=8, text_tokens=4, freq_dim=16, latent_channels=4
)
SHAPE = (1, 4, 3, 4, 6)
DEFAULT_WINDOW = WindowConfig()
SIGMAS = shifted_sigmas(SigmaConfig())
PROMPTS = torch.randn(2, 1, 4, 8, generator=torch.Generator().manual_seed(5))


@pytest.fixture(scope="module")
def model(loud_model) -> CausalWan:
    return loud_model(CONFIG)


def one_prompt(block: int) -> Switch | None:
    return None if block else Switch(PROMPTS[0])


def make(model, count=8, window=DEFAULT_WINDOW, seed=0, shape=SHAPE, switch=None, **options) -> torch.Tensor:
    def script(block):
        if block == options.get("start", 0):
            return Switch(PROMPTS[0])
        return Switch(PROMPTS[1], switch[1]) if switch and block == switch[0] else None

    blocks = range(options.get("start", 0), options.get("start", 0) + count)
    made = rollout(
        model,
        script,
        SeededNoise(seed, shape),
        SIGMAS,
        window,
        blocks,
        options.get("past"),
        options.get("hook"),
    )
    return torch.cat([block.latents for block in made], dim=2)


@pytest.fixture(scope="module")
def plain(model) -> torch.Tensor:
    """The video that others are compared with."""
    return make(model)


def test_same_seed_same_latents_other_seed_other_latents(model, plain) -> None:
    assert torch.equal(plain, make(model))
    assert not torch.allclose(plain, make(model, seed=1))


def test_a_shorter_video_is_the_beginning_of_a_longer_one(model, plain) -> None:
    assert torch.equal(make(model, 3), plain[:, :, :9])


@pytest.mark.parametrize("policy", SWITCH_POLICIES)
def test_blocks_before_a_switch_do_not_know_of_it(model, plain, policy) -> None:
    switched = make(model, switch=(5, policy))
    assert torch.equal(plain[:, :, :15], switched[:, :, :15])
    assert not torch.allclose(plain[:, :, 15:18], switched[:, :, 15:18])


def test_policies_differ_after_a_late_switch(model) -> None:
    late = [make(model, switch=(6, policy))[:, :, 18:] for policy in SWITCH_POLICIES]
    for i, one in enumerate(late):
        for other in late[i + 1 :]:
            assert not torch.allclose(one, other, atol=1e-4)


def test_while_the_past_fits_the_window_recache_and_refresh_are_the_same(model) -> None:
    assert torch.equal(make(model, switch=(4, Policy.RECACHE)), make(model, switch=(4, Policy.REFRESH)))


def test_a_cut_is_a_new_video_under_the_new_prompt(model) -> None:
    class SameNoise:
        def __call__(self, block, step):
            return SeededNoise(0, SHAPE)(block % 4, step)

    def script(block):
        return {0: Switch(PROMPTS[1]), 4: Switch(PROMPTS[1], Policy.CUT)}.get(block)

    made = list(rollout(model, script, SameNoise(), SIGMAS, WindowConfig(), range(8)))
    assert [b.opens_scene for b in made] == [True, False, False, False, True, False, False, False]
    assert torch.equal(made[0].latents, made[4].latents) and torch.equal(made[3].latents, made[7].latents)


def test_endless_equals_absolute_until_the_first_eviction(model, plain) -> None:
    endless = make(model, window=WindowConfig(endless=True))
    assert_close(endless[:, :, :12], plain[:, :, :12])
    assert not torch.allclose(endless[:, :, 12:], plain[:, :, 12:], atol=1e-4)


def test_endless_does_not_depend_on_how_far_the_video_is(model) -> None:
    """With the sink at a bounded distance, only relative positions matter: no end, no drift of the clock."""
    window = WindowConfig(endless=True, sink_latent_frames=0, window_latent_frames=6)
    near = make(model, 3, window, past=make(model, 2), start=2)
    assert torch.isfinite(near).all()


@pytest.mark.parametrize(
    "window",
    [
        WindowConfig(1, 1, 4),
        WindowConfig(3, 0, 9),
        WindowConfig(3, 1, 7),
        WindowConfig(2, 2, 9, endless=True),
        WindowConfig(3, 3, None),
        WindowConfig(3, 3, 6),
        WindowConfig(3, 4, 12),
        WindowConfig(1, 4, 6, endless=True, positions_latent_frames=9),
    ],
)
@pytest.mark.parametrize("switch", [None, (3, Policy.RECACHE), (7, Policy.REFRESH)])
def test_any_window_sink_and_block(model, window, switch) -> None:
    shape = (2, 4, window.block_latent_frames, 4, 6)
    assert torch.isfinite(make(model, 9, window, shape=shape, switch=switch)).all()


@pytest.mark.parametrize("window", [WindowConfig(), WindowConfig(3, 1, 7), WindowConfig(endless=True)])
def test_a_batch_is_its_samples_side_by_side(model, window) -> None:
    class Doubled:
        def __call__(self, block, step):
            return torch.cat([SeededNoise(seed, SHAPE)(block, step) for seed in (0, 1)])

    def script(block):
        return {0: Switch(PROMPTS[0]), 6: Switch(PROMPTS[1])}.get(block)

    both = torch.cat([b.latents for b in rollout(model, script, Doubled(), SIGMAS, window, range(8))], dim=2)
    for seed in (0, 1):
        alone = make(model, window=window, seed=seed, switch=(6, Policy.RECACHE))
        assert_close(both[seed : seed + 1], alone, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_near_fp32(model, plain, dtype) -> None:
    torch.manual_seed(0)
    half = CausalWan(CONFIG).eval().to(dtype)
    half.load_state_dict(model.state_dict())
    exact = plain[:, :, :15]
    error = (make(half, 5) - exact).float()
    assert error.square().mean().sqrt() < 0.05 * exact.std()


def test_a_continued_video_goes_on_where_it_was(model) -> None:
    """Of a short past everything is recomputed, so the next block is the one of the uninterrupted video."""
    whole = make(model, 2)
    goes_on = make(model, 1, past=whole[:, :, :3], start=1)
    assert_close(goes_on, whole[:, :, 3:6], atol=1e-4, rtol=1e-4)


def test_a_past_in_blocks_goes_on_bit_for_bit(model, plain) -> None:
    """Committed one after the other, however many; what is beyond them begins the first block."""
    for window in (DEFAULT_WINDOW, WindowConfig(3, 3, 6)):
        whole = plain if window is DEFAULT_WINDOW else make(model, window=window)
        past = whole[:, :, :18].split(3, dim=2)
        assert torch.equal(make(model, 2, window, past=past, start=6), whole[:, :, 18:])
        around = make(model, 1, window, past=(*past, whole[:, :, 18:20]), start=6)
        assert torch.equal(around[:, :, :2], whole[:, :, 18:20])


@pytest.mark.parametrize("frames", [1, 2, 3, 5, 13, 20])
def test_given_frames_are_kept_and_the_rest_is_made(model, frames) -> None:
    past = torch.randn(1, 4, frames, 4, 6, generator=torch.Generator().manual_seed(3))
    beyond, seen = frames % 3, []

    class Steps(Hook):
        def on_step(self, block, step, flow, clean):
            seen.append(clean[:, :, :beyond].clone())

    made = make(model, 2, past=past, start=frames // 3, hook=Steps())
    assert torch.equal(made[:, :, :beyond], past[:, :, frames - beyond :])
    assert all(torch.equal(clean, made[:, :, :beyond]) for clean in seen[:4])
    other = make(model, 2, past=past + 0.1, start=frames // 3)
    assert not torch.allclose(made[:, :, beyond:], other[:, :, beyond:], atol=1e-3), "they matter"


@pytest.mark.parametrize("frames", [1, 2, 3])
def test_a_cut_with_given_frames_is_a_new_video_around_them(model, frames) -> None:
    """As many as a block has are the block: it is committed, and nothing is made."""
    given = torch.randn(1, 4, frames, 4, 6, generator=torch.Generator().manual_seed(3))
    first, steps = frames // 3, []

    class Steps(Hook):
        def on_step(self, block, step, flow, clean):
            steps.append(block)

    def made(switches: dict[int, Switch], blocks: range, past: torch.Tensor | None = None) -> torch.Tensor:
        def noise(block: int, step: int) -> torch.Tensor:
            return SeededNoise(0, SHAPE)(block % 4, step)

        video = rollout(model, switches.get, noise, SIGMAS, DEFAULT_WINDOW, blocks, past, Steps())
        return torch.cat([block.latents for block in video], dim=2)

    new = made({first: Switch(PROMPTS[1])}, range(first, 4), given)
    steps.clear()
    cut = made({0: Switch(PROMPTS[0]), 4: Switch(PROMPTS[1], Policy.CUT, given)}, range(8))
    assert torch.equal(cut[:, :, :12], make(model, 4)) and torch.equal(cut[:, :, 12 : 12 + frames], given)
    assert torch.equal(cut[:, :, 12 + 3 * first :], new)
    assert steps.count(4) == (0 if first else 4)
    at_once = made({0: Switch(PROMPTS[1], Policy.CUT, given)}, range(4))
    assert torch.equal(at_once, cut[:, :, 12:]), "a video may begin so"


def test_a_pass_in_many_parts_has_the_same_given_frames(model) -> None:
    """Of large sizes the tokens go through a layer in parts; each has the noise level of its own frames."""
    past = torch.randn(1, 4, 2, 4, 6, generator=torch.Generator().manual_seed(3))
    whole, most = make(model, 2, past=past), model.max_tokens
    model.max_tokens = 4
    try:
        assert_close(make(model, 2, past=past), whole, atol=1e-4, rtol=1e-4)
    finally:
        model.max_tokens = most


def test_a_block_with_given_frames_runs_outside_compiled_layers(model, monkeypatch) -> None:
    """Its parts have other sizes, for which something would have to be compiled."""
    sizes = set()

    def forward(layer, x, *inputs):
        sizes.add(x.shape[1])
        return layer(x, *inputs)

    monkeypatch.setattr(model, "_calls", LayerCalls(forward))
    past = torch.randn(1, 4, 1, 4, 6, generator=torch.Generator().manual_seed(3))
    make(model, 3, past=past)
    assert sizes == {3 * 6}


def test_the_hook_sees_every_step_and_can_stop(model) -> None:
    class Stop(Exception):
        pass

    class Counting(Hook):
        def __init__(self):
            self.steps = []

        def on_step(self, block, step, flow, clean):
            self.steps.append((block, step))
            if block == 2:
                raise Stop

    hook, kept = Counting(), []
    with pytest.raises(Stop):
        for block in rollout(
            model, one_prompt, SeededNoise(0, SHAPE), SIGMAS, DEFAULT_WINDOW, range(9), hook=hook
        ):
            kept.append(block)
    assert len(kept) == 2 and hook.steps == [(b, s) for b in (0, 1) for s in range(4)] + [(2, 0)]


class Order(Hook):
    def __init__(self):
        self.seen: list[str] = []

    def on_commit(self, block, cache) -> None:
        self.seen.append(f"commit {block}")


def test_the_frames_of_a_block_do_not_wait_for_its_commit(model) -> None:
    hook, right = Order(), make(model, 5, switch=(3, Policy.CUT))

    def script(block):
        return {0: Switch(PROMPTS[0]), 3: Switch(PROMPTS[1], Policy.CUT)}.get(block)

    made = []
    for block in rollout(model, script, SeededNoise(0, SHAPE), SIGMAS, DEFAULT_WINDOW, range(5), hook=hook):
        hook.seen.append(f"block {block.index}")
        made.append(block.latents)
    assert hook.seen == [f"{event} {i}" for i in range(5) for event in ("block", "commit")]
    assert torch.equal(torch.cat(made, dim=2), right)


def test_not_finite_output_names_the_block_and_keeps_the_rest(model) -> None:
    def noise(block, step):
        return SeededNoise(0, SHAPE)(block, step) * (float("nan") if block == 3 else 1.0)

    kept = []
    with pytest.raises(RolloutError, match="block 3") as caught:
        for block in rollout(
            model, lambda b: None if b else Switch(PROMPTS[0]), noise, SIGMAS, WindowConfig(), range(9)
        ):
            kept.append(block)
    assert caught.value.block == 3 and len(kept) == 3


@pytest.mark.parametrize("sizes", [(3, 3, 5), (3, 10, 12), (0, 0, 12), (3, -1, 12)])
def test_impossible_windows_are_refused_with_a_way_out(sizes) -> None:
    with pytest.raises(ValueError, match="try"):
        WindowConfig(*sizes)


def test_unknown_and_missing_attention_backends_say_what_to_do() -> None:
    with pytest.raises(ValueError, match="auto, sdpa, cudnn-even"):
        attention_backend("fast")
    for name in BACKENDS:
        if name != "sdpa":
            with pytest.raises(ValueError, match="choose sdpa"):
                attention_backend(name)
