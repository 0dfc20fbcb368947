"""Lines of plain and compressed files, read in bounded memory: what is no line of text is told, never guessed."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

from prismlab.errors import DataError, MissingExtra, shown

MAX_LINE = 16 * 2**20
"""Longest line, in bytes; a longer one is skipped piece by piece and told, never held whole."""
MAX_RATIO = 250
"""A compressed file may hold this many times its own size ..."""
RATIO_FROM = 64 * 2**20
"""... once it has given this many bytes; text compresses to a third or a tenth, a bomb to a thousandth."""
MAX_FILE = 256 * 2**30
"""Most bytes that one compressed file may hold."""
_PIECE = 2**20
_ZSTD_PIECE = 1024
"""Compressed bytes taken at a time: of each four, Zstandard can make 128 KiB."""
_ZSTD_WINDOW = 2**27


@dataclass(frozen=True, slots=True)
class Bad:
    """A row that cannot be used, and why."""

    file: str
    """File name without folders, or data set id."""
    line: int
    """Line or row, from 1."""
    reason: str
    """One of a few words, so that bad rows can be counted by it."""
    detail: str
    """What a person should know besides."""
    excerpt: str = ""
    """How it begins, as text that can be shown."""

    def error(self) -> DataError:
        """The same as an error, for readers that go no further."""
        return DataError(f"{self.file}:{self.line}: {self.detail}")


class _Zstd(io.RawIOBase):
    """A Zstandard file of any number of frames, decompressed piece by piece; one that ends early is an error."""

    def __init__(self, path: Path) -> None:
        try:
            import zstandard
        except ImportError as error:
            raise MissingExtra("zstandard", "data", f"{path.name}") from error
        self._file = path.open("rb")
        self._make = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW).decompressobj
        self._error: type[Exception] = zstandard.ZstdError
        self._frame: Any = None
        self._held = memoryview(b"")

    def readable(self) -> bool:
        return True

    def compressed(self) -> int:
        """Bytes taken from the file."""
        return self._file.tell()

    def readinto(self, buffer: Any) -> int:
        while not self._held:
            piece = self._frame.unused_data if self._frame is not None and self._frame.eof else b""
            if piece:
                self._frame = None
            piece = piece or self._file.read(_ZSTD_PIECE)
            if not piece:
                if self._frame is not None and not self._frame.eof:
                    raise EOFError("the compressed file ends in the middle")
                return 0
            if self._frame is None or self._frame.eof:
                self._frame = self._make()
            try:
                self._held = memoryview(self._frame.decompress(piece))
            except self._error as error:
                raise OSError(str(error)) from error
        count = min(len(buffer), len(self._held))
        buffer[:count] = self._held[:count]
        self._held = self._held[count:]
        return count

    def close(self) -> None:
        self._file.close()
        super().close()


class _Opened:
    """A file's bytes, decompressed, and how many of its own were taken for them."""

    def __init__(self, path: Path) -> None:
        self._raw: IO[bytes] | None = None
        self._zstd: _Zstd | None = None
        name = path.name.lower()
        if name.endswith(".zst"):
            self._zstd = _Zstd(path)
            self.stream: IO[bytes] = io.BufferedReader(self._zstd, _PIECE)
        elif name.endswith(".gz"):
            self._raw = path.open("rb")
            self.stream = io.BufferedReader(cast(Any, gzip.GzipFile(fileobj=self._raw)), _PIECE)
        else:
            self.stream = path.open("rb", buffering=_PIECE)
        self.packed = self._raw is not None or self._zstd is not None

    def taken(self) -> int:
        return self._raw.tell() if self._raw is not None else cast(_Zstd, self._zstd).compressed()

    def close(self) -> None:
        self.stream.close()
        if self._raw is not None:
            self._raw.close()


def _check_size(path: Path, opened: _Opened, given: int) -> None:
    if given > MAX_FILE:
        raise DataError(f"{path.name}: holds more than {MAX_FILE >> 30} GiB; split it into several files")
    ratio = given / max(opened.taken(), 1)
    if given > RATIO_FROM and ratio > MAX_RATIO:
        raise DataError(
            f"{path.name}: gives {ratio:.0f} times its own size ({given >> 20} MiB so far); more than {MAX_RATIO} "
            "times looks like a decompression bomb: if it is none, unpack it and name the plain file"
        )


def _pieces(path: Path, opened: _Opened) -> Iterator[tuple[bytes, bool]]:
    """Lines with their ends; of one that is too long its beginning alone, and True."""
    given, checked = 0, 0
    while raw := opened.stream.readline(MAX_LINE + 1):
        given += len(raw)
        long = len(raw) > MAX_LINE and not raw.endswith(b"\n")
        head = raw[:200] if long else raw
        while long and (more := opened.stream.readline(_PIECE)):
            given += len(more)
            if opened.packed:
                _check_size(path, opened, given)
            if more.endswith(b"\n"):
                break
        if opened.packed and given - checked > _PIECE:
            checked = given
            _check_size(path, opened, given)
        yield head, long


def lines(path: Path) -> Iterator[tuple[int, str] | Bad]:
    """Line numbers from 1 and lines without their ends; ``Bad`` for one that is too long or is not UTF-8.

    A byte order mark at the beginning of the file is no part of the first line. Files whose names end in ``.gz`` and
    ``.zst`` are decompressed as they are read.

    Raises:
        DataError: the file cannot be opened, its compression is broken, or it holds far more than its size tells.
        MissingExtra: a ``.zst`` file without the package ``zstandard``.
    """
    try:
        opened = _Opened(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
    number = 0
    try:
        for number, (raw, long) in enumerate(_pieces(path, opened), 1):
            if long:
                head = shown(raw.decode("utf-8", "replace"), 80)
                size = f"longer than {MAX_LINE >> 20} MiB; split it, or leave it out"
                yield Bad(path.name, number, "line too long", f"the line is {size}", head)
                continue
            try:
                text = raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                head = shown(raw[:200].decode("utf-8", "backslashreplace"), 80)
                yield Bad(path.name, number, "not UTF-8", f"not UTF-8 ({error.reason}); convert the file", head)
                continue
            yield number, text.rstrip("\n").removesuffix("\r")
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path.name}: broken after line {number}: {error}") from error
    finally:
        opened.close()
