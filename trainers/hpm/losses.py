"""The losses: of reconstructions, patch by patch, and of predictions of that loss.

Letters: B images, M hidden patches, P values of one patch.
"""

from typing import Literal, assert_never

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["absolute_loss", "feature_loss", "reconstruction_loss", "relative_loss", "token_loss"]


def reconstruction_loss(
    prediction_BMP: Tensor, target_BMP: Tensor, form: Literal["mse", "l1", "smooth-l1"] = "mse"
) -> Tensor:
    """Error of each hidden patch [B, M]: the mean over its values, squared as officially."""
    match form:
        case "mse":
            error_BMP = (prediction_BMP - target_BMP).square()
        case "l1":
            error_BMP = (prediction_BMP - target_BMP).abs()
        case "smooth-l1":
            error_BMP = functional.smooth_l1_loss(prediction_BMP, target_BMP, reduction="none")
        case other:
            assert_never(other)
    return error_BMP.mean(dim=-1)


def token_loss(scores_BMP: Tensor, tokens_BM: Tensor) -> Tensor:
    """Cross-entropy [B, M] of each hidden patch's token among P (BEiT)."""
    return functional.cross_entropy(scores_BMP.transpose(1, 2), tokens_BM, reduction="none")


def feature_loss(prediction_BMP: Tensor, target_BMP: Tensor) -> Tensor:
    """Squared distance [B, M] of predicted and target features, each at unit length (official)."""
    prediction = functional.normalize(prediction_BMP, dim=-1)
    target = functional.normalize(target_BMP, dim=-1)
    return (prediction - target).square().sum(dim=-1)


def relative_loss(predicted_BM: Tensor, loss_BM: Tensor) -> Tensor:
    """Cross-entropy of which of two hidden patches of an image is the harder one (official form).

    With s = sigmoid(predicted_i - predicted_j): the mean of -log(s + 1e-6) where loss_i > loss_j
    and of -log(1 - s + 1e-6) where loss_i < loss_j, over the ordered pairs of all images. Equal
    losses make no pair; without any pair the loss is 0.
    """
    # Both orders of a pair say the same, but 1 - s is coarse beside 1e-6 in float32: leaving one
    # out moves gradients by 3e-4 of their norm where the predictor is sure and wrong.
    first_BMM, second_BMM = loss_BM[:, :, None], loss_BM[:, None, :]
    harder_BMM, easier_BMM = first_BMM > second_BMM, first_BMM < second_BMM
    sigmoid_BMM = (predicted_BM[:, :, None] - predicted_BM[:, None, :]).sigmoid()
    entropy_BMM = harder_BMM * torch.log(sigmoid_BMM + 1e-6)
    entropy_BMM = entropy_BMM + easier_BMM * torch.log(1 - sigmoid_BMM + 1e-6)
    return -entropy_BMM.sum() / (harder_BMM | easier_BMM).sum().clamp(min=1)


def absolute_loss(predicted_BM: Tensor, loss_BM: Tensor) -> Tensor:
    """Mean squared error against the losses, standardised within each image as officially."""
    mean = loss_BM.mean(dim=1, keepdim=True)
    variance = loss_BM.var(dim=1, keepdim=True)
    standardized_BM = (loss_BM - mean) / (variance + 1e-6).sqrt()
    return (predicted_BM - standardized_BM).square().mean()
