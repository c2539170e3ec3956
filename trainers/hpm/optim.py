"""AdamW as MAE uses it: no weight decay on biases and norms, the learning rate set from outside."""

from timm.optim._param_groups import param_groups_weight_decay
from torch import nn
from torch.optim import AdamW, Optimizer

from hpm import config

__all__ = ["build_optimizer", "set_learning_rate"]


def build_optimizer(model: nn.Module, settings: config.Optim) -> AdamW:
    """AdamW over all parameters of the model, its learning rate still 0."""
    groups = param_groups_weight_decay(model, settings.weight_decay)
    return AdamW(groups, lr=0.0, betas=settings.betas, fused=True)


def set_learning_rate(optimizer: Optimizer, learning_rate: float) -> None:
    """Let the next step use this learning rate for all parameters."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
