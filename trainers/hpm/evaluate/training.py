"""Supervised training of a network on top of an encoder, and all that it needs to go on.

What fine-tuning, segmentation and detection share: the optimizer with its rates by layer, the
schedule, gradients averaged over parts and workers, an average of the weights. Each of them brings
a network, its batches and a loss. Nothing here draws a random number.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from typing import Any, Generic, TypeAlias, TypeVar, final

import torch
from timm.models.vision_transformer import VisionTransformer
from timm.optim._param_groups import param_groups_layer_decay, param_groups_weight_decay
from torch import Tensor, nn
from torch.optim import AdamW

from hpm.distributed import all_mean, average_gradients
from hpm.evaluate.recipe import Recipe
from hpm.progress import NonFiniteLossError
from hpm.schedules import learning_rate
from hpm.tracing import digest

__all__ = ["Loss", "Training"]

_RECORDS = 200
"""Steps of a training that have metrics, about."""

Part = TypeVar("Part")

Loss: TypeAlias = Callable[[Part], Mapping[str, Tensor]]
"""The terms of a part's loss by name, scalars on the device; the loss is their sum."""


@final
class Training(Generic[Part]):
    """A network in training; `done` counts optimizer steps, of which an epoch has `epoch_steps`.

    `network` is on the worker's device and its weights are drawn or loaded; those of `encoder`, a
    part of it (or all of it), have rates that fall by layer. What needs no gradient is not trained.
    `loss` gives means over the images of a part, which it moves to the device itself.
    """

    def __init__(
        self,
        network: nn.Module,
        encoder: VisionTransformer,
        recipe: Recipe,
        loss: Loss[Part],
        *,
        epoch_steps: int,
    ) -> None:
        self.network = network
        self.recipe = recipe
        self.loss = loss
        self.epoch_steps = epoch_steps
        self.optimizer = AdamW(
            _groups(network, encoder, recipe), lr=0.0, betas=recipe.betas, fused=True
        )
        self.average = None if recipe.ema is None else deepcopy(network).requires_grad_(False)
        self.done = 0
        self.last_loss = math.nan

    @property
    def total(self) -> int:
        """Optimizer steps of the whole training."""
        return self.recipe.epochs * self.epoch_steps

    @property
    def evaluated(self) -> nn.Module:
        """The network, or where there is one the average of its weights."""
        return self.network if self.average is None else self.average

    def update(self, parts: Sequence[Part]) -> dict[str, float]:
        """One optimizer step over the parts of a batch; about 200 steps have metrics.

        These are `loss`, the terms that it is made of where there are several, `grad_norm` (before
        clipping) and `lr` (of the last layer).

        Raises:
            NonFiniteLossError: the loss of a step with metrics is not finite.
        """
        rate = self._rate()
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["lr_scale"]
        self.network.train()
        self.optimizer.zero_grad()
        terms = self._backward(parts)
        average_gradients(self.network)
        trained = [p for p in self.network.parameters() if p.requires_grad]
        norm = nn.utils.clip_grad_norm_(trained, self.recipe.clip_norm or math.inf)
        self.optimizer.step()
        self._follow()
        self.done += 1
        if self.done % max(1, self.total // _RECORDS) and self.done != self.total:
            return {}
        means = dict(zip(terms, all_mean(torch.stack(list(terms.values()))).tolist(), strict=True))
        loss = sum(means.values())
        self._require_finite(loss)
        self.last_loss = loss
        return means | {"loss": loss, "grad_norm": norm.item(), "lr": rate}

    def state(self) -> dict[str, Any]:
        """All that is needed to go on, for `restore`."""
        return {
            "network": self.network.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "done": self.done,
            "last_loss": self.last_loss,
        }

    def trace(self) -> dict[str, str]:
        """Digests of `weights`, of their `average` where there is one, and `optimizer`."""
        state = {name: held for name, held in self.state().items() if isinstance(held, Mapping)}
        state["weights"] = state.pop("network")
        return {name: digest(held) for name, held in state.items()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over what an earlier `state` held."""
        self.network.load_state_dict(state["network"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.done = state["done"]
        self.last_loss = state["last_loss"]

    def _backward(self, parts: Sequence[Part]) -> dict[str, Tensor]:
        """The terms of the loss, means over the parts."""
        means: dict[str, Tensor] = {}
        for part in parts:
            terms = {name: term / len(parts) for name, term in self.loss(part).items()}
            torch.autograd.backward(torch.stack(list(terms.values())).sum())
            means = {name: term.detach() + means.get(name, 0.0) for name, term in terms.items()}
        return means

    @torch.no_grad()
    def _follow(self) -> None:
        if self.average is None or self.recipe.ema is None:
            return
        trailing: list[Tensor] = list(self.average.parameters())
        leading: list[Tensor] = list(self.network.parameters())
        torch._foreach_lerp_(trailing, leading, 1.0 - self.recipe.ema)

    def _rate(self) -> float:
        recipe, epoch = self.recipe, self.done / self.epoch_steps
        peak = recipe.base_lr * recipe.batch_size / 256
        if recipe.decay == "cosine" or epoch < recipe.warmup_epochs:
            span = learning_rate(
                epoch, peak=1.0, warmup_epochs=recipe.warmup_epochs, epochs=recipe.epochs
            )
            floor = recipe.min_lr if epoch >= recipe.warmup_epochs else 0.0
            return floor + (peak - floor) * span
        if recipe.decay == "steps":
            return peak * 0.1 ** sum(epoch >= recipe.epochs * part for part in (8 / 9, 26 / 27))
        left = 1 - (epoch - recipe.warmup_epochs) / (recipe.epochs - recipe.warmup_epochs)
        return recipe.min_lr + (peak - recipe.min_lr) * left

    def _require_finite(self, loss: float) -> None:
        if not math.isfinite(loss):
            raise NonFiniteLossError(
                f"The loss must stay finite, got {loss} at step {self.done} (the last finite one: "
                f"{self.last_loss:.6g}). Lower optim.base_lr, lengthen optim.warmup_epochs or use "
                "optim.precision float32."
            )


def _groups(network: nn.Module, encoder: VisionTransformer, recipe: Recipe) -> list[dict[str, Any]]:
    """Rates fall from the encoder's last layers to its first (BEiT); all else has the full rate."""
    by_layer: list[dict[str, Any]] = param_groups_layer_decay(
        encoder,
        recipe.weight_decay,
        no_weight_decay_list=encoder.no_weight_decay(),
        layer_decay=recipe.layer_decay,
    )
    if encoder is not network:
        # timm's top layer is then the last block, and the rest of the network is one above it.
        for group in by_layer:
            group["lr_scale"] *= recipe.layer_decay
    grouped = {id(p) for group in by_layer for p in group["params"]}
    rest = nn.ParameterList(
        p for p in network.parameters() if p.requires_grad and id(p) not in grouped
    )
    others: list[dict[str, Any]] = param_groups_weight_decay(rest, recipe.weight_decay)
    groups = [*by_layer, *({**group, "lr_scale": 1.0} for group in others)]
    return [group for group in groups if group["params"]]
