"""The linear probe itself: what is trained on frozen features, and all that it needs to go on.

Letters: N images, B of a batch, D width, C classes.
"""

import math
from collections.abc import Mapping
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import SGD

from hpm.evaluate.accuracy import best_classes
from hpm.evaluate.config import Linear
from hpm.optim import set_learning_rate
from hpm.progress import NonFiniteLossError
from hpm.schedules import learning_rate
from hpm.tracing import digest

__all__ = ["Probe"]


@final
class Probe:
    """Batch normalisation without parameters and a linear layer, trained by SGD (official).

    `done` counts its updates, of which an epoch has `epoch_steps`.
    """

    def __init__(
        self,
        config: Linear,
        *,
        width: int,
        classes: int,
        epoch_steps: int,
        seed: int,
        device: torch.device,
    ) -> None:
        linear = nn.Linear(width, classes)
        # Official: MoCo v3's initial weights.
        draws = torch.Generator().manual_seed(seed)
        nn.init.trunc_normal_(linear.weight, std=0.01, generator=draws)
        nn.init.zeros_(linear.bias)
        norm = nn.BatchNorm1d(width, affine=False, eps=1e-6)
        self.head = nn.Sequential(norm, linear).to(device)
        self.optimizer = SGD(
            linear.parameters(), lr=0.0, momentum=config.momentum, weight_decay=config.weight_decay
        )
        self.config = config
        self.epoch_steps = epoch_steps
        self.done = 0
        self.loss_sum = torch.zeros((), device=device)
        self.last_loss = math.nan

    @property
    def total(self) -> int:
        """Updates of the whole training."""
        return self.config.epochs * self.epoch_steps

    def update(self, rows_BD: Tensor, labels_B: Tensor) -> dict[str, float]:
        """Take one step; the last one of an epoch says the epoch's mean `loss`.

        Raises:
            NonFiniteLossError: that mean is not finite.
        """
        self.head.train()
        set_learning_rate(self.optimizer, self._learning_rate())
        self.optimizer.zero_grad()
        loss = cross_entropy(self.head(rows_BD), labels_B)
        torch.autograd.backward(loss)
        self.optimizer.step()
        self.loss_sum += loss.detach()
        self.done += 1
        return self._end_epoch() if self.done % self.epoch_steps == 0 else {}

    @torch.no_grad()
    def guesses(self, rows_ND: Tensor) -> Tensor:
        """Up to five classes [N, K] of each image, best first, on the CPU."""
        self.head.eval()
        device = self.loss_sum.device
        return best_classes(self.head(rows_ND.to(device)).cpu())

    def state(self) -> dict[str, Any]:
        """All that is needed to go on, for `restore`."""
        return {
            "head": self.head.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "done": self.done,
            "loss_sum": self.loss_sum,
            "last_loss": self.last_loss,
        }

    def trace(self) -> dict[str, str]:
        """Digests of `weights` (and the statistics of the normalisation) and `optimizer`."""
        return {
            "weights": digest(self.head.state_dict()),
            "optimizer": digest(self.optimizer.state_dict()),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over what an earlier `state` held."""
        self.head.load_state_dict(state["head"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.done = state["done"]
        self.loss_sum.copy_(state["loss_sum"])
        self.last_loss = state["last_loss"]

    def _learning_rate(self) -> float:
        return learning_rate(
            self.done / self.epoch_steps,
            peak=self.config.base_lr * self.config.batch_size / 256,
            warmup_epochs=self.config.warmup_epochs,
            epochs=self.config.epochs,
        )

    def _end_epoch(self) -> dict[str, float]:
        loss = self.loss_sum.item() / self.epoch_steps
        if not math.isfinite(loss):
            epoch, before = self.done // self.epoch_steps, self.last_loss
            raise NonFiniteLossError(
                f"The probe's loss must stay finite, got {loss} in epoch {epoch}, at step "
                f"{self.done} (the epoch before: {before:.6g}). Lower base_lr, or look whether "
                "the encoder's weights are finite."
            )
        self.loss_sum.zero_()
        self.last_loss = loss
        return {"loss": loss}
