"""Power loss on a real ext4: a loop device whose image is copied, as the disk has it, at the moment of the fault."""

from __future__ import annotations

import os
import shutil
import subprocess
from types import TracebackType

from faults.syscalls.harness import BEFORE, FAULTY, RECORDED, STRUCK, Harness
from faults.syscalls.verdict import Tally
from faults.syscalls.zygote import Outcome, with_inject

_IMAGE_MB = 24
_AT_END = ("END", 0)


class MountError(OSError):
    """The system does not let us mount, or has no ext4."""


class LoopDisk:
    """An ext4 file system in a file, mounted at `mounted`; a context that leaves nothing mounted.

    Args:
        work: Directory for the image and the mount points.

    Raises:
        MountError: On entering the context.
    """

    def __init__(self, work: str) -> None:
        self.image = f"{work}/disk.image"
        self.mounted = f"{work}/disk"
        self._second = f"{work}/disk-after"

    def __enter__(self) -> LoopDisk:
        os.makedirs(self.mounted)
        os.makedirs(self._second)
        _run("dd", "if=/dev/zero", f"of={self.image}", "bs=1M", f"count={_IMAGE_MB}")
        _run("mkfs.ext4", "-q", "-b", "4096", "-O", "^resize_inode", "-J", "size=4", self.image)
        self.mount()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for mounted in (self.mounted, self.mounted, self._second):
            subprocess.run(["umount", mounted], check=False, capture_output=True)

    def mount(self) -> None:
        """Mount the image."""
        _run("mount", "-o", "loop", self.image, self.mounted)

    def unmount(self) -> None:
        """Unmount the image, which brings everything to it."""
        _run("umount", self.mounted)

    def keep(self, path: str) -> None:
        """Copy the image, mounted or not, as it is on the disk now."""
        shutil.copyfile(self.image, path)

    def start_from(self, path: str) -> None:
        """Replace the image, which is not mounted, by a copy, and mount it."""
        shutil.copyfile(path, self.image)
        self.mount()

    def mount_after_crash(self, path: str) -> None:
        """Mount a copy where the image had been mounted: its journal is replayed."""
        _run("mount", "-o", "loop", path, self._second)
        _run("mount", "--bind", self._second, self.mounted)

    def unmount_after_crash(self) -> None:
        """Undo `mount_after_crash`."""
        _run("umount", self.mounted)
        _run("umount", self._second)


def _run(*command: str) -> None:
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise MountError(f"{' '.join(command)}: {error}") from error


def ext4(harness: Harness, most: int = 18) -> list[Tally]:
    """Cut the power at calls of a save, with and without another process's fsync, which commits the journal."""
    tally = Tally("power loss on a real ext4")
    usual = harness.directory
    try:
        with LoopDisk(harness.work) as disk:
            harness.directory = f"{disk.mounted}/run"
            _try_points(harness, disk, tally, most)
    except MountError as error:
        tally.note = f"not available: {error}"
    finally:
        harness.directory = usual
    return [tally]


def _try_points(harness: Harness, disk: LoopDisk, tally: Tally, most: int) -> None:
    base, crashed = f"{disk.image}.base", f"{disk.image}.crashed"
    os.makedirs(harness.directory)
    harness.save_cleanly(BEFORE)
    os.sync()
    disk.unmount()
    disk.keep(base)
    disk.mount()
    harness.save_cleanly(STRUCK, RECORDED)
    points = [(call, number) for call, number, _ in harness.points_in_log(FAULTY - {"write", "pwrite64"})]
    disk.unmount()
    for call, number in harness.pick([*points, _AT_END], most, 400):
        for has_other in (False, True):
            disk.start_from(base)
            outcome = _save_until(harness, call, number)
            if has_other:
                _fsync_another_file(f"{disk.mounted}/other")
            disk.keep(crashed)
            disk.unmount()
            if call != "END" and outcome.ending.signal != 9:
                continue
            disk.mount_after_crash(crashed)
            where = f"power cut at {call}#{number}" if call != "END" else "power cut after save(4) returned"
            try:
                violations = harness.look(outcome.promise(*BEFORE))
            finally:
                disk.unmount_after_crash()
            tally.add(violations, where + (", another process had fsynced" if has_other else ""))


def _save_until(harness: Harness, call: str, number: int) -> Outcome:
    trace = None if call == "END" else with_inject(RECORDED, f"{call}:signal=KILL:when={number}")
    return harness.zygote.write(harness.directory, [("save", step) for step in STRUCK], trace=trace)


def _fsync_another_file(path: str) -> None:
    fd = os.open(path, os.O_CREAT | os.O_WRONLY)
    try:
        os.write(fd, b"x")
        os.fsync(fd)
    finally:
        os.close(fd)
