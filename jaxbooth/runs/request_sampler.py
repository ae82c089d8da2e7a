"""Answers `sample_requests` while a run trains; what is trained stays the same, bit for bit."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from jaxbooth.distributed.run_scope import is_shared, is_writer
from jaxbooth.distributed.stop_agreement import StopAgreement
from jaxbooth.errors import UserError, format_message
from jaxbooth.params import Params, join
from jaxbooth.runs.sample_requests import RequestFiles, SampleRequest, waiting_requests
from jaxbooth.runs.validation import ValidationSampler
from jaxbooth.training.state import TrainState, result_params


@dataclass
class RequestSampler:
    """Samples what is asked for with the program of the sample grids, so that nothing is compiled for it.

    A single process takes requests at its next dispatch. Several take them where the loop stops in any case, because
    all must agree; process 0 reads and writes.

    Attributes:
        root: the run's folder.
        sampler: of the sample grids.
        frozen: component -> parameters that training does not change.
        exchange: gives what every process gave to the same call, by process.
        stop_agreement: of all processes; one that is to stop answers nothing more.
        tried: names of requests, each of which is answered once.
    """

    root: Path
    sampler: ValidationSampler
    frozen: dict[str, Params]
    exchange: Callable[[Any], list[Any]]
    stop_agreement: StopAgreement
    tried: set[str] = field(default_factory=set)

    def are_waiting(self) -> bool:
        """Whether a single process has something to answer. Costs one look at a folder."""
        return not is_shared() and bool(self._waiting())

    def answer(self, state: TrainState, step: int) -> None:
        """Answers what waits, with the model of a step. Every process must call it."""
        readable = self._readable() if is_writer() else []
        for id, values in self.exchange(readable)[0]:
            if self.stop_agreement.is_stopping and not is_shared():
                return
            self._answer(RequestFiles.of(self.root, id), SampleRequest(**values), state, step)

    def _waiting(self) -> list[RequestFiles]:
        """Returns the requests that have no answer, and to which none was tried."""
        return [files for files in waiting_requests(self.root) if files.id not in self.tried]

    def _readable(self) -> list[tuple[str, dict[str, Any]]]:
        """Returns the waiting requests that can be answered, and answers the others with a sentence."""
        readable = []
        for files in self._waiting():
            try:
                request = files.read()
                self._check(request)
            except (UserError, OSError) as error:
                self._refuse(files, error)
            else:
                readable.append((files.id, asdict(request)))
        return readable

    def _check(self, request: SampleRequest) -> None:
        """Raises UserError for a prompt that cannot be encoded now."""
        encoded = self.sampler.image_sampler.encoded
        if encoded is not None and request.prompt not in encoded.index:
            raise UserError(
                "The text encoder is not in memory while this model trains. Ask for a prompt of the sample grids, or "
                "stop the run and sample from its checkpoint."
            )

    def _answer(self, files: RequestFiles, request: SampleRequest, state: TrainState, step: int) -> None:
        """Samples one request.

        Whatever goes wrong is about the request and ends no training, unless other processes wait for this one.
        """
        self.tried.add(files.id)
        try:
            params = join(self.frozen, result_params(state))
            images = self.sampler.sample_prompt(params, request.prompt, request.seed, request.num)
            if is_writer():
                files.write_images(images, request, {"step": step, **self.sampler.image_sampler.config.metadata()})
        except Exception as error:
            if is_shared():
                raise
            self._refuse(files, error)

    def _refuse(self, files: RequestFiles, error: Exception) -> None:
        """Says why a request has no images; where that cannot be written, nothing is."""
        self.tried.add(files.id)
        with suppress(OSError):
            files.write_error(format_message(str(error) or type(error).__name__))
