"""Links are followed within the folder, each file once, and what is not followed is counted."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from medtl.data.naming import Folder
from medtl.errors import ReadError
from medtl.imaging.listing import NOWHERE, OUTSIDE, REPEATED, Listing
from medtl.imaging.reader import read_images, scan


@pytest.fixture
def files(tmp_path: Path) -> Callable[..., Path]:
    """Return a writer of files below a folder, and of links ("name": "-> target")."""

    def make(**contents: str) -> Path:
        for name, content in contents.items():
            path = tmp_path / name.replace("__", "/")
            path.parent.mkdir(parents=True, exist_ok=True)
            if content.startswith("-> "):
                path.symlink_to(tmp_path / content[3:])
            else:
                path.write_text(content)
        return tmp_path / "in"

    return make


def listed(*roots: Path) -> tuple[list[str], dict[str, int]]:
    """Return what is listed, relative to the first folder, and what is not."""
    found = Listing(roots)
    return [path.relative_to(roots[0]).as_posix() for path in found.files], dict(found.left_out)


def test_a_linked_folder_outside_is_counted(files: Callable[..., Path]) -> None:
    root = files(in__a="a", out__b="b", in__train="-> out", in__file="-> out/b")
    assert listed(root) == (["a"], {OUTSIDE: 2})


def test_a_linked_folder_is_followed_where_nothing_else_leads(files: Callable[..., Path]) -> None:
    stored = {"in__.store__one__a": "a", "in__.store__b": "b"}
    root = files(**stored, in__x="-> in/.store/one", in__y="-> in/.store/b")
    assert listed(root) == (["x/a", "y"], {})


def test_what_is_listed_already_is_not_listed_again(files: Callable[..., Path]) -> None:
    root = files(in__d__a="a", in__x="-> in/d", in__y="-> in/d/a", in__z="-> in/d")
    assert listed(root) == (["d/a"], {REPEATED: 3})


def test_two_links_to_one_hidden_file_are_two_names_of_it(files: Callable[..., Path]) -> None:
    """git-annex keeps equal files once: a table may have a row for each."""
    root = files(**{"in__.store__a": "a"}, in__x="-> in/.store/a", in__y="-> in/.store/a")
    assert listed(root) == (["x", "y"], {})


def test_a_file_behind_two_links_is_listed_where_a_folder_leads(files: Callable[..., Path]) -> None:
    root = files(**{"in__.store__a": "a"}, in__x="-> in/.store/a", in__y="-> in/.store")
    assert listed(root) == (["y/a"], {REPEATED: 1})


def test_loops_and_links_to_nothing_are_counted(files: Callable[..., Path]) -> None:
    root = files(in__d__a="a", in__d__up="-> in", in__gone="-> absent", in__self="-> in/self")
    (root / "d/here").symlink_to(".")
    assert listed(root) == (["d/a"], {REPEATED: 2, NOWHERE: 2})


def test_links_between_the_folders_of_a_list_are_within_them(files: Callable[..., Path]) -> None:
    root = files(in__a="a", other__b="b", in__x="-> other")
    found = Listing([root, root.parent / "other", root / "a"])
    assert [path.name for path in found.files] == ["a", "b"] and found.left_out == {REPEATED: 1}


def test_a_folder_that_is_itself_a_link_is_walked(files: Callable[..., Path]) -> None:
    root = files(in__a="a", linked="-> in")
    assert listed(root.parent / "linked") == (["a"], {})


def test_folders_within_folders_are_listed_once(files: Callable[..., Path]) -> None:
    root = files(in__d__a="a", in__b="b")
    assert listed(root, root / "d") == (["b", "d/a"], {})


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="this user may list any folder")
def test_a_folder_that_cannot_be_listed_is_refused(files: Callable[..., Path]) -> None:
    root = files(in__d__a="a", in__b="b")
    (root / "d").chmod(0)
    found = Listing([root])
    (root / "d").chmod(0o755)
    assert [error.code for error in found.refusals] == ["file-unreadable"] and len(found.files) == 1


def test_a_scan_counts_links(make_radiograph: Callable, tmp_path: Path) -> None:
    make_radiograph(name="elsewhere/b.dcm")
    make_radiograph(name="in/a.dcm")
    (tmp_path / "in/train").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    assert scan(tmp_path / "in").left_out == {OUTSIDE: 1}
    (tmp_path / "in/a.dcm").unlink()
    with pytest.raises(ReadError) as caught:
        scan(tmp_path / "in")
    assert f"{OUTSIDE}: 1" in caught.value.reason and "to which they lead" in caught.value.fix


def test_a_row_may_name_an_image_by_any_of_its_links(make_radiograph: Callable, tmp_path: Path) -> None:
    """As folders of git-annex and of DVC are: all files are links into a hidden folder."""
    make_radiograph(name="in/.store/0123.dcm")
    for name in ("x.dcm", "y.dcm"):
        (tmp_path / "in" / name).symlink_to(tmp_path / "in/.store/0123.dcm")
    found = scan(tmp_path / "in")
    assert [one.path.name for one in found.series] == ["x.dcm"]
    assert found.left_out == {"exact copies of other files": 1}
    folder = Folder(tmp_path / "in", found)
    assert folder.find_path("y.dcm") is folder.find_path("x.dcm") is found.series[0]


def test_a_series_of_linked_slices_is_one_volume(make_series: Callable, tmp_path: Path) -> None:
    paths = make_series(instances=4, folder="in/.store")
    (tmp_path / "in/mr").symlink_to(paths[0].parent)
    (linked,) = read_images(tmp_path / "in")
    (plain,) = read_images(paths[0].parent)
    np.testing.assert_array_equal(linked.pixels, plain.pixels)
