"""What is left of a host's memory, for it and for a container in it."""

from pathlib import Path

import pytest

from jaxbooth.plan import hardware

GIB = 2**30


@pytest.fixture
def host(tmp_path, monkeypatch) -> Path:
    """A host with 8 GiB left, and the folder of its container's figures, which has none yet."""
    meminfo = tmp_path / "meminfo"
    meminfo.write_text(f"MemTotal: {16 * GIB // 1024} kB\nMemAvailable:   {8 * GIB // 1024} kB\n")
    monkeypatch.setattr(hardware, "MEMINFO", meminfo)
    monkeypatch.setattr(hardware, "CGROUP", tmp_path)
    return tmp_path


def write_container(folder: Path, limit: object, used: int, files: int) -> None:
    (folder / "memory.max").write_text(f"{limit}\n")
    (folder / "memory.current").write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 5\ninactive_file {files}\nactive_file 7\n")


def test_without_a_container_it_is_what_the_host_says(host):
    assert hardware.available_host_memory() == 8 * GIB


def test_a_container_has_what_its_limit_leaves_and_files_make_room(host):
    write_container(host, 6 * GIB, 5 * GIB, 2 * GIB)
    assert hardware.available_host_memory() == 3 * GIB


@pytest.mark.parametrize("limit", ["max", 64 * GIB])
def test_a_container_without_a_limit_or_with_a_larger_one_has_what_the_host_has(host, limit):
    write_container(host, limit, GIB, 0)
    assert hardware.available_host_memory() == 8 * GIB


def test_a_container_above_its_limit_has_nothing(host):
    write_container(host, GIB, 2 * GIB, 0)
    assert hardware.available_host_memory() == 0


def test_a_system_that_does_not_say_is_unknown(host):
    hardware.MEMINFO.unlink()
    assert hardware.available_host_memory() is None
