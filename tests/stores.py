"""A store of objects for tests: gs://bucket/name is a local file, for etils and for TensorStore."""

import os
from pathlib import Path

import pytest
from etils.epath import backend, gpath
from orbax.checkpoint._src.path import gcs_utils


class Bucket(backend._OsPathBackend):
    """etils' own backend for files, which finds gs:// names below a folder."""

    def __init__(self, root: Path):
        self.root = root

    def __getattribute__(self, name: str):
        found = object.__getattribute__(self, name)
        if name.startswith("_") or not callable(found):
            return found
        root = str(object.__getattribute__(self, "root"))

        def mapped(*paths, **settings):
            local = [str(path).replace("gs:/", root, 1).replace("//", "/") if named(path) else path for path in paths]
            result = found(*local, **settings)
            return [path.replace(root, "gs:/", 1) for path in result] if name == "glob" else result

        return mapped


def named(path: object) -> bool:
    """Whether this is the name of an object."""
    return isinstance(path, str | os.PathLike) and os.fspath(path).startswith("gs://")


def install(root: str | Path) -> None:
    """Makes gs:// names files below `root`, from now on in this process."""
    gpath._PREFIX_TO_BACKEND["gs"] = Bucket(Path(root))
    gcs_utils.get_kvstore_for_gcs = lambda name: {
        "driver": "file",
        "path": str(name).replace("gs://", f"{root}/", 1),
    }
    gcs_utils.is_hierarchical_namespace_enabled = lambda path: False


def install_meanwhile(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Does so until the end of a test."""
    for name in ("get_kvstore_for_gcs", "is_hierarchical_namespace_enabled"):
        monkeypatch.setattr(gcs_utils, name, getattr(gcs_utils, name))  # so that they are put back
    monkeypatch.setitem(gpath._PREFIX_TO_BACKEND, "gs", None)
    install(root)
