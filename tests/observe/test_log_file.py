"""Opening the log file: which links are followed, and what another user can do in the directory."""

from __future__ import annotations

import os
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from echod.observe import log_file
from echod.observe.log_file import open_file

if TYPE_CHECKING:
    from collections.abc import Iterator

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root has directories that no other user can replace")
LINK = "is a symbolic link in a directory that other users can write to or replace; remove the link"


@pytest.fixture
def trusted() -> Iterator[Path]:
    """Return a directory that root alone can write to, on the whole way from "/"; tmp_path lies below /tmp."""
    with tempfile.TemporaryDirectory(dir="/root") as name:
        yield Path(name)


def append(path: Path | str, text: str = "line\n") -> None:
    """Open the log file and write to it."""
    with ExitStack() as stack:
        fd = open_file(str(path))
        stack.callback(os.close, fd)
        os.write(fd, text.encode())


def give_away(directory: Path) -> Path:
    """Give a directory to another user, which exists, or is made."""
    directory.mkdir(exist_ok=True)
    os.chown(directory, 1, 1)
    return directory


@pytest.mark.parametrize("umask", [0o000, 0o022])
def test_new_file_has_mode_0640(tmp_path: Path, umask: int) -> None:
    """Nobody but user and group can read the log; a stricter umask counts."""
    before = os.umask(umask)
    try:
        append(tmp_path / "log")
    finally:
        os.umask(before)

    assert "0o640" == oct((tmp_path / "log").stat().st_mode & 0o7777)


def test_existing_file_is_appended_to(tmp_path: Path) -> None:
    """What is in the file stays, and its mode too."""
    path = tmp_path / "log"
    path.write_text("old\n")
    path.chmod(0o604)
    append(path)

    assert "old\nline\n" == path.read_text()
    assert "0o604" == oct(path.stat().st_mode & 0o7777)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("missing/log", FileNotFoundError),
        ("file/log", NotADirectoryError),
        (".", IsADirectoryError),
        ("directory/..", IsADirectoryError),
        ("directory/", IsADirectoryError),
    ],
)
def test_path_that_leads_to_no_file_is_the_kernels_error(tmp_path: Path, name: str, kind: type[OSError]) -> None:
    """The error is the one that open(2) gives."""
    tmp_path.joinpath("file").touch()
    tmp_path.joinpath("directory").mkdir()

    with pytest.raises(kind):
        open_file(f"{tmp_path}/{name}")


def test_path_is_walked_as_the_kernel_does(tmp_path: Path) -> None:
    """Empty components, "." and ".." mean what they always mean."""
    tmp_path.joinpath("a").mkdir()
    append(f"/{tmp_path}//a/./../log")

    assert "line\n" == (tmp_path / "log").read_text()


def test_root_directory_is_no_log_file() -> None:
    """The root directory has no name that could be opened, and is still one error."""
    with pytest.raises(IsADirectoryError):
        open_file("/")


def test_no_descriptor_is_left_open(tmp_path: Path) -> None:
    """Success leaves one descriptor open, failure none."""
    tmp_path.joinpath("link").symlink_to("target")
    before = len(list(Path("/proc/self/fd").iterdir()))
    os.close(open_file(str(tmp_path / "log")))
    for name in ("missing/log", "link", "."):
        with pytest.raises(OSError, match=r"."):
            open_file(str(tmp_path / name))

    assert before == len(list(Path("/proc/self/fd").iterdir()))


# -- symbolic links ---------------------------------------------------------------------------------------------------


@as_root
@pytest.mark.parametrize("target", ["target", "./sub/../target", "{}/target", "second"])
def test_link_in_directory_of_root_is_followed(trusted: Path, target: str) -> None:
    """Relative, absolute, and more than one; the file is made where the link leads."""
    trusted.joinpath("sub").mkdir()
    trusted.joinpath("second").symlink_to("target")
    trusted.joinpath("log").symlink_to(target.format(trusted))
    append(trusted / "log")

    assert "line\n" == (trusted / "target").read_text()


@as_root
def test_linked_directory_in_directory_of_root_is_followed(trusted: Path) -> None:
    """/var/log may be a link to another disk."""
    trusted.joinpath("disk").mkdir()
    trusted.joinpath("log").symlink_to("disk")
    append(trusted / "log" / "echod.log")

    assert "line\n" == (trusted / "disk" / "echod.log").read_text()


@as_root
@pytest.mark.parametrize("mode", [0o755, 0o775, 0o757])
@pytest.mark.parametrize("owner", [0, 1])
def test_link_where_others_can_write_is_refused(trusted: Path, mode: int, owner: int) -> None:
    """A file of root's that another user has linked to keeps its contents, and none is made through the link."""
    trusted.joinpath("secret").write_text("secret\n")
    directory = trusted / "logs"
    directory.mkdir()
    directory.joinpath("echod.log").symlink_to(trusted / "secret")
    directory.joinpath("new.log").symlink_to(trusted / "new")
    os.chown(directory, owner, owner)
    directory.chmod(mode)
    if (mode, owner) == (0o755, 0):
        append(directory / "echod.log")
        return
    for name in ("echod.log", "new.log"):
        with pytest.raises(OSError, match=f'"{name}" {LINK}'):
            append(directory / name)

    assert "secret\n" == (trusted / "secret").read_text()
    assert not (trusted / "new").exists()


@as_root
def test_linked_directory_where_others_can_write_is_refused(trusted: Path) -> None:
    """The owner of a directory further up may not choose where the log goes either."""
    trusted.joinpath("etc").mkdir()
    home = give_away(trusted / "home")
    home.joinpath("logs").symlink_to(trusted / "etc")

    with pytest.raises(OSError, match=f'"logs" {LINK}'):
        append(home / "logs" / "echod.log")
    assert [] == list((trusted / "etc").iterdir())


@as_root
def test_link_below_a_directory_of_another_user_is_refused(trusted: Path) -> None:
    """A directory of root's that another user can rename away is as good as that user's own."""
    home = give_away(trusted / "home")
    home.joinpath("logs").mkdir()
    home.joinpath("logs", "echod.log").symlink_to(trusted / "target")

    with pytest.raises(OSError, match=f'"echod.log" {LINK}'):
        append(home / "logs" / "echod.log")


@as_root
def test_link_of_root_to_link_of_another_user_is_refused(trusted: Path) -> None:
    """What is behind a link that root has made is looked at the same way."""
    home = give_away(trusted / "home")
    home.joinpath("log").symlink_to(trusted / "secret")
    trusted.joinpath("log").symlink_to("home/log")

    with pytest.raises(OSError, match=f'"log" {LINK}'):
        append(trusted / "log")
    assert not (trusted / "secret").exists()


@as_root
def test_links_in_a_circle_end(trusted: Path) -> None:
    """As for the kernel, there is a limit."""
    trusted.joinpath("a").symlink_to("b")
    trusted.joinpath("b").symlink_to("a")

    with pytest.raises(OSError, match="Too many levels of symbolic links"):
        open_file(str(trusted / "a"))


@as_root
def test_link_that_appears_after_the_look_is_not_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the look and the open another user swaps the file for a link: the open fails."""
    monkeypatch.setattr(log_file._Walk, "_link_target", lambda *_: None)
    tmp_path.joinpath("log").symlink_to("target")

    with pytest.raises(OSError, match="Too many levels of symbolic links"):
        open_file(str(tmp_path / "log"))
    assert not (tmp_path / "target").exists()


@pytest.mark.parametrize("path", ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"])
def test_standard_output_by_name_works(path: str) -> None:
    """The links of /dev lead to /proc, whose links lead to open files."""
    reader, writer = os.pipe()
    kept = os.dup(1)
    os.dup2(writer, 1)
    try:
        append(path)
    finally:
        os.dup2(kept, 1)
        for fd in (kept, writer):
            os.close(fd)
    with os.fdopen(reader) as pipe:
        assert "line\n" == pipe.read()


def test_device_and_fifo_are_opened_as_they_are(tmp_path: Path) -> None:
    """A log may be a device, or a FIFO that somebody reads."""
    append("/dev/null")
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    try:
        append(fifo)
        assert b"line\n" == os.read(reader, 100)
    finally:
        os.close(reader)


# -- hard links -------------------------------------------------------------------------------------------------------


@as_root
def test_hard_link_where_others_can_write_is_refused(trusted: Path) -> None:
    """The second name may be a file of root's, which root must not append to for another user."""
    trusted.joinpath("secret").write_text("secret\n")
    home = give_away(trusted / "home")
    os.link(trusted / "secret", home / "log")

    with pytest.raises(OSError, match=r"the file has a second name \(a hard link\)"):
        append(home / "log")
    assert "secret\n" == (trusted / "secret").read_text()


@as_root
def test_hard_link_in_directory_of_root_is_appended_to(trusted: Path) -> None:
    """What root links is root's affair."""
    trusted.joinpath("archive").touch()
    os.link(trusted / "archive", trusted / "log")
    append(trusted / "log")

    assert "line\n" == (trusted / "archive").read_text()
