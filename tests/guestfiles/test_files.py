"""`vmcellar files`: what comes out of a guest's file systems is what the guest had, down to holes and odd names."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from unittest.mock import patch

import pytest
from typer.testing import CliRunner

from lab.filesystems import MTIME, PASSPHRASE, SECRET, SPARSE_SIZE, WINDOWS_FILES, FileSystems, use_working_accelerator
from tests.docs.pages import ROOT, commands_of
from tests.docs.playing import check
from tests.docs.terminal import Terminal
from tests.proof.cellar import Cellar
from vmcellar.cli.commands import files
from vmcellar.cli.main import app
from vmcellar.errors import CancelledError, PermanentError
from vmcellar.guestfiles.fetch import archive, get
from vmcellar.guestfiles.inside import Inside
from vmcellar.guestfiles.listing import list_path
from vmcellar.progress import CancelToken
from vmcellar.repository import leases

pytestmark = pytest.mark.libvirt
MIB = 1 << 20

TREES = ("vda1", "vg0/data", "vdc")
"""File systems that hold the lab's tree: ext4, XFS on LVM, Btrfs."""

Mount = Callable[[str], Inside]


@pytest.fixture
def mounted(inside: Inside) -> Iterator[Mount]:
    """Call it with a file system's name; unmounted at the end of the test."""

    def mount(name: str) -> Inside:
        inside.mount(name)
        return inside

    yield mount
    inside.unmount()


def content(path: Path) -> dict[int, bytes]:
    """The blocks of 4 KiB that are not zero, without reading the holes."""
    found: dict[int, bytes] = {}
    with path.open("rb") as file:
        end = 0
        while True:
            try:
                start = os.lseek(file.fileno(), end, os.SEEK_DATA)
            except OSError:  # nothing but a hole up to the end
                return found
            end = os.lseek(file.fileno(), start, os.SEEK_HOLE)
            for offset in range(start - start % 4096, end, 4096):
                block = os.pread(file.fileno(), 4096, offset)
                if block.strip(b"\0"):
                    found[offset] = block


def facts(path: Path) -> dict[str, object]:
    """All that must be the same of one file; `holes` says whether a large one takes less than half of its size."""
    about = path.lstat()
    return {
        "mode": about.st_mode,
        "owner": (about.st_uid, about.st_gid),
        "mtime": about.st_mtime_ns,
        "size": about.st_size if not stat.S_ISDIR(about.st_mode) else 0,
        "link": path.readlink() if path.is_symlink() else None,
        "content": content(path) if stat.S_ISREG(about.st_mode) else None,
        "holes": stat.S_ISREG(about.st_mode) and about.st_size >= MIB and about.st_blocks * 512 < about.st_size // 2,
        "xattrs": {name: os.getxattr(path, name, follow_symlinks=False) for name in names_of_xattrs(path)},
        "links": about.st_nlink if stat.S_ISREG(about.st_mode) else 1,
    }


def names_of_xattrs(path: Path) -> list[str]:
    return [name for name in os.listxattr(path, follow_symlinks=False) if name.startswith("user.")]


def whole(root: Path) -> dict[bytes, dict[str, object]]:
    """The facts of a tree by name."""
    return {os.fsencode(path.relative_to(root)): facts(path) for path in (root, *root.rglob("*"))}


NAMES = {
    "vda1": ("ext4", ""),
    "vda2": ("crypto_LUKS", ""),
    "vg0/data": ("xfs", ""),
    "vg0/more": ("ext4", "more"),
    "vdc": ("btrfs", ""),
    "vdc/@home": ("btrfs", ""),
    "vdd1": ("ntfs", "Windows"),
}


def test_the_file_systems_are_named(inside: Inside) -> None:
    assert {one.name: (one.kind, one.label) for one in inside.file_systems()} == NAMES


@pytest.mark.parametrize("name", TREES)
def test_a_folder_comes_out_as_it_was(mounted: Mount, built: FileSystems, place: Path, name: str) -> None:
    found, left_out = get(mounted(name).guestfs, b"/tree", place, CancelToken())
    assert left_out == 0
    assert found == place / "tree"
    assert whole(found) == whole(built.tree)
    assert [path.name for path in place.iterdir()] == ["tree"]


@pytest.mark.parametrize("name", TREES)
def test_ls_tells_what_is_there(mounted: Mount, built: FileSystems, name: str) -> None:
    found = {one.name: one for one in list_path(mounted(name).guestfs, b"/tree")}
    assert list(found) == sorted(os.fsencode(path.name) for path in built.tree.iterdir())
    for encoded, one in found.items():
        source = built.tree / os.fsdecode(encoded)
        about = source.lstat()
        assert (one.mode, one.uid, one.gid, one.mtime) == (about.st_mode, about.st_uid, about.st_gid, MTIME)
        assert one.link == (os.fsencode(source.readlink()) if source.is_symlink() else b"")
    assert found[b"sparse"].size == SPARSE_SIZE


def test_every_single_file_comes_out_alone(mounted: Mount, built: FileSystems, place: Path) -> None:
    guestfs = mounted("vda1").guestfs
    for path in sorted(built.tree.iterdir()):
        if not path.is_dir() or path.is_symlink():
            found, _ = get(guestfs, b"/tree/" + os.fsencode(path.name), place / "one", CancelToken())
            assert {**facts(found), "links": 1} == {**facts(path), "links": 1}, path
            found.unlink()
    assert list(place.iterdir()) == []


def test_folders_are_followed_through_links_inside_the_guest(mounted: Mount, place: Path) -> None:
    guestfs = mounted("vda1").guestfs
    assert [one.name for one in list_path(guestfs, b"/tree/absolute")] == [b"empty", b"hard link", b"owned"]
    found, _ = get(guestfs, b"/tree/absolute/owned", place, CancelToken())
    assert found.stat().st_size == 100_000
    assert [one.link for one in list_path(guestfs, b"/tree/dangling")] == [b"nowhere/at all"]


def test_ntfs_and_a_subvolume(mounted: Mount, inside: Inside, place: Path) -> None:
    guestfs = mounted("vdd1").guestfs
    get(guestfs, b"/Users", place, CancelToken())
    assert {path.relative_to(place).as_posix(): path.read_bytes() for path in place.glob("*/*")} == WINDOWS_FILES
    assert all(path.stat().st_mtime_ns == MTIME // 10**9 * 10**9 for path in place.glob("*/*"))
    inside.unmount()
    assert [one.name for one in list_path(mounted("vdc/@home").guestfs, b"/")] == [b"note"]


@pytest.mark.skipif("VMCELLAR_EVERY_GUEST" not in os.environ, reason="half a minute: set VMCELLAR_EVERY_GUEST=1")
def test_without_a_name_the_guests_own_tree_is_meant(mounted: Mount) -> None:
    guestfs = mounted("").guestfs
    assert b"hostname" in [one.name for one in list_path(guestfs, b"/etc")]
    assert b"plain" in [one.name for one in list_path(guestfs, b"/data/tree")]  # another file system, by fstab


@pytest.mark.skipif("VMCELLAR_EVERY_GUEST" not in os.environ, reason="half a minute: set VMCELLAR_EVERY_GUEST=1")
def test_one_appliance_serves_all_commands_of_a_shell(cellar: Cellar, place: Path) -> None:
    """A process of its own, as a person starts it; a command that fails ends no other, and no lease is left."""
    (point,) = cellar.engine.repository.points()
    lines = (
        "ls vg0/data:/tree",
        f"get vda1:/tree/plain {place}/one",
        "get vda1:/nowhere x",
        f"get vdc:/tree/plain {place}/two",
    )
    with patch.dict(os.environ):
        use_working_accelerator()
        done = subprocess.run(
            [sys.executable, "-m", "vmcellar.cli.main", "files", "-c", cellar.file, point.id, "shell"],
            input="".join(f"{line}\n" for line in lines),
            capture_output=True,
            text=True,
            check=False,
        )
    assert "plain" in done.stdout
    assert (done.returncode, "1 of the commands failed" in done.stderr, "/nowhere" in done.stderr) == (1, True, True)
    assert [(place / name).read_bytes() for name in ("one", "two")] == [b"plain text\n"] * 2
    assert leases.found(cellar.engine.repository.tier, cellar.engine.repository.keyring) == []


def test_a_device_node_is_never_made(mounted: Mount, place: Path) -> None:
    guestfs = mounted("vda1").guestfs
    found, left_out = get(guestfs, b"/dev", place, CancelToken())
    assert left_out == 1
    assert list(found.iterdir()) == []
    with pytest.raises(PermanentError, match="device node"):
        get(guestfs, b"/dev/null", place / "null", CancelToken())
    assert [path.name for path in place.iterdir()] == ["dev"]


def test_an_archive_holds_the_same(mounted: Mount, built: FileSystems, tmp_path: Path) -> None:
    guestfs = mounted("vg0/data").guestfs
    with (tmp_path / "folder.tar").open("wb") as file:
        archive(guestfs, b"/tree/folder", file.fileno(), CancelToken())
        archive(guestfs, b"/tree/plain", file.fileno(), CancelToken())  # where the first one ended
    unpacked = tmp_path / "unpacked"
    unpacked.mkdir()
    subprocess.run(["tar", "-C", unpacked, "--ignore-zeros", "-xpf", tmp_path / "folder.tar"], check=True)
    assert facts(unpacked / "owned") == facts(built.tree / "folder/owned")
    assert (unpacked / "plain").read_bytes() == b"plain text\n"
    with tarfile.open(tmp_path / "folder.tar") as read:
        assert sorted(read.getnames()) == [".", "./empty", "./hard link", "./owned"]


@pytest.mark.parametrize(
    ("path", "message"),
    [(b"/tree/none", "no such file"), (b"/none/below", "No such file"), (b"/tree/plain/below", "Not a directory")],
)
def test_what_is_not_there_is_an_error(mounted: Mount, place: Path, path: bytes, message: str) -> None:
    guestfs = mounted("vda1").guestfs
    for act in (lambda: list_path(guestfs, path), lambda: get(guestfs, path, place, CancelToken())):
        with pytest.raises(PermanentError, match=message):
            act()
    assert list(place.iterdir()) == []


def test_nothing_is_overwritten(mounted: Mount, place: Path) -> None:
    guestfs = mounted("vda1").guestfs
    (place / "plain").symlink_to("nowhere")
    with pytest.raises(PermanentError, match="exists already"):
        get(guestfs, b"/tree/plain", place, CancelToken())
    with pytest.raises(PermanentError, match="is no folder"):
        get(guestfs, b"/tree/plain", place / "none" / "plain", CancelToken())
    with pytest.raises(PermanentError, match="no name of its own"):
        get(guestfs, b"/", place, CancelToken())
    assert [path.name for path in place.iterdir()] == ["plain"]


def test_a_cancelled_copy_leaves_nothing(mounted: Mount, place: Path) -> None:
    guestfs = mounted("vda1").guestfs
    cancel = CancelToken()
    cancel.cancel()
    with pytest.raises(CancelledError):
        get(guestfs, b"/tree", place, cancel)
    assert list(place.iterdir()) == []
    assert list_path(guestfs, b"/tree")  # and the appliance goes on


@pytest.mark.parametrize("name", ["vda1", "vg0/data", "vdc/@home", "vdd1"])
def test_a_file_system_that_is_named_is_not_looked_for(
    inside: Inside, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Which takes seconds: as the command that knows what it wants."""
    monkeypatch.setattr(inside, "_known", None)
    monkeypatch.setattr(inside.guestfs, "list_filesystems", lambda: pytest.fail("looked for"))
    inside.mount(name)
    try:
        assert list_path(inside.guestfs, b"/")
    finally:
        inside.unmount()


def test_what_cannot_be_mounted_is_said(inside: Inside) -> None:
    with pytest.raises(PermanentError, match=r"vda2 is encrypted \(crypto_LUKS\)"):
        inside.mount("vda2")
    with pytest.raises(PermanentError, match=r"no file system vdx1; on its disks: vda1 \(ext4\), vda2 ") as caught:
        inside.mount("vdx1")
    assert "vda1:/" in caught.value.hint


@pytest.fixture
def locked_again(inside: Inside) -> Iterator[None]:
    """What the test unlocked is locked at its end, as the appliance is every test's."""
    known = inside.file_systems()
    yield
    inside.unmount()
    for device in inside._opened:
        inside.guestfs._call("cryptsetup_close", device)
    inside._opened.clear()
    inside._known = known


@pytest.mark.usefixtures("locked_again")
def test_a_passphrase_opens_what_is_encrypted(inside: Inside, place: Path) -> None:
    with pytest.raises(PermanentError, match="the passphrase given for vda2 does not open it"):
        inside.unlock({"vda2": b"another"})
    with pytest.raises(PermanentError, match="vda1 is not encrypted") as caught:
        inside.unlock({"vda1": PASSPHRASE})
    assert caught.value.hint == "what is: vda2"
    inside.unlock({"vda2": PASSPHRASE})
    found = {one.name: (one.kind, one.label) for one in inside.file_systems()}
    assert found["vda2"] == ("ext4", "hidden")
    assert len(found) == len(NAMES)
    inside.mount("vda2")
    get(inside.guestfs, b"/secret", place, CancelToken())
    assert (place / "secret").read_text() == SECRET


def test_several_systems_are_not_guessed_at(inside: Inside, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inside.guestfs, "inspect_os", lambda: [b"/dev/sda1", b"/dev/sdc"])
    with pytest.raises(PermanentError, match="has 2 operating systems"):
        inside.mount("")


def test_the_command_lists_copies_and_packs(
    inside: Inside, cellar: Cellar, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextmanager
    def again(*_: object) -> Iterator[Inside]:
        try:
            yield inside
        finally:
            inside.unmount()

    monkeypatch.setattr(files, "opened", again)

    def run(*words: str, code: int = 0) -> str:
        done = CliRunner().invoke(app, ["files", "POINT", *words, "-c", str(cellar.file)])
        assert done.exit_code == code, (done.output, done.exception)
        return str(done.output)

    assert [line.split()[:2] for line in run("ls").splitlines() if "encrypted" in line] == [["vda2", "crypto_LUKS"]]
    text = run("ls", "vda1:/tree")
    assert f"{SPARSE_SIZE} 2001-02-03 04:05:06 sparse" in text
    assert r"new\nline" in text
    assert r"not utf-8 \xff\xfe" in text
    assert "link -> folder/owned" in text
    told = {os.fsencode(one["name"]): one for one in json.loads(run("ls", "vda1:/tree", "--json"))}
    assert told[b"not utf-8 \xff\xfe"]["mtime_ns"] == MTIME
    run("get", "vda1:/tree/plain", str(place))
    assert (place / "plain").read_text() == "plain text\n"
    run("tar", "vda1:/tree/folder", str(place / "folder.tar"))
    with tarfile.open(place / "folder.tar") as read:
        assert "./owned" in read.getnames()
    assert "needs a path" in str(CliRunner().invoke(app, ["files", "P", "get"]).exception)
    assert "does not begin with /" in str(CliRunner().invoke(app, ["files", "P", "ls", "tree"]).exception)


@pytest.mark.usefixtures("locked_again")
def test_the_commands_of_the_page_on_lvm_and_what_is_encrypted(
    inside: Inside,
    cellar: Cellar,
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The two of docs/restore.md that need a VM such as this one."""
    page = {command.text for command in commands_of(ROOT / "docs/restore.md")}
    terminal = Terminal(place, monkeypatch, capsys, {"web1@latest": cellar.engine.repository.points()[0].id})
    monkeypatch.setenv("VMCELLAR_CONFIG", str(cellar.file))
    monkeypatch.setattr(files, "opened", lambda *_: nullcontext(inside))
    (terminal.home / "web1.pass").write_bytes(PASSPHRASE)
    terminal.words["vg0/data:/srv/db"] = "vg0/data:/tree/folder"
    copied = "vmcellar files web1@latest get vg0/data:/srv/db /srv/db-of-monday"
    listed = "vmcellar files web1@latest ls vda2:/ --key vda2=/root/web1.pass"
    assert {copied, listed} <= page
    check(copied, terminal.type(copied), says=["copied to"])
    assert (place / "srv/db-of-monday/owned").exists()
    inside.unmount()
    check(listed, terminal.type(listed), says=["secret"])
