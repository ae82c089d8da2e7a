"""Small ICC profiles made from their definition, and what they mean, computed apart from the color library.

Reference: ICC.1:2001-04 (version 2): a header of 128 bytes, a table of tags, and the tags.
"""

import struct

import numpy as np

D50 = np.array([0.9642, 1.0, 0.8249])
BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
SRGB = [(0.64, 0.33), (0.30, 0.60), (0.15, 0.06)], (0.3127, 0.3290)  # primaries and white point, as (x, y)
DISPLAY_P3 = [(0.680, 0.320), (0.265, 0.690), (0.150, 0.060)], (0.3127, 0.3290)
ADOBE_RGB = [(0.64, 0.33), (0.21, 0.71), (0.15, 0.06)], (0.3127, 0.3290)
PROPHOTO = [(0.7347, 0.2653), (0.1596, 0.8404), (0.0366, 0.0001)], (0.3457, 0.3585)


def to_xyz(primaries, white) -> np.ndarray:
    """The (3, 3) matrix from linear RGB to XYZ under D50."""
    columns = np.array([[x / y, 1, (1 - x - y) / y] for x, y in primaries]).T
    x, y = white
    source = np.array([x / y, 1, (1 - x - y) / y])
    scaled = columns * np.linalg.solve(columns, source)
    adapted = np.linalg.inv(BRADFORD) @ np.diag((BRADFORD @ D50) / (BRADFORD @ source)) @ BRADFORD
    return adapted @ scaled


def srgb_of(values, matrix: np.ndarray, gamma: float) -> np.ndarray:
    """What 8-bit (..., 3) values in a space with one gamma are in 8-bit sRGB, clipped."""
    linear = (np.asarray(values) / 255) ** gamma @ matrix.T @ np.linalg.inv(to_xyz(*SRGB)).T
    linear = linear.clip(0, 1)
    return 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def profile(kind: bytes, space: bytes, connection: bytes, tags: dict[bytes, bytes]) -> bytes:
    """A profile of these tags."""
    tags = tags | {b"wtpt": xyz(D50), b"desc": b"desc" + bytes(4) + struct.pack(">I", 5) + b"test\0" + bytes(78)}
    table, body, start = b"", b"", 128 + 4 + 12 * len(tags)
    for name, content in tags.items():
        table += name + struct.pack(">II", start + len(body), len(content))
        body += content + bytes(-len(content) % 4)
    head = struct.pack(">I4sI4s4s4s", start + len(body), bytes(4), 0x02400000, kind, space, connection)
    head += struct.pack(">6H", 2026, 1, 1, 0, 0, 0) + b"acsp" + bytes(28) + b"".join(map(fixed, D50)) + bytes(48)
    return head + struct.pack(">I", len(tags)) + table + body


def fixed(number: float) -> bytes:
    return struct.pack(">i", round(number * 65536))


def xyz(values) -> bytes:
    return b"XYZ " + bytes(4) + b"".join(map(fixed, values))


def curve(gamma: float) -> bytes:
    return b"curv" + bytes(4) + struct.pack(">IH", 1, round(gamma * 256))


def table(values: np.ndarray) -> bytes:
    """A curve of samples in [0, 1]."""
    return b"curv" + bytes(4) + struct.pack(f">I{len(values)}H", len(values), *np.round(values * 65535).astype(int))


def srgb_curve(values: np.ndarray) -> np.ndarray:
    """From sRGB's values in [0, 1] to light."""
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def rgb_profile(space, gamma: float) -> bytes:
    """A profile of primaries with one gamma."""
    return matrix_profile(space, curve(gamma))


def matrix_profile(space, tone: bytes) -> bytes:
    """A profile of primaries with one curve."""
    matrix = to_xyz(*space)
    tags = {name: xyz(matrix[:, index]) for index, name in enumerate((b"rXYZ", b"gXYZ", b"bXYZ"))}
    return profile(b"mntr", b"RGB ", b"XYZ ", tags | dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), tone))


def grey_profile(gamma: float) -> bytes:
    """A profile of grey with one gamma."""
    return profile(b"mntr", b"GRAY", b"XYZ ", {b"kTRC": curve(gamma)})


def cmyk_profile(corners: dict[tuple[int, ...], tuple[float, float, float]]) -> bytes:
    """A profile whose table has Lab at the 16 corners of CMYK; corners that are not given are black."""
    identity = bytes(range(256))
    lattice = b""
    for index in np.ndindex(2, 2, 2, 2):
        lightness, a, b = corners.get(index, (0, 0, 0))
        lattice += bytes([round(lightness * 2.55), round(a + 128), round(b + 128)])
    matrix = b"".join(fixed(value) for value in np.eye(3).ravel())
    table = b"mft1" + bytes(4) + bytes([4, 3, 2, 0]) + matrix + identity * 4 + lattice + identity * 3
    return profile(b"prtr", b"CMYK", b"Lab ", {b"A2B0": table, b"A2B1": table})
