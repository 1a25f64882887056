"""The child that checks weights and compiles networks, and what becomes of it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from cpm_core import cpu
from cpm_core.errors import WeightsError
from cpm_core.header import KEY
from cpm_core.weights import load_weights
from pipeline.compiler import Compiler
from pipeline.errors import PosemillError, UsageError
from pipeline.storage import StorageOptions
from pipeline.weights import WeightsFile


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The place for temporary files, in which nothing is to be left."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield folder
    assert not list(folder.iterdir())


@pytest.fixture
def hook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module that a child imports before all others."""
    (tmp_path / "hook").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path / "hook"))
    return tmp_path / "hook" / "sitecustomize.py"


def compiler_of(name: Path | str, pose: bool = False, person_net: bool = False) -> Compiler:
    return Compiler(WeightsFile(str(name), StorageOptions()), pose, person_net)


@pytest.mark.parametrize(
    ("form", "pose", "person_net"),
    [
        ("file://{}", True, True),
        ("{}", True, False),
        ("{}", False, True),
        ("{}", False, False),
    ],
)
def test_what_is_asked_for_comes(form: str, pose: bool, person_net: bool, good: Path) -> None:
    pytest.importorskip("openvino")
    compiler = compiler_of(form.format(good), pose, person_net)
    compiler.check()
    graph, net = compiler.networks()
    assert graph is None or sorted(graph.models()) == [1, 4]
    assert net is None or sorted(net.graph.models()) == [1]
    assert (graph is not None, net is not None) == (pose, person_net)


def test_without_openvino_weights_are_only_checked(
    good: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu, "has_openvino", lambda: False)
    assert compiler_of(good, True, True).networks() == (None, None)


def test_nothing_is_started_before_it_is_wanted(
    good: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subprocess, "Popen", None)
    compiler_of(good, True, True).close()


def without(tensors: dict[str, np.ndarray]) -> None:
    del tensors[max(tensors)]


def with_nan(tensors: dict[str, np.ndarray]) -> None:
    next(t for t in tensors.values() if t.dtype == np.float16).flat[0] = np.nan


def of_another_shape(tensors: dict[str, np.ndarray]) -> None:
    name = next(name for name, t in tensors.items() if t.ndim == 4)
    tensors[name] = tensors[name][..., :0]


@pytest.mark.parametrize(
    ("damage", "form"), [(without, "{}"), (with_nan, "{}"), (of_another_shape, "file://{}")]
)
def test_a_file_with_other_tensors_than_it_says_is_refused(
    damage: Callable[[dict[str, np.ndarray]], None], form: str, good: Path
) -> None:
    """In the words of who reads it."""
    tensors, metadata = load_file(good), metadata_of(good)
    damage(tensors)
    save_file(tensors, good, metadata)
    with pytest.raises(WeightsError) as told:
        load_weights(good)
    reason = str(told.value).removeprefix(str(good))
    compiler = compiler_of(form.format(good), True)
    with pytest.raises(UsageError) as refused:
        compiler.networks()
    assert str(refused.value).startswith(form.format(good))
    assert str(refused.value).endswith(reason)
    compiler.close()


def metadata_of(path: Path) -> dict[str, str]:
    from safetensors import safe_open

    with safe_open(str(path), framework="numpy") as file:
        return {KEY: file.metadata()[KEY]}


def test_a_file_that_changes_meanwhile(good: Path) -> None:
    compiler = compiler_of(good)
    save_file(load_file(good), good, metadata_of(good) | {"more": "of it"})
    with pytest.raises(UsageError, match=r"good\.safetensors was changed meanwhile; run the same"):
        compiler.check()
    compiler.close()


@pytest.mark.parametrize(
    ("does", "told"),
    [
        ("import os; os.kill(os.getpid(), 9)", "was killed, .* short of memory; mend it, then run"),
        ("import os; os.kill(os.getpid(), 11)", "died: Segmentation fault;"),
        ("import os; os._exit(7)", "died: exit code 7;"),
        ("import sys; sys.modules['torch'] = None", "has failed: ModuleNotFoundError.*torch"),
    ],
)
def test_a_child_that_fails_is_told_of_in_one_line(
    does: str, told: str, good: Path, hook: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    hook.write_text(does)
    compiler = compiler_of(good, True)
    with pytest.raises(PosemillError, match=f"^the process that makes the networks ready {told}"):
        compiler.networks()
    compiler.close()
    assert capfd.readouterr() == ("", "")


def test_what_libraries_print_is_no_answer(good: Path, hook: Path) -> None:
    hook.write_text("print('hello', flush=True)\nimport atexit\natexit.register(print, 'bye')")
    compiler_of(good).networks()


def test_a_child_that_cannot_be_started(good: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    compiler = compiler_of(good)
    with pytest.raises(PosemillError, match=r"cannot be started: .*/nowhere/python.*; are there"):
        compiler.start()
    compiler.close()


@pytest.mark.parametrize("after_s", [0, 1, 3])
def test_closing_ends_it_whatever_it_is_at(after_s: float, good: Path) -> None:
    """Its files in TMPDIR go, too, see `temporary`."""
    compiler = compiler_of(good, True, True)
    compiler.start()
    process = compiler._process
    time.sleep(after_s)
    compiler.close()
    assert process is not None
    assert process.returncode in (0, -signal.SIGKILL)


def test_it_ends_before_anybody_wants_the_networks(good: Path) -> None:
    """The driver may list inputs for an hour, and PyTorch takes memory."""
    compiler = compiler_of(good, True, True)
    compiler.start()
    assert compiler._process is not None
    assert compiler._process.wait(60) == 0
    compiler.networks()


def test_it_ends_by_itself_where_the_driver_is_gone(good: Path) -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    root = Path(__file__).parents[2]
    with open(write_end, "wb"), tempfile.TemporaryFile() as file:
        handed = write_end, file.fileno()
        command = [sys.executable, "-m", "pipeline.compiler", *map(str, handed), str(good), "pose"]
        done = subprocess.run(command, pass_fds=handed, capture_output=True, cwd=root)
    assert (done.returncode, done.stdout, done.stderr) == (1, b"", b"")


def test_ctrl_c_is_not_for_it(good: Path) -> None:
    compiler = compiler_of(good)
    compiler.start()
    assert compiler._process is not None
    assert os.getpgid(compiler._process.pid) != os.getpgrp()
    compiler.close()
