"""One iteration of tuning: the critic learns in each, the student in one of five (section 3.3)."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import isfinite

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor
from torch.optim import AdamW

from longlive_core.model.causal_wan import CausalWan
from longlive_core.vae.autoencoder import WanAutoencoder

from .adapters import Weights, adapt, trained_weights
from .clip import judged_clip
from .draws import Draws
from .parallel import average_over_ranks, forget_gathered, shard, whole
from .recipe import Recipe
from .scores import (
    Judged,
    critic_loss,
    noised,
    recompute_layers,
    shifted_timesteps,
    student_gradient,
    student_loss,
    whole_flow,
)
from .stream import Chunk, Embeddings, Stream

STUDENT, CRITIC = "student", "critic"


@dataclass(frozen=True)
class Models:
    """The causal student; critic and teacher, which see a whole clip; VAE; negative prompt [1, L, D]."""

    student: CausalWan
    critic: CausalWan
    teacher: CausalWan
    autoencoder: WanAutoencoder
    negative: Tensor


class Trained:
    """A model, those of its weights that are trained, by their names in files, and AdamW."""

    def __init__(
        self, name: str, model: CausalWan, lr: float, recipe: Recipe, mesh: DeviceMesh | None = None
    ):
        self.name, self.model, self._max_norm = name, model, recipe.max_norm
        if recipe.rank:
            adapt(model, recipe.rank, recipe.alpha, f"{recipe.seed}/{name}")
        else:
            model.requires_grad_(True)
        recompute_layers(model)
        if mesh:
            shard(model, mesh)
        self.weights: Weights = trained_weights(model)
        self.optimizer = AdamW(
            self.weights.values(),
            lr,
            betas=(0.0, recipe.beta2),
            eps=recipe.eps,
            weight_decay=recipe.weight_decay,
        )
        for weight in self.weights.values():  # at once: all checkpoints have the same names
            moments = {name: torch.zeros_like(weight) for name in ("exp_avg", "exp_avg_sq")}
            self.optimizer.state[weight] = {"step": torch.tensor(0.0), **moments}

    def update(self) -> float:
        """One step of the optimizer by the mean gradient of all ranks; returns its norm before clipping.

        FloatingPointError where that is not finite: no weight was changed.
        """
        for weight in self.weights.values():
            if not isinstance(weight, DTensor):  # else it is done in the backward pass
                average_over_ranks(weight.grad)
        norm = float(whole(nn.utils.clip_grad_norm_(self.weights.values(), self._max_norm)))
        if not isfinite(norm):
            raise FloatingPointError(f"the gradient of the {self.name} is not finite")
        self.optimizer.step()
        forget_gathered(self.model)
        return norm


class Tuning:
    """A run between two iterations. `average` holds the student's averaged weights, once there are any."""

    def __init__(
        self,
        models: Models,
        recipe: Recipe,
        draws: Draws,
        embeddings: Embeddings,
        mesh: DeviceMesh | None = None,
    ):
        """With a mesh, student and critic are sharded; the teacher comes as it is."""
        self._models, self.recipe, self.draws = models, recipe, draws
        self.student = Trained(STUDENT, models.student, recipe.lr, recipe, mesh)
        self.critic = Trained(CRITIC, models.critic, recipe.critic_lr, recipe, mesh)
        models.teacher.requires_grad_(False)
        models.autoencoder.requires_grad_(False)
        self.stream = Stream(models.student, recipe, draws, embeddings)
        self.average: dict[str, Tensor] = {}
        self.step = 0

    @property
    def autoencoder(self) -> WanAutoencoder:
        return self._models.autoencoder

    def iteration(
        self, on_judged: Callable[[str, Judged], None] = lambda name, judged: None
    ) -> dict[str, float]:
        """Roll out, judge, learn; returns losses and gradient norms of all ranks. `on_judged` sees clips.

        The critic's clips come from the student as it was before this iteration. FloatingPointError or
        RolloutError where something is not finite.
        """
        parts = [(self.critic, self._critic_part)]
        if self.step >= self.recipe.lead and (self.step - self.recipe.lead) % self.recipe.ratio == 0:
            parts.insert(0, (self.student, self._student_part))
        figures = {}
        for trained, part in parts:
            trained.optimizer.zero_grad()
            losses = []
            for chunk in self._chunks(for_gradient=trained is self.student):
                judged = part(chunk)
                losses.append(judged.loss.float())
                on_judged(trained.name, judged)
            loss = float(average_over_ranks(torch.stack(losses).mean()))
            if not isfinite(loss):
                raise FloatingPointError(f"the loss of the {trained.name} is {loss}")
            figures[f"{trained.name}_loss"] = loss
        for trained, _ in parts:
            figures[f"{trained.name}_norm"] = trained.update()
        if len(parts) > 1:
            self._update_average()
        self.step += 1
        return figures

    def _chunks(self, for_gradient: bool) -> Iterator[Chunk]:
        """The next chunks of the streams; a sequence of one clip has the prompts of its iteration."""
        for index in range(self.recipe.accumulate):
            if self.stream.is_over:
                own = self.step * self.recipe.accumulate + index
                self.stream.begin(own if self.recipe.is_short else self.stream.sequence + 1)
            yield self.stream.next_chunk(for_gradient)

    def _noised(self, chunk: Chunk) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """The judged clip, which frames are supervised, timesteps, noise, and the clip with it."""
        recipe = self.recipe
        clip, supervised = judged_clip(chunk, self._models.autoencoder, recipe.clip)
        levels = self.draws.level(chunk.number)
        timesteps = shifted_timesteps(levels, recipe.sigmas, recipe.timesteps).to(clip.device)
        noise = self.draws.clip_noise(chunk.number).to(clip.device)
        return clip, supervised, timesteps, noise, noised(clip, noise, timesteps)

    def _student_part(self, chunk: Chunk) -> Judged:
        models, recipe = self._models, self.recipe
        clip, supervised, timesteps, _, noisy = self._noised(chunk)
        prompts = chunk.embeds, models.negative
        gradient = student_gradient(
            models.teacher, models.critic, recipe.guidance, clip, noisy, timesteps, prompts
        )
        new = gradient[:, :, supervised]
        self.stream.backward(chunk, new / (new.numel() * recipe.accumulate))
        return Judged(clip, supervised, timesteps, gradient, student_loss(gradient, supervised))

    def _critic_part(self, chunk: Chunk) -> Judged:
        clip, supervised, timesteps, noise, noisy = self._noised(chunk)
        flow = whole_flow(self._models.critic, noisy, timesteps, chunk.embeds)
        loss = critic_loss(flow, clip, noise, supervised)
        (loss / self.recipe.accumulate).backward()
        return Judged(clip, supervised, timesteps, flow.detach(), loss.detach())

    @torch.no_grad()
    def _update_average(self) -> None:
        if self.step < self.recipe.average_from:
            return
        now = {name: weight.detach() for name, weight in self.student.weights.items()}
        if not self.average:
            self.average = {name: weight.clone() for name, weight in now.items()}
        for name, weight in self.average.items():
            weight.lerp_(now[name], 1 - self.recipe.average)
