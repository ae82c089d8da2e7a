"""What accelerators can do at most: published figures, for one JAX device each.

TPUs: Google's pages cloud.google.com/tpu/docs/{v2,v3,v4,v5e,v5p,v6e,tpu7x} for peaks, HBM bandwidth and interconnect;
usable HBM is what libtpu 0.0.42 names when a program does not fit. GPUs: NVIDIA's data sheets, dense bfloat16 with
float32 accumulation; for GeForce cards that is twice the float32 rate, by the white papers of GA102, AD102 and GB202.
T4 and V100 have no bfloat16 units, so theirs is float32's peak. Published peaks are bounds that no program reaches; see
`jaxbooth.plan.estimate`.
"""

from typing import NamedTuple

GIB = 2**30
GPU_SHARE = 0.92  # of a GPU's memory that jaxbooth lets JAX take, see `jaxbooth.cli.main.main`


class Chip(NamedTuple):
    """One JAX device: a whole chip, or one of two cores.

    Attributes:
        kinds: `device_kind` as JAX reports it, or its first words.
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


def tpu(
    name: str, kinds: tuple[str, ...], tera: float, gib: float, bandwidth: float, link: float, cores: int = 1
) -> Chip:
    """Describes a TPU device: TFLOP/s, usable GiB, GB/s, GB/s."""
    return Chip(name, kinds, tera * 1e12, gib * GIB, bandwidth * 1e9, link * 1e9, cores)


def gpu(name: str, kinds: tuple[str, ...], tera: float, gib: float, bandwidth: float, link: float) -> Chip:
    """Describes a GPU: TFLOP/s, GiB of the card, GB/s, GB/s."""
    return Chip(name, kinds, tera * 1e12, gib * GPU_SHARE * GIB, bandwidth * 1e9, link * 1e9)


def geforce(card: str, tera: float, gib: float, bandwidth: float) -> Chip:
    """Describes a GeForce card: float32 TFLOP/s, GiB of the card, GB/s; its link is PCIe's."""
    return gpu(card.lower().replace(" ", ""), (f"NVIDIA GeForce {card}",), 2 * tera, gib, bandwidth, 25)


# A chip's published two-way interconnect bandwidth is that of all its links; one axis has two of four or six.
TPUS = (
    tpu("v2", ("TPU v2",), 22.5, 7.48, 350, 62, cores=2),
    tpu("v3", ("TPU v3",), 61.5, 15.48, 450, 82, cores=2),
    tpu("v4", ("TPU v4",), 275, 30.75, 1228, 100),
    tpu("v5e", ("TPU v5 lite", "TPU v5e"), 197, 15.75, 819, 100),
    tpu("v5p", ("TPU v5", "TPU v5p"), 459, 95.73, 2765, 200),
    tpu("v6e", ("TPU v6 lite", "TPU v6e"), 918, 31.24, 1640, 200),
    tpu("tpu7x", ("TPU7x",), 1153, 94.74, 3690, 100, cores=2),
)
GPUS = (
    gpu("t4", ("Tesla T4",), 8.1, 15, 320, 12),
    gpu("v100", ("Tesla V100-SXM2-16GB", "Tesla V100-PCIE-16GB"), 15.7, 16, 900, 150),
    gpu("v100-32gb", ("Tesla V100-SXM2-32GB", "Tesla V100-PCIE-32GB"), 15.7, 32, 900, 150),
    gpu("l4", ("NVIDIA L4",), 121, 22.5, 300, 25),
    gpu("a10", ("NVIDIA A10",), 125, 22.5, 600, 25),
    gpu("a10g", ("NVIDIA A10G",), 70, 22.5, 600, 25),
    gpu("l40s", ("NVIDIA L40S",), 362, 45, 864, 25),
    gpu("a40", ("NVIDIA A40",), 149.7, 45, 696, 25),
    gpu("a6000", ("NVIDIA RTX A6000",), 154.8, 48, 768, 25),
    gpu("a100-40gb", ("NVIDIA A100-SXM4-40GB", "NVIDIA A100-PCIE-40GB"), 312, 40, 1555, 300),
    gpu("a100-80gb", ("NVIDIA A100-SXM4-80GB", "NVIDIA A100 80GB PCIe"), 312, 80, 2039, 300),
    gpu("h100-pcie", ("NVIDIA H100 PCIe",), 756, 80, 2000, 64),
    gpu("h100", ("NVIDIA H100",), 989, 80, 3350, 450),
    gpu("h200", ("NVIDIA H200",), 989, 141, 4800, 450),
    gpu("b200", ("NVIDIA B200",), 2250, 180, 8000, 900),
    geforce("RTX 3060", 12.7, 12, 360),
    geforce("RTX 3060 Ti", 16.2, 8, 448),
    geforce("RTX 3070", 20.3, 8, 448),
    geforce("RTX 3070 Ti", 21.7, 8, 608),
    geforce("RTX 3080", 29.8, 10, 760),
    geforce("RTX 3080 Ti", 34.1, 12, 912),
    geforce("RTX 3090", 35.6, 24, 936),
    geforce("RTX 3090 Ti", 40.0, 24, 1008),
    geforce("RTX 4060", 15.1, 8, 272),
    geforce("RTX 4060 Ti", 22.1, 8, 288),
    geforce("RTX 4070", 29.1, 12, 504),
    geforce("RTX 4070 SUPER", 35.5, 12, 504),
    geforce("RTX 4070 Ti", 40.1, 12, 504),
    geforce("RTX 4070 Ti SUPER", 44.1, 16, 672),
    geforce("RTX 4080", 48.7, 16, 717),
    geforce("RTX 4080 SUPER", 52.2, 16, 736),
    geforce("RTX 4090", 82.6, 24, 1008),
    geforce("RTX 5060", 19.2, 8, 448),
    geforce("RTX 5060 Ti", 23.7, 16, 448),
    geforce("RTX 5070", 30.9, 12, 672),
    geforce("RTX 5070 Ti", 43.9, 16, 896),
    geforce("RTX 5080", 56.3, 16, 960),
    geforce("RTX 5090", 104.8, 32, 1792),
)
CPU = Chip("cpu", ("cpu",), None, None, None, None)


def find_chip(device_kind: str) -> Chip | None:
    """Returns the chip behind a device that JAX has, or None for an unknown one.

    The longest match counts: "TPU v5 lite" is not a "TPU v5". A match ends with a word: an A100 is no "NVIDIA A10".
    """
    fits = [
        (len(kind), chip)
        for chip in (*TPUS, *GPUS, CPU)
        for kind in chip.kinds
        if device_kind.startswith(kind) and not device_kind[len(kind) : len(kind) + 1].isalnum()
    ]
    return max(fits, key=lambda match: match[0])[1] if fits else None
