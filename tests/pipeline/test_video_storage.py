"""Videos on storage: odd names, places, what is missing, and what fails in the middle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline import video
from pipeline.errors import InputError
from pipeline.reader import read_frames
from pipeline.video import Range
from tests.pipeline.conftest import OPTIONS, Place
from tests.pipeline.videos import MOST, cut, decode_all, read, write_video


@pytest.mark.parametrize("name", ["a b.mp4", "100%.mp4", "a:b.mp4", "https:x.mp4", "#?ü.mp4"])
def test_videos_may_have_odd_names(name: str, tmp_path: Path) -> None:
    path = write_video(tmp_path / name, frames=2)
    assert len(read(path, cut(path, 10))[0]) == 2


@pytest.mark.parametrize("name", ["v.mp4", "v.mkv", "v.ts"])
def test_videos_are_read_from_any_storage(place: Place, name: str, tmp_path: Path) -> None:
    local = write_video(tmp_path / f"local-{name}", frames=20, b_frames=2)
    place.put(name, local.read_bytes())
    ranges = cut(f"{place.uri}/{name}", 8)
    frames, failures = read(f"{place.uri}/{name}", ranges)
    assert failures == []
    assert [frame.pts for frame in frames] == [pts for pts, _ in decode_all(local)]


def test_missing_and_empty_objects_on_s3(s3_place: Place) -> None:
    for name, code in [("none.mp4", "not_found"), ("empty.mp4", "empty")]:
        s3_place.put("empty.mp4", b"")
        with pytest.raises(InputError) as caught:
            cut(f"{s3_place.uri}/{name}", 8)
        assert caught.value.code == code


class Failing:
    """A file system whose files stop in the middle."""

    def __init__(self, path: Path, error: Exception) -> None:
        self.path, self.error = path, error

    def open(self, path: str, mode: str, block_size: int) -> Any:
        failing = self

        class File:
            size = failing.path.stat().st_size
            file = failing.path.open("rb")

            def __enter__(self) -> Any:
                return self

            def __exit__(self, *_: object) -> None:
                self.file.close()

            def read(self, count: int) -> bytes:
                if self.file.tell() > self.size // 2:
                    raise failing.error
                return self.file.read(count)

            def seek(self, offset: int, whence: int = 0) -> int:
                return self.file.seek(offset, whence)

            def tell(self) -> int:
                return self.file.tell()

        return File()


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (OSError("connection reset"), "storage"),
        (PermissionError("token expired"), "forbidden"),
        (FileNotFoundError("deleted"), "not_found"),
    ],
)
def test_storage_that_fails_in_the_middle_is_not_called_damage(
    error: Exception, code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_video(tmp_path / "v.ts", frames=400, options={"crf": "1"})
    monkeypatch.setattr(video, "open_filesystem", lambda uri, options: Failing(path, error))
    with pytest.raises(InputError) as caught:
        list(read_frames("memory://v.ts", OPTIONS, Range(None, None, 0, 400), None, MOST))
    assert caught.value.code == code
