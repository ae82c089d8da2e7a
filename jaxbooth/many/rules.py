"""Settings that go with one run and not with many subjects in one program, refused by name."""

from collections.abc import Iterator

from jaxbooth.config.run_config import Config
from jaxbooth.config.section import flag
from jaxbooth.errors import UserError
from jaxbooth.storage.remote import as_path, is_local


def check_many(config: Config) -> None:
    """Refuses what a program of many subjects cannot do.

    Raises:
        UserError: the message names the flag.
    """
    for problem in unsupported(config):
        raise UserError(problem)


def unsupported(config: Config) -> Iterator[str]:
    """Yields a message for every setting that a program of many subjects has no place for."""
    train, evaluation = config.train, config.evaluation
    if not config.lora.rank:
        yield "train-many teaches every subject a LoRA over one frozen model; set --lora.rank, such as 16."
    if config.lora.kind in ("dora", "loha"):
        yield (
            f"--lora.kind {config.lora.kind} makes kernels of its own for every subject, which train-many does not; "
            "choose lora or lokr."
        )
    if config.text.placeholder_tokens:
        yield "--text.placeholder-tokens are of one run; with train-many, name subjects with words of the vocabulary."
    if config.fit:
        yield "--fit is of one run; with train-many, set --model-quantization, such as int8, or fewer --slots."
    if config.prior.full_precision:
        yield "--prior.full-precision is of one run; let it make the class images, and name them with --data.class-dir."
    if config.data.buckets:
        yield "--data.buckets needs a program for each shape, and train-many has one; leave it out."
    if config.data.hold_out:
        yield "--data.hold-out: train-many does not measure held-out images; leave it out."
    if train.gradient_accumulation_steps > 1:
        yield "--train.gradient-accumulation-steps: with train-many, lower --slots instead."
    for name in ("every", "keep_best", "patience"):
        if getattr(evaluation, name) is not None:
            yield f"{flag(f'evaluation.{name}')}: train-many measures no scores; use `jaxbooth evaluate` afterwards."
    if config.validation.drift_limit is not None:
        yield "--validation.drift-limit keeps a checkpoint, and with train-many a run has its last one alone."
    if not is_local(as_path(config.run_dir)):
        yield f"--run-dir {config.run_dir} is an object store, to which a status cannot be appended; name a folder."
