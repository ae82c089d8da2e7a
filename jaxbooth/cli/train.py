"""`jaxbooth train`: its flags are the keys of a run's configuration."""

from jaxbooth.cli.parse import parse, starting_config
from jaxbooth.config.run_config import Config
from jaxbooth.distributed.signals import exit_before_start, handled, stop_signals


def train_command(argv: list[str]) -> None:
    """Trains a run."""
    config = parse(Config, argv, "jaxbooth train [CONFIG]", starting_config(argv))
    with handled(exit_before_start, *stop_signals()):  # the run has handlers of its own, which save first
        from jaxbooth.runs.train import train

        train(config)
