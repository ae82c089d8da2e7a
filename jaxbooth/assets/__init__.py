"""What ships inside the package: tiny trained pipelines and a CLIP, one subject's images, shipped configurations."""

from pathlib import Path

ASSETS = Path(__file__).parent
DEMO_MODEL = ASSETS / "tiny-emoji"
DEMO_CLIP = ASSETS / "tiny-emoji-clip"  # reads the tokens of the pipeline's tokenizer
DEMO_SUBJECT = ASSETS / "fluent-cat"
# Names of models -> their folders; each has a shipped configuration of the same name.
EMBEDDED_MODELS = {"demo": DEMO_MODEL, "demo-flow": ASSETS / "tiny-flow"}


def shipped_configs() -> Path:
    """Returns the folder of the shipped configurations: inside the wheel, or in the checkout of an editable install."""
    installed = ASSETS.parent / "configs"
    return installed if installed.is_dir() else ASSETS.parent.parent / "configs"
