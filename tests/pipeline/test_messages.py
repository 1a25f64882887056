"""The line between a prepare actor and its decoder processes."""

import socket
import threading

import numpy as np
import pytest

from pipeline.messages import Alive, Failure, Line


@pytest.fixture
def ends():
    one, other = socket.socketpair()
    with one, other:
        yield one, other


def test_a_message_and_its_bytes_come_as_they_were_sent(ends):
    """Also when they are larger than what the kernel holds."""
    here, there = map(Line, ends)
    crops = np.random.default_rng(0).integers(0, 256, (5, 1, 400, 400, 3), np.uint8)
    messages = [(Failure("corrupt", "it ends early"), None), (Alive(), crops), ("last", None)]

    def send():
        for message, raw in messages:
            here.send(message, None if raw is None else raw.data)

    sender = threading.Thread(target=send)
    sender.start()
    for message, raw in messages:
        assert there.receive() == message
        if raw is not None:
            assert bytes(there.receive_raw(raw.size)) == raw.tobytes()
    sender.join()
    assert not there.receive_raw(0)


@pytest.mark.parametrize("sent", [b"", b"\0" * 5, (100).to_bytes(8, "big") + b"half"])
def test_one_that_hangs_up(ends, sent):
    here, there = ends
    here.sendall(sent)
    here.close()
    with pytest.raises(EOFError):
        Line(there).receive()


@pytest.mark.parametrize("seconds", [0.05, 1e-9])
@pytest.mark.parametrize("sent", [b"", b"\0" * 5, (100).to_bytes(8, "big") + b"half"])
def test_one_that_stops_has_its_time(ends, sent, seconds):
    here, there = ends
    here.sendall(sent)
    line = Line(there)
    line.wait_at_most(seconds)
    with pytest.raises(BlockingIOError):
        line.receive()


def test_one_that_does_not_listen_has_its_time(ends):
    line = Line(ends[0])
    line.wait_at_most(0.05)
    with pytest.raises(BlockingIOError):
        line.send("much", memoryview(bytes(10_000_000)))


def test_who_is_silent(ends):
    here, there = ends
    line = Line(there)
    assert line.is_silent()
    here.sendall(b"x")
    assert not line.is_silent()
    assert bytes(line.receive_raw(1)) == b"x"
    assert line.is_silent()
    here.close()
    assert not line.is_silent()
