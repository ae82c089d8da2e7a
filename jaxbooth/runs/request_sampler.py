"""Answers `sample_requests` while a run trains; what is trained stays the same, bit for bit."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from jaxbooth.base.encoded_prompts import EncodedPrompts, empty_embeddings
from jaxbooth.base.text_encoder import TextEmbeddings
from jaxbooth.distributed.arrays import broadcast_arrays
from jaxbooth.distributed.run_scope import is_shared, is_writer
from jaxbooth.distributed.stop_agreement import StopAgreement
from jaxbooth.errors import UserError, format_message
from jaxbooth.params import Params, join
from jaxbooth.runs.own_prompts import OwnPrompts
from jaxbooth.runs.sample_requests import RequestFiles, SampleRequest, waiting_requests
from jaxbooth.runs.validation import ValidationSampler
from jaxbooth.training.state import TrainState, result_params


@dataclass
class RequestSampler:
    """Samples what is asked for with the program of the sample grids, so that nothing is compiled for it.

    Where the text encoder is not in memory, a prompt that is not one of the run's waits until it is encoded beside the
    training; one that is longer than all of the run's is sampled by a program of its own.

    A single process takes requests at its next dispatch. Several take them where the loop stops in any case, because
    all must agree; process 0 reads and writes.

    Attributes:
        root: the run's folder.
        sampler: of the sample grids.
        frozen: component -> parameters that training does not change.
        exchange: gives what every process gave to the same call, by process.
        stop_agreement: of all processes; one that is to stop answers nothing more.
        tried: names of requests, each of which is answered once.
        encoding: names of requests whose prompts are being encoded, or wait for that.
    """

    root: Path
    sampler: ValidationSampler
    frozen: dict[str, Params]
    exchange: Callable[[Any], list[Any]]
    stop_agreement: StopAgreement
    tried: set[str] = field(default_factory=set)
    encoding: set[str] = field(default_factory=set)

    @cached_property
    def own_prompts(self) -> OwnPrompts | None:
        """Encodes prompts that the run did not know before; None where the text encoders stay in memory."""
        sampler = self.sampler.image_sampler
        return OwnPrompts(sampler.base, sampler.encoded.text) if sampler.encoded else None

    def are_waiting(self) -> bool:
        """Whether a single process has something to answer. Costs one look at a folder."""
        if is_shared():
            return False
        ids = {files.id for files in self._waiting()}
        return bool(ids - self.encoding if self.own_prompts and self.own_prompts.is_busy() else ids)

    def answer(self, state: TrainState, step: int) -> None:
        """Answers what waits, with the model of a step. Every process must call it."""
        readable = self._readable() if is_writer() else []
        for id, values in self.exchange(readable)[0]:
            if self.stop_agreement.is_stopping and not is_shared():
                return
            self._answer(RequestFiles.of(self.root, id), SampleRequest(**values), state, step)

    def close(self) -> None:
        """Ends what still encodes a prompt."""
        if self.own_prompts:
            self.own_prompts.close()

    def _waiting(self) -> list[RequestFiles]:
        """Returns the requests that have no answer, and to which none was tried."""
        return [files for files in waiting_requests(self.root) if files.id not in self.tried]

    def _readable(self) -> list[tuple[str, dict[str, Any]]]:
        """Returns the waiting requests that can be answered, and answers those with a sentence that never can be."""
        readable = []
        for files in self._waiting():
            try:
                request = files.read()
                is_encoded = self._is_encoded(request.prompt)
            except (UserError, OSError) as error:
                self._refuse(files, error)
            else:
                if is_encoded:
                    readable.append((files.id, asdict(request)))
                else:
                    self.encoding.add(files.id)
        return readable

    def _is_encoded(self, prompt: str) -> bool:
        """Whether a prompt's embeddings are there or can be computed here; else they are begun elsewhere.

        Raises:
            UserError: they cannot be made, or would need another program on several processes, which all end if it
                does not fit.
        """
        encoded = self.sampler.image_sampler.encoded
        if encoded is None or prompt in encoded.index:
            return True
        text = self._own_text(prompt)
        if text and is_shared() and text.prompt_embeds.shape[1] > encoded.text.prompt_embeds.shape[1]:
            raise UserError(
                "The prompt is longer than all prompts of this run, whose processes would have to compile another "
                "program for it; shorten it, or stop the run and sample from its checkpoint."
            )
        return text is not None

    def _own_text(self, prompt: str) -> TextEmbeddings | None:
        """Returns the embeddings of a prompt that the run did not know before, once they are there."""
        return self.own_prompts.get(prompt) if self.own_prompts else None

    def _encoded(self, prompt: str) -> EncodedPrompts | None:
        """Returns a prompt that the run did not know, and the negative one, or None. Every process must call it."""
        sampler = self.sampler.image_sampler
        encoded = sampler.encoded
        if encoded is None or prompt in encoded.index:
            return None
        text = self._own_text(prompt) if is_writer() else None
        length = self.exchange(text and text.prompt_embeds.shape[1])[0]
        text = broadcast_arrays(text or empty_embeddings(encoded.text, length))
        return encoded.only(sampler.config.negative_prompt).with_prompt(prompt, text, sampler.mesh)

    def _answer(self, files: RequestFiles, request: SampleRequest, state: TrainState, step: int) -> None:
        """Samples one request.

        Whatever goes wrong is about the request and ends no training, unless other processes wait for this one.
        """
        self.tried.add(files.id)
        try:
            params = join(self.frozen, result_params(state))
            encoded = self._encoded(request.prompt)
            images = self.sampler.sample_prompt(params, request.prompt, request.seed, request.num, encoded)
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
