"""Listings: sorted, complete, and the same whether they are cut into parts or not."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from pipeline import listing
from pipeline.listing import FileInfo, parts_of, walk
from pipeline.storage import list_bucket, open_filesystem, path_of
from tests.pipeline.conftest import OPTIONS, Place
from tests.pipeline.test_storage import ODD_NAMES


def test_a_walk_is_sorted_and_passes_over_hidden_files(place: Place) -> None:
    names = ["b.jpg", "a/2.jpg", "a/1.jpg", "a.jpg", "a/c/1.png", "z.txt"]
    for name in [*names, ".hidden.jpg", ".cache/1.jpg", "a/.x.jpg"]:
        place.put(name, b"x")
    found = list(walk(place.uri, OPTIONS))
    assert [file.uri for file in found] == [f"{place.table_uri}/{n}" for n in sorted(names)]
    assert all(file.size == 1 and file.mtime is not None for file in found)
    assert all((file.etag is not None) == (place.s3 is not None) for file in found)


def test_odd_names_are_walked_and_read(place: Place) -> None:
    expected = {place.put(f"photos/{name}", name.encode()): name for name in ODD_NAMES}
    found = [file.uri for file in walk(f"{place.uri}/photos", OPTIONS)]
    assert found == sorted(expected)
    for uri in found:
        data = open_filesystem(uri, OPTIONS).cat_file(path_of(uri))
        assert data == expected[uri].encode()


def test_s3_keys_that_are_no_paths_are_walked(s3_place: Place) -> None:
    """Empty path components, and the markers that consoles make for folders."""
    for name, data in [
        ("p/a//b.jpg", b"1"),
        ("p//c.jpg", b"2"),
        ("p/d/", b""),
        ("p/../e.jpg", b"3"),
        ("p/f/..jpg", b"4"),
        ("p/.g/h.jpg", b"5"),
    ]:
        s3_place.put(name, data)
    found = [file.uri for file in walk(f"{s3_place.uri}/p/", OPTIONS)]
    names = "p/../e.jpg", "p//c.jpg", "p/a//b.jpg", "p/f/..jpg"
    expected = [f"{s3_place.uri}/{name}" for name in names]
    assert found == expected
    contents = [open_filesystem(uri, OPTIONS).cat_file(path_of(uri)) for uri in found]
    assert contents == [b"3", b"2", b"1", b"4"]


def test_a_walk_goes_through_all_pages(s3_place: Place) -> None:
    for i in range(7):
        s3_place.put(f"p/{i}.jpg", b"x")
    s3_place.put("pq/other.jpg", b"x")
    fs = open_filesystem(s3_place.uri, OPTIONS)
    pages = []

    class Paged:
        split_path = fs.split_path

        def call_s3(self, method: str, **request: Any) -> Any:
            pages.append(request.get("ContinuationToken"))
            return fs.call_s3(method, **request, MaxKeys=3)

    names = [entry["name"] for entry in list_bucket(Paged(), path_of(f"{s3_place.uri}/p"))]
    assert len(pages) == 3
    assert names == [f"{path_of(s3_place.uri)}/p/{i}.jpg" for i in range(7)]


def test_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "1.jpg").write_bytes(b"x")
    root = tmp_path / "root"
    root.mkdir()
    (root / "folder").symlink_to(outside)
    (root / "file.jpg").symlink_to(outside / "1.jpg")
    (root / "broken.jpg").symlink_to(outside / "none.jpg")
    (root / "loop").symlink_to(root)
    found = [file.uri.removeprefix(f"{root}/") for file in walk(str(root), OPTIONS)]
    assert found == ["broken.jpg", "file.jpg", "folder/1.jpg"]


@pytest.mark.parametrize("target", ["none.jpg", "link.jpg", "file.jpg/x.jpg"])
def test_a_link_that_leads_nowhere_is_listed_as_a_file(tmp_path: Path, target: str) -> None:
    """One to itself, or through a file, anywhere in a tree ended the listing of it all."""
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "file.jpg").write_bytes(b"x")
    (tmp_path / "sub" / "link.jpg").symlink_to(target)
    files = list(walk(str(tmp_path), OPTIONS))
    names = [(file.uri.removeprefix(f"{tmp_path}/"), file.size) for file in files]
    assert names == [("sub/file.jpg", 1), ("sub/link.jpg", None)]


def test_a_link_that_cannot_be_looked_at_is_not_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may lead to a folder full of pictures."""

    class Refused:
        name = "camera"

        def is_dir(self) -> bool:
            raise PermissionError("the share says no")

    monkeypatch.setattr(listing.os, "scandir", lambda path: nullcontext([Refused()]))
    with pytest.raises(PermissionError, match="the share says no"):
        list(walk(str(tmp_path), OPTIONS))


def listed(parts: list[listing.Part]) -> list[FileInfo]:
    return [file for part in parts for file in part()]


NAMES = [
    *(f"{day}/{camera}/{i}.jpg" for day in "abc" for camera in ("x", "y") for i in range(3)),
    *(
        "a.jpg",
        "a-b.jpg",
        "b/0.jpg",
        "b/z.jpg",
        "zz.jpg",
        "ä/ö.jpg",
        "a/.hidden/1.jpg",
        ".no/1.jpg",
    ),
]


@pytest.mark.parametrize("most", [1, 4, 64])
def test_parts_are_the_walk(place: Place, monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    for name in NAMES:
        place.put(f"in/{name}", b"x")
    monkeypatch.setattr(listing, "_PARTS", most)
    whole = list(walk(f"{place.uri}/in", OPTIONS))
    parts = parts_of(f"{place.uri}/in", OPTIONS)
    assert listed(parts) == whole
    assert len(whole) == len(NAMES) - 2
    # Untouched; a/, b/, c/, ä/ and the files around them; all opened, which leaves files alone.
    assert len(parts) == {1: 1, 4: 6, 64: 1}[most]


@pytest.mark.parametrize("wide", [10, 100])
def test_files_side_by_side_are_one_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wide: int
) -> None:
    """A thread and a file of its own for each of a million files would be the end."""
    monkeypatch.setattr(listing, "_WIDE", wide)
    for i in range(50):
        (tmp_path / f"{i:02d}.jpg").write_bytes(b"x")
    [part] = parts_of(str(tmp_path), OPTIONS)
    assert len(list(part())) == 50


def test_a_wide_folder_of_a_bucket_is_not_taken_apart(
    s3_place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To look at each of a million folders costs more requests than to read through them."""
    monkeypatch.setattr(listing, "_PAGES", 0)
    for i in range(5):
        s3_place.put(f"p/{i}/x.jpg", b"x")
    [part] = parts_of(f"{s3_place.uri}/p", OPTIONS)
    assert len(list(part())) == 5
