"""Networks compiled for the CPU say what PyTorch's say."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from cpm_core import cpu, networks
from cpm_core.config import preset
from cpm_core.estimator import load
from cpm_core.frequency import LargeConv
from cpm_core.lite import fold_batch_norm
from cpm_core.model import Cpm
from cpm_core.person_net.config import PersonNetConfig
from cpm_core.person_net.net import PersonNet

compiled = pytest.importorskip("cpm_core.compiled", exc_type=ImportError)
translation = pytest.importorskip("cpm_core.translate", exc_type=ImportError)

SIZE = 64


def lively(network: nn.Module) -> nn.Module:
    """In eval mode, batch norm statistics that are not 0 and 1 folded, maps that are not flat."""
    torch.manual_seed(3)
    for part in network.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.uniform_(part.running_mean, -0.5, 0.5)  # type: ignore[arg-type]
            nn.init.uniform_(part.running_var, 0.5, 2)  # type: ignore[arg-type]
            nn.init.uniform_(part.bias, -1, 1)
        elif isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight)
    return fold_batch_norm(network.eval())


NETWORKS = {
    name: partial(Cpm, replace(preset(name), input_size=SIZE, stages=3))
    for name in ("cpm", "cpm-vgg", "cpm-lite")
} | {
    "caffe's pooling": partial(Cpm, preset("cpm", input_size=SIZE, stages=2, pooling="ceil")),
    "one stage": partial(Cpm, preset("cpm", input_size=SIZE, stages=1)),
    "person-net": partial(PersonNet, PersonNetConfig(input_size=SIZE)),
}


def crops(count: int, size: int = SIZE) -> torch.Tensor:
    """Images (count, 3, size, size) as the estimator has them: a view of crops."""
    pixels = np.random.default_rng(count).integers(0, 256, (count, size, size, 3), np.uint8)
    return torch.from_numpy(pixels).permute(0, 3, 1, 2)


def compile_network(
    network: nn.Module, bf16: bool = False, threads: int = 1, batch: int = 1
) -> networks.Network:
    """As an estimator has it, for tensors."""
    models = {n: translation.translate(network, n, SIZE) for n in {1, batch}}
    return networks.Compiled(compiled.CompiledNetwork(models, bf16, threads))


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize(("bf16", "tolerance"), [(False, 1e-5), (True, 0.1)])
@torch.inference_mode()
def test_every_stage_of_every_network(name: str, bf16: bool, tolerance: float) -> None:
    network = lively(NETWORKS[name]())
    images = crops(3)
    found = compile_network(network, bf16, threads=2)(images)
    expected = network(images)
    for got, stage in zip(found, expected, strict=True):
        assert (got.dtype, got.shape) == (torch.float32, stage.shape)
        scale = stage.abs().max()
        assert stage.std() > 1e-3 * scale, "flat maps would agree with anything"
        torch.testing.assert_close(got / scale, stage / scale, rtol=0, atol=tolerance)


@pytest.mark.parametrize("count", [1, 3, 4, 11])
@torch.inference_mode()
def test_what_is_left_of_a_batch_goes_one_by_one(count: int) -> None:
    network = lively(NETWORKS["cpm-lite"]())
    found = compile_network(network, batch=4)(crops(count))
    for got, stage in zip(found, network(crops(count)), strict=True):
        scale = stage.abs().max()
        torch.testing.assert_close(got / scale, stage / scale, rtol=0, atol=1e-5)


@torch.inference_mode()
def test_threads_do_not_mix_their_answers() -> None:
    network = compile_network(lively(NETWORKS["cpm-lite"]()), threads=3, batch=2)
    images = [crops(count) for count in range(1, 9)] * 8
    alone = [network(one) for one in images[:8]] * 8
    with ThreadPoolExecutor(6) as threads:
        for got, expected in zip(threads.map(network, images), alone, strict=True):
            for one, other in zip(got, expected, strict=True):
                torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_mirrored_images_which_are_no_view_of_crops() -> None:
    network = compile_network(lively(NETWORKS["cpm-lite"]()))
    images = crops(2)
    mirrored = images.flip(-1)
    assert not torch.equal(network(images)[-1], network(mirrored)[-1])
    expected = network(mirrored.contiguous().clone())
    torch.testing.assert_close(network(mirrored)[-1], expected[-1], rtol=0, atol=0)


class Twisted(nn.Module):
    """Has an operation that no network here has."""

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Its tangent."""
        return [torch.tan(images)]


@pytest.mark.parametrize(
    ("network", "name"),
    [
        (Twisted(), "tan"),
        (nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True), "bilinear"),
        (nn.Upsample(size=3, mode="nearest"), "nearest"),
        (nn.Dropout().train(), "training"),
    ],
    ids=["function", "align_corners", "size", "training"],
)
def test_what_has_no_translation_is_named(network: nn.Module, name: str) -> None:
    with pytest.raises(TypeError, match=name):
        translation.translate(network, 1, SIZE)


def test_without_openvino_large_kernels_are_still_quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "has_openvino", lambda: False)
    vgg = NETWORKS["cpm-vgg"]()
    plain = networks.quickest(vgg, SIZE, bf16=True)
    assert not any(isinstance(part, LargeConv) for part in plain.modules())  # type: ignore[attr-defined]
    quick = networks.quickest(vgg, SIZE)
    assert any(isinstance(part, LargeConv) for part in quick.modules())  # type: ignore[attr-defined]


@pytest.mark.parametrize("options", [{}, {"flip": True, "scales": (0.8, 1.0)}], ids=str)
def test_without_openvino_answers_are_the_same(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"device": "cpu", "precision": "fp32"} | options
    estimators = [load("cpm-lite", **settings)]
    with monkeypatch.context() as patched:
        patched.setattr(cpu, "has_openvino", lambda: False)
        assert not cpu.has_bf16()
        estimators.append(load("cpm-lite", **settings))
    kinds = [isinstance(each.model, networks.Compiled) for each in estimators]
    assert kinds == [True, False]
    size = estimators[0].cropper.size
    picture = crops(1, size)[0].permute(1, 2, 0).numpy()
    picture = np.repeat(np.repeat(picture[::32, ::32], 32, 0), 32, 1)
    found, plain = (each.estimate(picture, [[0, 0, size, size]]) for each in estimators)
    np.testing.assert_allclose(found, plain, atol=0.1)


def test_threads_may_compile_side_by_side() -> None:
    network = lively(NETWORKS["cpm-lite"]())
    compile_it = partial(compile_network, network)
    with ThreadPoolExecutor(3) as threads:
        networks = [threads.submit(compile_it) for _ in range(6)]
        found = [each.result()(crops(1))[-1] for each in networks]
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=0, atol=0)


NATIVE = """
import ctypes
import sys
import numpy as np
import cpm_core
from cpm_core.person_net.locate import PersonNetLocator

estimator, locator = cpm_core.load("cpm-lite", device="cpu"), PersonNetLocator()
picture = np.zeros((64, 64, 3), np.uint8)
calls = {
    "estimate": lambda: estimator.estimate(picture, [[0, 0, 64, 64]]),
    "belief": lambda: estimator.belief(picture, [0, 0, 64, 64]),
    "locate": lambda: locator.locate(picture),
}
found = []

@ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p)
def call(_):
    found.append(calls[sys.argv[1]]())

pthread = ctypes.CDLL(None)
for _ in range(3):
    thread = ctypes.c_ulong()
    assert pthread.pthread_create(ctypes.byref(thread), None, call, None) == 0
    pthread.pthread_join(thread, None)
print(len(found))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="starts threads of Linux")
@pytest.mark.parametrize("call", ["estimate", "belief", "locate"])
def test_threads_that_python_has_not_made(call: str) -> None:
    """Daft's and Ray's are such."""
    done = subprocess.run([sys.executable, "-c", NATIVE, call], capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, "3"), done.stderr
