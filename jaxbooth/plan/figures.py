"""What one device holds and does in a step, estimated or compiled."""

from typing import NamedTuple


class StepCost(NamedTuple):
    """One device's share of one optimizer step.

    Attributes:
        memory: kind -> bytes at the moment of the peak: parameters, optimizer, frozen, pictures, gradients,
            activations (with the copies of parameters that a step makes) and, on a TPU, the program. A compiler does
            not part gradients and activations: there, `activations` holds both.
        flops: floating-point operations, those inside of kernels that XLA cannot see included.
        bytes_accessed: bytes moved between memory and cores.
        collectives: kind of collective -> bytes of its results.
    """

    memory: dict[str, float]
    flops: float
    bytes_accessed: float
    collectives: dict[str, float]

    @property
    def hbm_bytes(self) -> float:
        """Memory that a device needs."""
        return sum(self.memory.values())
