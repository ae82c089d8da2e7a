"""Collects emoji images and their labels from npm packages, for training the small flow-matching base model.

    python scripts/flow_base/prepare.py PACKAGES DATA

PACKAGES holds one folder for each package of the table below, unpacked from `npm pack NAME@VERSION` and named
`<name without @, slashes as dashes>-<version>`. Writes DATA/images.npz (about 7,900 images, 64 x 64, RGBA with
premultiplied alpha) and DATA/images.json (label, tags, style and category of each). Takes less than a minute.
Needs `pip install pillow numpy resvg-py` (resvg-py 0.5.0 was used); the packages weigh about 190 MB.

| package | version | images | licence |
|---|---|---|---|
| emoji-datasource-google | 16.0.0 | Noto Emoji, "noto" | Apache-2.0 |
| emoji-datasource-twitter | 16.0.0 | Twemoji, "twemoji" | CC-BY 4.0 |
| @lobehub/fluent-emoji-3d | 1.1.0 | Microsoft Fluent Emoji, "3d" | MIT |
| @lobehub/fluent-emoji-flat | 1.1.0 | Microsoft Fluent Emoji, "flat" | MIT |
| @lobehub/fluent-emoji-modern | 1.0.0 | Microsoft Fluent Emoji, "modern" | MIT |
| emojibase-data | 17.0.0 | none: labels and tags of Unicode CLDR | MIT, Unicode licence |

The cat faces and the monkey faces of the Fluent styles are left out: they are the subjects that DreamBooth learns.
"""

import argparse
import io
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import resvg_py
from PIL import Image

SIZE = 64
SKIPPED_CATEGORIES = ("Flags", "Component")
FLUENT_VERSIONS = {"3d": "1.1.0", "flat": "1.1.0", "modern": "1.0.0"}
DATASOURCE_STYLES = {"google": "noto", "twitter": "twemoji"}
CAT_FACES = {"1f63a", "1f638", "1f639", "1f63b", "1f63c", "1f63d", "1f640", "1f63f", "1f63e", "1f431"}
MONKEY_FACES = {"1f435", "1f648", "1f649", "1f64a"}


def codepoint(name: str) -> str:
    """Returns an emoji's code without the variation selector, which the packages write differently."""
    return name.lower().replace("-fe0f", "")


def load_image(path: Path) -> np.ndarray:
    """Reads a PNG or SVG file as (64, 64, 4) bytes; alpha is premultiplied, so that resizing leaves no dark fringes."""
    source: Any = path
    if path.suffix == ".svg":
        source = io.BytesIO(bytes(resvg_py.svg_to_bytes(svg_path=str(path), width=SIZE * 2, height=SIZE * 2)))
    rgba = np.asarray(Image.open(source).convert("RGBA"), np.float32) / 255
    rgba[..., :3] *= rgba[..., 3:]
    channels = [Image.fromarray(rgba[..., index]).resize((SIZE, SIZE), Image.Resampling.LANCZOS) for index in range(4)]
    resized = np.stack([np.asarray(channel) for channel in channels], axis=-1)
    return (np.clip(resized, 0, 1) * 255 + 0.5).astype(np.uint8)


def fluent_files(packages: Path) -> dict[str, dict[str, Path]]:
    """Returns the files of each Fluent style by code."""
    files = {}
    for style, version in FLUENT_VERSIONS.items():
        folder = packages / f"lobehub-fluent-emoji-{style}-{version}" / "package" / "assets"
        files[style] = {codepoint(path.stem): path for path in folder.iterdir()}
    return files


def image_files(packages: Path, emoji: dict[str, Any], fluent: dict[str, dict[str, Path]]) -> dict[str, Path]:
    """Returns the files of one emoji by style."""
    files = {}
    for source, style in DATASOURCE_STYLES.items():
        path = packages / f"emoji-datasource-{source}-16.0.0" / "package" / "img" / source / "64" / emoji["image"]
        if path.exists():
            files[style] = path
    code = codepoint(emoji["unified"])
    if code not in CAT_FACES | MONKEY_FACES:
        files |= {style: paths[code] for style, paths in fluent.items() if code in paths}
    return files


def main() -> None:
    """Writes images.npz and images.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("packages", type=Path)
    parser.add_argument("data", type=Path)
    arguments = parser.parse_args()
    packages = arguments.packages
    emojis = json.loads((packages / "emoji-datasource-google-16.0.0/package/emoji.json").read_text())
    labels = json.loads((packages / "emojibase-data-17.0.0/package/en/data.json").read_text())
    labels = {codepoint(entry["hexcode"]): entry for entry in labels}
    fluent = fluent_files(packages)
    images = []
    rows = []
    for emoji in emojis:
        label = labels.get(codepoint(emoji["unified"]))
        if label is None or emoji["category"] in SKIPPED_CATEGORIES:
            continue
        for style, path in image_files(packages, emoji, fluent).items():
            images.append(load_image(path))
            row = {"style": style, "label": label["label"], "tags": label.get("tags", [])}
            rows.append(row | {"category": emoji["category"], "code": label["hexcode"]})
    arguments.data.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(arguments.data / "images.npz", images=np.stack(images))
    (arguments.data / "images.json").write_text(json.dumps(rows))
    print(len(images), Counter(row["style"] for row in rows))


if __name__ == "__main__":
    main()
