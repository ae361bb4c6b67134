"""The judge against the truth of the procedural world: sharp, blurred, noisy, fading, doubled and empty."""

import pytest
import torch
import torch.nn.functional as F

from longlive_training.judge import Reading, motion_windows, position_steps, read, read_motion
from longlive_training.world import (
    BACKGROUNDS,
    FADE_FRAMES,
    MOTIONS,
    SPEED,
    VALUES,
    Attributes,
    Look,
    Motion,
    combinations,
    film,
    random_change,
    render,
)

LOOKS = ("colour", "shape", "background")
RED_STAR = Attributes("red", "star", "rests", "navy")


@pytest.fixture
def rng() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def motion(attributes: list[Attributes], rng: torch.Generator, start: str) -> Motion:
    return Motion.at_start(len(attributes), rng) if start == "start" else Motion.anywhere(attributes, rng)


def truth(attributes: list[Attributes], name: str) -> torch.Tensor:
    """Index of every film's value [B, 1]."""
    return torch.tensor([[VALUES[name].index(getattr(a, name))] for a in attributes])


def read_films(films: torch.Tensor) -> Reading:
    """Films [B, F, 3, S, S] -> a reading whose fields are [B, F, ...]."""
    reading = read(films.flatten(0, 1))
    return Reading(**{name: value.unflatten(0, films.shape[:2]) for name, value in vars(reading).items()})


def accuracy(reading: Reading, attributes: list[Attributes], name: str) -> float:
    return float((getattr(reading, name) == truth(attributes, name)).float().mean())


def place_errors(reading: Reading, places: torch.Tensor) -> torch.Tensor:
    """Torus distance to the truth, in 64ths of the picture."""
    return 64 * ((reading.place - places + 0.5) % 1 - 0.5).norm(dim=-1)


def blurred(films: torch.Tensor, noise: float, rng: torch.Generator) -> torch.Tensor:
    kernel = torch.tensor([1.0, 2.0, 1.0]) / 4
    pixels = F.pad(films.flatten(0, 2).unsqueeze(1), (1, 1, 1, 1), mode="replicate")
    pixels = F.conv2d(pixels, torch.outer(kernel, kernel)[None, None]).view(films.shape)
    return (pixels + noise * torch.randn(films.shape, generator=rng)).clamp(0, 1)


@pytest.mark.parametrize("start", ["start", "anywhere"])
@pytest.mark.parametrize("size, every", [(64, 1), (128, 7)])
def test_reads_every_look_and_place(size, every, start, rng):
    attributes = combinations()[::every]
    frames, places = film(attributes, motion(attributes, rng, start), 2, size)
    reading = read_films(frames)
    for name in LOOKS:
        assert accuracy(reading, attributes, name) >= 0.995, name
    assert place_errors(reading, places).quantile(0.99) < 0.5


def test_reads_blurred_and_noisy_frames(rng):
    attributes = combinations()[::3]
    frames, places = film(attributes, Motion.anywhere(attributes, rng), 2, 64)
    reading = read_films(blurred(frames, 0.02, rng))
    for name in LOOKS:
        assert accuracy(reading, attributes, name) >= 0.98, name
    assert place_errors(reading, places).quantile(0.99) < 0.5


def test_a_switch_is_read_as_old_then_either_then_new(rng):
    before = combinations()[::13]
    after = [random_change(rng, a) for a in before]
    frames, places = film(before, Motion.anywhere(before, rng), 12, 64, after, switch_frame=3)
    reading, faded = read_films(frames), 3 + FADE_FRAMES - 1
    for name in LOOKS:
        seen, old, new = getattr(reading, name), truth(before, name), truth(after, name)
        assert (seen[:, :4] == old).all(), name
        assert (seen[:, faded:] == new).all(), name
        assert ((seen == old) | (seen == new)).float().mean() > 0.97, name
    assert place_errors(reading, places).max() < 1


def test_names_are_the_words_of_the_prompt(rng):
    frames, _ = film([RED_STAR], Motion.at_start(1, rng), 1, 64)
    assert read(frames[0]).names(0) == {"colour": "red", "shape": "star", "background": "navy"}


def empty_frames(attributes: list[Attributes], size: int) -> torch.Tensor:
    """Backgrounds without a shape [B, 3, size, size]."""
    ends = torch.tensor([BACKGROUNDS[a.background] for a in attributes])  # [B, 2, 3]
    top, bottom = ends[..., None, None].unbind(1)
    down = ((torch.arange(size) + 0.5) / size).view(1, 1, size, 1)
    return torch.lerp(top, bottom, down).expand(-1, -1, -1, size)


@pytest.mark.parametrize("size, noise", [(64, 0.0), (64, 0.02), (128, 0.0)])
def test_mass_counts_shapes(size, noise, rng):
    attributes = combinations()[::14]
    places = torch.rand(len(attributes), 2, generator=rng)
    none = empty_frames(attributes, size)
    one, other = (render(Look.of(attributes), p, size) for p in (places, (places + 0.5) % 1))
    two = torch.where(one == none, other, one)
    films = torch.stack((none, one, two), dim=1)
    reading = read_films((films + noise * torch.randn(films.shape, generator=rng)).clamp(0, 1))
    assert reading.mass[:, 0].max() < 0.005
    assert reading.mass[:, 1].min() > 0.09
    assert (reading.mass[:, 2] / reading.mass[:, 1]).min() > 1.9
    assert accuracy(reading, attributes, "background") == 1


def paths(attributes: list[Attributes], rng: torch.Generator, start: str, num_frames: int) -> torch.Tensor:
    return film(attributes, motion(attributes, rng, start), num_frames, 8)[1]


def spoiled(places: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
    """A pixel of jitter, and three frames that are anywhere."""
    places = (places + torch.randn(places.shape, generator=rng) / 64) % 1
    places[:, [7, 20, 30]] = torch.rand(len(places), 3, 2, generator=rng)
    return places


@pytest.mark.parametrize("is_spoiled", [False, True])
@pytest.mark.parametrize("start", ["start", "anywhere"])
@pytest.mark.parametrize("num_frames", [32, 48])
def test_reads_every_motion(num_frames, start, is_spoiled, rng):
    attributes = combinations()
    places = paths(attributes, rng, start, num_frames)
    places = spoiled(places, rng) if is_spoiled else places
    assert [read_motion(p) for p in places] == truth(attributes, "motion").flatten().tolist()


def test_reads_motion_from_pixels(rng):
    attributes = combinations()[::47]
    frames, _ = film(attributes, Motion.anywhere(attributes, rng), 48, 64)
    seen = [read_motion(places) for places in read_films(blurred(frames, 0.02, rng)).place]
    assert seen == truth(attributes, "motion").flatten().tolist()


def test_windows_follow_a_switch_of_motion(rng):
    before = combinations()[::5]
    after = [random_change(rng, a) for a in before]
    _, places = film(before, Motion.anywhere(before, rng), 48 + 48 + 32, 8, after, switch_frame=48)
    old, new = truth(before, "motion"), truth(after, "motion")
    assert [motion_windows(p) for p in places] == torch.cat((old, new, new), dim=1).tolist()


def test_a_remnant_of_a_window_is_left_out(rng):
    places = paths([RED_STAR], rng, "start", 48 + 31)[0]
    assert motion_windows(places) == [list(MOTIONS).index("rests")]
    with pytest.raises(ValueError, match="31 frames"):
        read_motion(places[:31])


def test_steps_are_in_pixels_of_64_and_cross_the_seam(rng):
    drifting = Attributes("blue", "circle", "drifts left", "plum")
    places = paths([drifting], rng, "anywhere", 64)[0]
    torch.testing.assert_close(position_steps(places), torch.full((63,), 64 * SPEED), rtol=0, atol=1e-3)
