"""Writing files so that they are absent or complete, whatever happens on the way.

On Linux a file is written without a name (`O_TMPFILE`) and gets one when it is complete: a process
that dies, `kill -9` included, leaves nothing. Where a file of that name exists already, the new one
gets a temporary name first and is renamed over it: `link` cannot replace. A process killed between
these two calls (microseconds) leaves the temporary name, of which `onnxcomp.stages` knows. On file
systems without unnamed files the temporary name exists for as long as the writing takes.

A model with external data is two files; both are complete before the first gets its name, the data
comes first and the model last. A symbolic link as target is replaced, never followed.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Self

from onnxcomp import stages
from onnxcomp.errors import UserError, quoted

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

# One system call moves at most this much, so that an interrupt is noticed soon.
_CHUNK_BYTES = 1 << 28
_UNNAMED = getattr(os, "O_TMPFILE", 0)
_FLAGS = os.O_CLOEXEC if hasattr(os, "O_CLOEXEC") else 0
# What a file system answers that has no unnamed files, or a system without /proc to name them by.
_NO_UNNAMED = {errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT, errno.EINVAL, errno.EPERM, errno.EXDEV}
# What copy_file_range answers where it does not work: between file systems, on special ones.
_NO_COPY = {errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS, errno.EPERM, errno.EBADF}


def check_output(path: str | os.PathLike[str], inputs: Sequence[Path], in_place: bool) -> None:
    """Raises `UserError` unless a file could be written there; call it before any work begins.

    Args:
        path: Where the output shall go.
        inputs: Files that are read; the output must be none of them under whatever name.
        in_place: Allow the output to replace one of the inputs.
    """
    path = Path(path)
    status = _status(path, path)
    if _status(path.parent, path) is None:
        raise UserError(f"cannot write {_named(path)}: the folder does not exist")
    if path.name in {"", "..", "."} or (status and stat.S_ISDIR(status.st_mode)):
        raise UserError(f"cannot write {_named(path)}: it is a folder", hint="name a file")
    if status and not stat.S_ISREG(status.st_mode):
        raise UserError(f"cannot write {_named(path)}: it is not a regular file")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise UserError(f"cannot write {_named(path)}: the folder is read-only")
    _check_name(path)
    if status and not in_place:
        _check_not_input(path, status, inputs)


def _status(path: Path, output: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except FileNotFoundError:
        return None
    except NotADirectoryError:
        raise UserError(f"cannot write {_named(output)}: its folder is a file") from None
    except (OSError, ValueError) as error:
        raise _unwritable(output, error) from None


def _check_name(path: Path) -> None:
    try:
        longest = os.pathconf(path.parent, "PC_NAME_MAX")
    except (OSError, ValueError, AttributeError):
        longest = 255
    if len(os.fsencode(path.name)) > longest:
        raise UserError(f"cannot write {_named(path)}: the name is too long")


def _check_not_input(path: Path, status: os.stat_result, inputs: Sequence[Path]) -> None:
    for source in inputs:
        with suppress(OSError):
            if os.path.samestat(source.stat(), status):
                raise UserError(
                    f"{_named(path)} is the input itself",
                    hint="give another name, or --in-place to replace it",
                )


def _named(path: Path) -> str:
    return quoted(path, 200)


def _unwritable(path: Path, error: OSError | ValueError) -> UserError:
    said = (isinstance(error, OSError) and error.strerror) or str(error)
    return UserError(f"cannot write {_named(path)}: {said.lower()}")


class OutputFile:
    """A file being written that does not exist under its name yet."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._temporary: Path | None = None
        self._existed: os.stat_result | None = None
        with suppress(FileNotFoundError):
            self._existed = path.lstat()
        self._descriptor = self._open()

    def _open(self) -> int:
        if _UNNAMED:
            try:
                return os.open(self.path.parent, _UNNAMED | os.O_RDWR | _FLAGS, 0o666)
            except OSError as error:
                if error.errno not in _NO_UNNAMED:
                    raise
        return self._open_named()

    def _open_named(self) -> int:
        self._temporary = self._reserve()
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | _FLAGS | getattr(os, "O_NOFOLLOW", 0)
        try:
            return os.open(self._temporary, flags, 0o666)
        except BaseException:
            self._forget()
            raise

    def _reserve(self) -> Path:
        """Returns a name beside the target that nobody uses, and makes it known for removal."""
        name = f".onnxcomp-{os.getpid()}-{secrets.token_hex(8)}.tmp"
        temporary = self.path.with_name(name)
        stages.register_temporary(temporary)
        return temporary

    def fileno(self) -> int:
        """Returns the descriptor."""
        return self._descriptor

    def seek(self, offset: int) -> None:
        """Goes to a byte; what is left out reads as zeros."""
        os.lseek(self._descriptor, offset, os.SEEK_SET)

    def tell(self) -> int:
        """Returns where the next byte goes."""
        return os.lseek(self._descriptor, 0, os.SEEK_CUR)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Writes all of the data."""
        try:
            with memoryview(data).cast("B") as view:
                done = 0
                while done < len(view):
                    done += os.write(self._descriptor, view[done : done + _CHUNK_BYTES])
        except OSError as error:
            raise _unwritable(self.path, error) from None

    def complete(self, *, durable: bool) -> None:
        """Everything is written: sets the permissions and, if asked, waits for the disk."""
        if self._existed and stat.S_ISREG(self._existed.st_mode):
            with suppress(PermissionError):
                os.fchmod(self._descriptor, stat.S_IMODE(self._existed.st_mode))
        if durable:
            os.fsync(self._descriptor)

    def publish(self) -> None:
        """Gives the file its name, replacing what is there."""
        if self._temporary is None:
            try:
                self._link(self.path)
            except FileExistsError:
                self._temporary = self._reserve()
                self._link(self._temporary)
            except OSError as error:
                if error.errno not in _NO_UNNAMED:
                    raise
                self._copy_to_named()
            else:
                return
        assert self._temporary is not None
        self._temporary.replace(self.path)
        self._forget()

    def _copy_to_named(self) -> None:
        """Moves the contents to a file with a temporary name: this system cannot name others."""
        unnamed = self._descriptor
        self._descriptor = self._open_named()
        try:  # durable in any case: this is rare, and was asked for in most
            status = os.fstat(unnamed)
            os.fchmod(self._descriptor, stat.S_IMODE(status.st_mode))
            copy_range(unnamed, self._descriptor, 0, status.st_size)
            os.fsync(self._descriptor)
        finally:
            os.close(unnamed)

    def _link(self, target: Path) -> None:
        """Gives the unnamed file a name that must be free."""
        folder = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY | _FLAGS)
        try:
            source = f"/proc/self/fd/{self._descriptor}"
            # Only with a folder descriptor does Python use the call that follows the link in /proc.
            os.link(source, target.name, dst_dir_fd=folder, follow_symlinks=True)
        finally:
            os.close(folder)

    def withdraw(self) -> None:
        """Takes back a name that `publish` gave, unless another file had it before."""
        if self._existed is None:
            with suppress(OSError):
                if os.path.samestat(self.path.lstat(), os.fstat(self._descriptor)):
                    self.path.unlink()

    def close(self) -> None:
        """Frees the file; without a name, it is gone."""
        os.close(self._descriptor)
        if self._temporary is not None:
            with suppress(FileNotFoundError):
                self._temporary.unlink()
            self._forget()

    def _forget(self) -> None:
        if self._temporary is not None:
            stages.forget_temporary(self._temporary)
            self._temporary = None


class AtomicWriter:
    """Writes one file, or one and others it refers to: all appear, or none does.

    ```
    with AtomicWriter(path) as writer:
        writer.open(data_path).write(weights)
        writer.open(path).write(model)
    ```

    Leaving the block without an error gives the files their names, `path` last. An error, an
    interrupt included, leaves nothing behind and what was there untouched.

    Args:
        path: The file that is complete only when the others are there.
        durable: Wait until the disk has the data, so that a power cut cannot undo the promise.
    """

    def __init__(self, path: str | os.PathLike[str], *, durable: bool = True) -> None:
        self.path = Path(path)
        self.durable = durable
        self._files: list[OutputFile] = []

    def open(self, path: str | os.PathLike[str] | None = None) -> OutputFile:
        """Starts a file; nothing is visible under its name before the block ends."""
        path = self.path if path is None else Path(path)
        check_output(path, [], in_place=True)
        try:
            file = OutputFile(path)
        except OSError as error:
            raise _unwritable(path, error) from None
        self._files.append(file)
        return file

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                self._publish()
        finally:
            for file in self._files:
                file.close()
            self._files.clear()

    def _publish(self) -> None:
        # A sort is stable: data files in the order they were opened, the model last.
        files = sorted(self._files, key=lambda file: file.path == self.path)
        file = None
        try:
            for file in files:
                file.complete(durable=self.durable)
            self._name_all(files)
            if self.durable:
                for folder in dict.fromkeys(file.path.parent for file in files):
                    _sync_folder(folder)
        except OSError as error:
            raise _unwritable(file.path if file else self.path, error) from None

    @staticmethod
    def _name_all(files: Sequence[OutputFile]) -> None:
        named: list[OutputFile] = []
        try:
            for file in files:
                named.append(file)
                file.publish()
        except BaseException:
            for file in named:
                file.withdraw()
            raise


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | _FLAGS)
    try:
        with suppress(OSError):  # some network file systems cannot; the files themselves are safe
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def copy_range(source: int, target: int, offset: int, length: int) -> None:
    """Copies bytes of one open file to the current position of another, inside the kernel.

    On file systems that can, the bytes are shared and not even copied.

    Args:
        source: Descriptor to read from; its position is left alone.
        target: Descriptor to write to.
        offset: First byte to copy.
        length: Number of bytes.

    Raises:
        UserError: The source ends early, cannot be read, or the target cannot be written.
    """
    try:
        done = _copy_in_kernel(source, target, offset, length)
        _copy_by_hand(source, target, offset + done, length - done)
    except OSError as error:
        raise UserError(f"cannot copy tensor data: {(error.strerror or '').lower()}") from None


def _copy_in_kernel(source: int, target: int, offset: int, length: int) -> int:
    """Returns how many bytes were copied before the kernel said no more."""
    if not hasattr(os, "copy_file_range"):
        return 0
    done = 0
    while done < length:
        try:
            count = min(length - done, _CHUNK_BYTES)
            moved = os.copy_file_range(source, target, count, offset_src=offset + done)
        except OSError as error:
            if error.errno in _NO_COPY:
                break
            raise
        if moved == 0:  # the end of the file, or a file system that says so without reason
            break
        done += moved
    return done


def _copy_by_hand(source: int, target: int, offset: int, length: int) -> None:
    done = 0
    while done < length:
        block = os.pread(source, min(length - done, 1 << 22), offset + done)
        if not block:
            raise UserError(
                "cannot copy tensor data: the file ends early", hint="it changed while it was read"
            )
        view = memoryview(block)
        while view:
            view = view[os.write(target, view) :]
        done += len(block)
