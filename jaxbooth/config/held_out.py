"""Settings about held-out images, on which the loss is measured and which are not trained on."""

from collections.abc import Iterator

from jaxbooth.config.run_config import Config
from jaxbooth.config.schema import HeldOutMetric
from jaxbooth.errors import UserError

VALIDATION_LOSS: HeldOutMetric = "validation_loss"  # as `evaluation.keep_best`


def check_held_out(config: Config) -> None:
    """Refuses two kinds of held-out images together, and a metric that needs some where there are none.

    Raises:
        UserError: the message names the flags.
    """
    folders = list(validation_folders(config))
    if folders and config.data.hold_out:
        raise UserError(
            f"--data.hold-out and {folders[0]} exclude each other: images are taken out of the training, or come from "
            "a folder of their own; leave one of them out."
        )
    if config.evaluation.keep_best == VALIDATION_LOSS and not config.has_held_out:
        raise UserError(
            f"--evaluation.keep-best {VALIDATION_LOSS} needs images that are not trained on; name a folder of them "
            "with --data.validation-dir, or take some out with --data.hold-out."
        )


def validation_folders(config: Config) -> Iterator[str]:
    """Yields where each folder of held-out images was named."""
    for number, subject in enumerate(config.subjects, start=1):
        if subject.validation_dir:
            yield validation_key(config, number)


def validation_key(config: Config, number: int) -> str:
    """Returns where the folder of a subject's held-out images is named; subjects are numbered from 1."""
    return f"data.subjects, entry {number}: validation_dir" if config.data.subjects else "--data.validation-dir"
