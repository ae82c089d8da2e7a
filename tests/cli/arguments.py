"""Arguments of short trainings, and what a folder holds."""

from pathlib import Path

# Short in every respect, so that an error that goes unnoticed ends soon.
SHORT = (
    "--data.instance-prompt", "a photo of sks dog",
    "--data.resolution", "64", "--data.num-class-images", "1", "--prior.steps", "1", "--prior.sample-batch-size", "1",
    "--train.steps", "1", "--validation.steps", "1", "--validation.images-per-prompt", "1",
)  # fmt: skip
CLASS = ("--data.class-prompt", "a cat")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def train(dog: Path, *flags: str | Path) -> list[str | Path]:
    return ["train", "--data.instance-dir", dog, *SHORT, *CLASS, *flags]
