"""What ships inside the package: a tiny trained pipeline and CLIP, one subject's images, shipped configurations."""

from pathlib import Path

ASSETS = Path(__file__).parent
DEMO_MODEL = ASSETS / "tiny-emoji"
DEMO_CLIP = ASSETS / "tiny-emoji-clip"  # reads the tokens of the pipeline's tokenizer
DEMO_SUBJECT = ASSETS / "fluent-cat"


def shipped_configs() -> Path:
    """Returns the folder of the shipped configurations: inside the wheel, or in the checkout of an editable install."""
    installed = ASSETS.parent / "configs"
    return installed if installed.is_dir() else ASSETS.parent.parent / "configs"
