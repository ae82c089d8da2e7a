"""`jaxbooth train-many`: its flags are those of `jaxbooth train`, and a few of its own."""

from jaxbooth.cli.parse import parse, starting_config
from jaxbooth.config import limits
from jaxbooth.config.run_config import Config
from jaxbooth.distributed.signals import exit_before_start, handled, stop_signals
from jaxbooth.errors import UserError

USAGE = "jaxbooth train-many MANIFEST [CONFIG]"


class ManyArguments(Config):
    """Train many subjects in one program, a LoRA and a run folder for each. Takes every flag of `jaxbooth train`."""

    slots: limits.SlotCount | None = None
    """Subjects that are trained side by side, on all hosts together; default: as many as fit into the devices'
    memory."""
    shard: str | None = None
    """I/N: train only the I-th of N shares of the manifest, for N independent programs with one --run-dir."""

    @property
    def config(self) -> Config:
        """What all subjects share."""
        return Config(**{key: getattr(self, key) for key in Config.model_fields})


def train_many_command(argv: list[str]) -> None:
    """Trains all subjects of a manifest."""
    manifest = argv.pop(0) if argv and not argv[0].startswith("-") else None
    arguments = parse(ManyArguments, argv, USAGE, ManyArguments(**dict(starting_config(argv))))
    if manifest is None:
        raise UserError(f"name a manifest, a YAML or .jsonl file with one entry a subject: {USAGE} --run-dir FOLDER.")
    with handled(exit_before_start, *stop_signals()):
        from jaxbooth.many.train import train_many

        train_many(manifest, arguments.config, arguments.slots, arguments.shard)
