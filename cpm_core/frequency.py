"""Convolutions with large kernels, computed in the frequency domain where that is quicker.

The 9x9 and 11x11 convolutions are 99 % of `cpm`'s arithmetic. Overlap-save (Oppenheim & Schafer,
Discrete-Time Signal Processing, 8.7.3; in two dimensions): the picture is cut into tiles of side F
that overlap by k - 1, every tile is transformed, a frequency's values of all channels are
multiplied by that frequency's matrix of the kernels, and of the way back the F - k + 1 valid rows
and columns are kept. That is F (F / 2 + 1) small complex matrix products in the place of k * k real
ones over all pixels: for 11x11 a tenth of the arithmetic. Answers differ by some 1e-6 of the
largest value.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

_SMALLEST_KERNEL = 7
_SIDES = (16, 18, 20, 24, 28, 30, 32, 36, 40, 42, 48, 50, 54, 56, 60, 64)
"""Of tiles: even and without large factors, so that their transforms are quick."""

_KERNELS_COST = 2.5
"""To read the transformed kernels costs as much as to work at so many tiles. Fitted to measurements
at 184, 92 and 46 cells with kernels of 9 and 11: the model is within 15 % of them."""

_ROUNDS = 2

Geometry = tuple[torch.Size, torch.Size, int]
_quicker: dict[Geometry, bool] = {}
"""Whether the frequency domain was quicker, by shape of picture and kernel, and threads."""


def quicken(model: nn.Module) -> nn.Module:
    """Replace large convolutions of a model in place by `LargeConv`; for inference on CPUs."""
    for name, child in model.named_children():
        if type(child) is nn.Conv2d and _is_large(child):
            setattr(model, name, LargeConv(child))
        else:
            quicken(child)
    return model


def _is_large(conv: nn.Conv2d) -> bool:
    (k, other), half = conv.kernel_size, conv.kernel_size[0] // 2
    plain = conv.stride == (1, 1) and conv.groups == 1 and conv.dilation == (1, 1)
    plain = plain and conv.padding_mode == "zeros"
    return k == other >= _SMALLEST_KERNEL and k % 2 == 1 and conv.padding == (half, half) and plain


class LargeConv(nn.Module):
    """A "same" convolution (N, C, H, W) -> (N, D, H, W), by the way that is quicker for the shape.

    Both ways are timed when a shape is first seen by any layer of its geometry. The transformed
    kernels, F (F / 2 + 1) complex matrices (C, D), are kept: 1.7 GiB for the whole of `cpm` at 368
    px.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv = conv
        self._spectra: dict[int, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        geometry = x.shape, self.conv.weight.shape, torch.get_num_threads()
        if geometry not in _quicker:
            direct, other = _seconds(self.conv, x), _seconds(self.in_frequency, x)
            _quicker[geometry] = other < direct
            if not _quicker[geometry]:
                self._spectra.clear()
        y: Tensor = self.in_frequency(x) if _quicker[geometry] else self.conv(x)
        return y

    def in_frequency(self, x: Tensor) -> Tensor:
        """The convolution by overlap-save."""
        batch, channels, height, width = x.shape
        k = self.conv.kernel_size[0]
        side = tile_side(batch, height, width, k)
        step = side - k + 1
        rows, columns = -(-height // step), -(-width // step)
        below = (rows - 1) * step + side - height - k // 2
        right = (columns - 1) * step + side - width - k // 2
        padded = nn.functional.pad(x.contiguous(), (k // 2, right, k // 2, below))
        tiles = padded.unfold(2, side, step).unfold(3, side, step)
        spectrum = torch.fft.rfft2(tiles)  # (N, C, rows, columns, F, F / 2 + 1)
        by_frequency = spectrum.permute(4, 5, 0, 2, 3, 1).reshape(
            -1, batch * rows * columns, channels
        )
        product = torch.bmm(by_frequency, self._spectrum(side))
        outputs = product.shape[-1]
        product = product.view(side, side // 2 + 1, batch, rows, columns, outputs)
        back = torch.fft.irfft2(product.permute(2, 5, 3, 4, 0, 1), s=(side, side))
        valid = back[..., :step, :step].permute(0, 1, 2, 4, 3, 5)
        whole: Tensor = valid.reshape(batch, outputs, rows * step, columns * step)
        y = whole[:, :, :height, :width]
        return y if (bias := self.conv.bias) is None else y + bias[:, None, None]

    def _spectrum(self, side: int) -> Tensor:
        """The kernels' transforms, (F (F / 2 + 1), C, D)."""
        if side not in self._spectra:
            outputs, channels = self.conv.weight.shape[:2]
            # What networks call a convolution is a correlation: hence the conjugate.
            spectrum = torch.fft.rfft2(self.conv.weight.detach(), s=(side, side)).conj()
            matrices = spectrum.permute(2, 3, 1, 0).reshape(-1, channels, outputs)
            self._spectra[side] = matrices.resolve_conj().contiguous()
        return self._spectra[side]


def tile_side(batch: int, height: int, width: int, kernel: int) -> int:
    """The side of tiles that costs least."""

    def cost(side: int) -> float:
        step = side - kernel + 1
        tiles = batch * -(-height // step) * -(-width // step)
        return side * (side // 2 + 1) * (_KERNELS_COST + tiles)

    return min((side for side in _SIDES if side > kernel), key=cost)


def _seconds(way: Callable[[Tensor], Tensor], x: Tensor) -> float:
    """Of one call, after one that warms it up."""
    way(x)
    times = []
    for _ in range(_ROUNDS):
        started = time.perf_counter()
        way(x)
        times.append(time.perf_counter() - started)
    return min(times)
