"""Says as JSON which devices JAX finds here: `python -m jaxbooth.ui.device_probe`, a process that ends at once.

Only such a process starts JAX; the server never does, for a TPU belongs to one process at a time.
"""

import json

import jax

from jaxbooth.plan.hardware import GPUS, TPUS, find_chip, shapes_by_chips


def main() -> None:
    """Prints the name of the devices for people, and that of their topology for `jaxbooth plan`."""
    devices = jax.devices()
    first = devices[0]
    chip, count = find_chip(first.device_kind), len(devices)
    topology = "local"  # of a kind that nothing is known of
    if first.platform == "cpu":
        topology = f"cpu:{count}"
    elif chip in GPUS:
        topology = f"{chip.name}:{count}"
    elif chip in TPUS:
        shape = shapes_by_chips(chip).get(count // chip.devices_per_chip)
        topology = f"{chip.name}:{shape}" if shape else "local"
    print(json.dumps({"kind": first.device_kind, "count": count, "platform": first.platform, "topology": topology}))


if __name__ == "__main__":
    main()
