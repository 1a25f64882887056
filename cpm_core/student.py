"""A network that learns to predict a teacher's features beside its own task."""

from __future__ import annotations

from torch import Tensor, nn

from cpm_core.model import Cpm


class Student(nn.Module):
    """A `Cpm` and the regressor that predicts a teacher's features (B, channels, H, W) from its
    own; the regressor is thrown away after training.

    `forward(images)` returns the maps of every stage, and the predicted features.
    """

    def __init__(self, model: Cpm, channels: int) -> None:
        super().__init__()
        self.model = model
        self.regressor = nn.Conv2d(model.feature_channels, channels, 1)
        # From nothing, so that it does not pull at features before it has learned to read them.
        nn.init.zeros_(self.regressor.weight)
        assert self.regressor.bias is not None
        nn.init.zeros_(self.regressor.bias)

    def forward(self, images: Tensor) -> tuple[list[Tensor], Tensor]:
        features, maps = self.model.features_and_maps(images)
        return maps, self.regressor(features)


def hint_loss(predicted: Tensor, hints: Tensor, labelled: Tensor) -> Tensor:
    """Mean squared error (B,) of predicted features (B, C, H, W).

    0 for a sample without a labelled joint (B, K): its picture could not be read.
    """
    error = ((predicted.float() - hints.float()) ** 2).mean(dim=(1, 2, 3))
    return error * labelled.any(dim=1)
