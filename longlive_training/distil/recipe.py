"""Every number of streaming long tuning and of the stage before it (LongLive, sections 3.3 and 4)."""

from dataclasses import dataclass, field

from longlive_core.config import SigmaConfig, WindowConfig


@dataclass(frozen=True)
class Recipe:
    """The defaults are streaming long tuning; lengths are latent frames, rates those of AdamW.

    A sequence begins with a clip of `clip` frames; then at least `min_new` are added at a time, up to
    `longest`. The student is updated in one of `ratio` iterations, after a `lead`, the critic in each. `rank`
    None trains all weights. `average_from` is the iteration from which its weights are averaged. A batch is
    `accumulate` chunks of each of the `streams`, which are spread over the ranks. ValueError for impossible
    numbers.
    """

    clip: int = 21
    min_new: int = 18
    longest: int = 240
    ratio: int = 5
    lead: int = 0
    rank: int | None = 256
    alpha: float = 256.0
    lr: float = 1e-5
    critic_lr: float = 2e-6
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.01
    max_norm: float = 10.0
    guidance: float = 3.0
    timesteps: tuple[float, float] = (20.0, 980.0)
    average: float = 0.99
    average_from: int = 200
    streams: int = 1
    accumulate: int = 1
    seed: int = 0
    window: WindowConfig = field(default_factory=WindowConfig)
    sigmas: SigmaConfig = field(default_factory=SigmaConfig)

    def __post_init__(self):
        block = self.window.block_latent_frames
        if self.clip % block or self.min_new % block or not 0 < self.min_new < self.clip <= self.longest:
            raise ValueError(
                f"{self.min_new} new latent frames of a clip of {self.clip} in a sequence of {self.longest} "
                f"are not possible; choose multiples of {block}, e.g. 18 of 21 in 240"
            )
        if min(self.ratio, self.streams, self.accumulate) < 1 or (self.rank is not None and self.rank < 1):
            raise ValueError("ratio, streams, accumulated chunks and the LoRA's rank must be 1 or more")

    @property
    def is_short(self) -> bool:
        """Whether a sequence is one clip, without a switch: the stage before streaming long tuning."""
        return self.longest < self.clip + self.min_new

    @property
    def switches(self) -> range:
        """Latent frames at which a sequence may change its prompt: where a chunk of `min_new` begins.

        The official ones are 21, 39, ... 201 of 240; empty for sequences of one clip.
        """
        if self.is_short:
            return range(0)
        return range(self.clip, max(self.longest - 2 * self.min_new, self.clip) + 1, self.min_new)

    def takes(self, end: int) -> bool:
        """Whether a sequence of `end` latent frames goes on."""
        return end + self.min_new <= self.longest

    def streams_of(self, rank: int, ranks: int) -> range:
        """Those streams that a rank makes; ValueError where ranks would have different numbers of them."""
        own = self.streams // ranks
        if self.streams % ranks:
            possible = [count for count in range(1, self.streams + 1) if self.streams % count == 0]
            raise ValueError(
                f"{ranks} processes cannot share {self.streams} streams evenly; start one of "
                f"{', '.join(map(str, possible))} processes, or begin a run with another number of --streams"
            )
        return range(rank * own, (rank + 1) * own)


LONG = Recipe()
INIT = Recipe(longest=21, rank=None, lr=2e-6, critic_lr=4e-7)  # all weights, sequences of one clip
STEPS = {"long": 3000, "init": 700}
RECIPES = {"long": LONG, "init": INIT}
