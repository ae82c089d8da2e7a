"""What accelerators can do at most: published figures, for one JAX device each.

TPUs: Google's pages cloud.google.com/tpu/docs/{v2,v3,v4,v5e,v5p,v6e,tpu7x} for peaks, HBM bandwidth and interconnect;
usable HBM is what libtpu 0.0.42 names when a program does not fit. GPUs: NVIDIA's data sheets, dense bfloat16 with
float32 accumulation. Published peaks are bounds that no program reaches; see `jaxbooth.plan.estimate`.
"""

from typing import NamedTuple

GIB = 2**30
GPU_SHARE = 0.92  # of a GPU's memory that jaxbooth lets JAX take, see `jaxbooth.cli.main`


class Chip(NamedTuple):
    """One JAX device: a whole chip, or one of two cores.

    Attributes:
        kinds: `device_kind` as JAX reports it, or its beginning.
        flops: peak bfloat16 FLOP/s, None where unknown.
        memory: usable bytes, None where it is the host's.
        bandwidth: bytes/s between memory and cores.
        link: bytes/s that it sends to its neighbours along one axis of the torus (both ways), or over NVLink or PCIe.
        cores: devices of one chip that is rented.
    """

    name: str
    kinds: tuple[str, ...]
    flops: float | None
    memory: float | None
    bandwidth: float | None
    link: float | None
    cores: int = 1


def tpu(name: str, kind: str, tera: float, gib: float, bandwidth: float, link: float, cores: int = 1) -> Chip:
    """Describes a TPU device: TFLOP/s, usable GiB, GB/s, GB/s."""
    return Chip(name, (kind,), tera * 1e12, gib * GIB, bandwidth * 1e9, link * 1e9, cores)


def gpu(name: str, kinds: tuple[str, ...], tera: float, gib: float, bandwidth: float, link: float) -> Chip:
    """Describes a GPU: TFLOP/s, GiB of the card, GB/s, GB/s."""
    return Chip(name, kinds, tera * 1e12, gib * GPU_SHARE * GIB, bandwidth * 1e9, link * 1e9)


# A chip's published two-way interconnect bandwidth is that of all its links; one axis has two of four or six.
TPUS = (
    tpu("v2", "TPU v2", 22.5, 7.48, 350, 62, cores=2),
    tpu("v3", "TPU v3", 61.5, 15.48, 450, 82, cores=2),
    tpu("v4", "TPU v4", 275, 30.75, 1228, 100),
    tpu("v5e", "TPU v5 lite", 197, 15.75, 819, 100),
    tpu("v5p", "TPU v5", 459, 95.73, 2765, 200),
    tpu("v6e", "TPU v6 lite", 918, 31.24, 1640, 200),
    tpu("tpu7x", "TPU7x", 1153, 94.74, 3690, 100, cores=2),
)
GPUS = (
    gpu("l4", ("NVIDIA L4",), 121, 22.5, 300, 25),
    gpu("rtx3090", ("NVIDIA GeForce RTX 3090",), 35.6, 24, 936, 25),
    gpu("rtx4090", ("NVIDIA GeForce RTX 4090",), 165, 24, 1008, 25),
    gpu("a100-40gb", ("NVIDIA A100-SXM4-40GB", "NVIDIA A100-PCIE-40GB"), 312, 40, 1555, 300),
    gpu("a100-80gb", ("NVIDIA A100-SXM4-80GB", "NVIDIA A100 80GB PCIe"), 312, 80, 2039, 300),
    gpu("h100", ("NVIDIA H100",), 989, 80, 3350, 450),
    gpu("h200", ("NVIDIA H200",), 989, 141, 4800, 450),
)
CPU = Chip("cpu", ("cpu",), None, None, None, None)


def chip_of(device_kind: str) -> Chip | None:
    """Returns the chip behind a device that JAX has, or None for an unknown one.

    The longest match counts: "TPU v5 lite" is not a "TPU v5".
    """
    fits = [(len(kind), chip) for chip in (*TPUS, *GPUS, CPU) for kind in chip.kinds if device_kind.startswith(kind)]
    return max(fits, key=lambda match: match[0])[1] if fits else None
