"""The storage of residue files: a directory, or any file system that fsspec knows (S3, for example).

A file appears under its name whole, or not at all. This module makes the names and never reuses one.
"""

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from functools import lru_cache
from typing import BinaryIO, NamedTuple

import fsspec

from config.settings import Settings

PART = ".part"
SUFFIX = ".save"


class StorageError(Exception):
    """The storage cannot be used; the message gives the reason."""


class StoredFile(NamedTuple):
    """A file in the storage; a name that ends in PART belongs to an unfinished file."""

    name: str
    modified: datetime


class Storage:
    """The files under a URL such as file:///var/lib/ecm/residues, memory://residues or s3://bucket/residues."""

    def __init__(self, url: str) -> None:
        try:
            self._files, self._root = fsspec.core.url_to_fs(url)
            self._files.makedirs(self._root, exist_ok=True)
        except (ImportError, ValueError, OSError) as error:
            raise StorageError(f"RESIDUE_STORAGE_URL cannot be used: {error}") from error

    @contextmanager
    def writing(self) -> Iterator[tuple[str, BinaryIO]]:
        """Yield (name, file to write to); the file is stored durably when the block ends, and removed if it raises."""
        name = uuid.uuid4().hex + SUFFIX
        part = self._path(name) + PART
        try:
            with self._files.open(part, "wb") as file:
                yield name, file
                file.flush()
                # A file in a directory reaches the disk before its row does; other storages do this when they close it.
                with suppress(AttributeError, OSError, ValueError):
                    os.fsync(file.fileno())
            self._files.mv(part, self._path(name))
        except BaseException:
            with suppress(FileNotFoundError):
                self._files.rm_file(part)
            raise

    def open(self, name: str) -> BinaryIO:
        """Open a file to read from. Raises FileNotFoundError."""
        file: BinaryIO = self._files.open(self._path(name), "rb")
        return file

    def exists(self, name: str) -> bool:
        """Return whether a file of that name is stored."""
        found: bool = self._files.exists(self._path(name))
        return found

    def delete(self, name: str) -> None:
        """Delete a file; does nothing if it is not stored."""
        with suppress(FileNotFoundError):
            self._files.rm_file(self._path(name))

    def stored(self) -> list[StoredFile]:
        """List all files, finished or not."""
        self._files.invalidate_cache()
        found = []
        for path in self._files.ls(self._root, detail=False):
            name = path.rsplit("/", 1)[-1]
            if name.endswith((SUFFIX, SUFFIX + PART)):
                with suppress(FileNotFoundError):
                    found.append(StoredFile(name, self._files.modified(path).astimezone(UTC)))
        return found

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"


@lru_cache
def _storage(url: str) -> Storage:
    return Storage(url)


def storage(settings: Settings) -> Storage:
    """Return this process's storage: that of RESIDUE_STORAGE_URL, or the directory `residues` of the home."""
    return _storage(settings.residue_storage_url or (settings.ecm_home / "residues").absolute().as_uri())
