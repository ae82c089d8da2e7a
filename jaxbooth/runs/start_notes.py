"""What a run says when it starts: identifiers, captions that do not fit, padding, its length and learning rate."""

import math
from collections.abc import Collection, Sequence

import numpy as np

from jaxbooth.base.identifier import (
    MANY_MORE,
    AnyTokenizer,
    find_identifier,
    prompt_words,
    suggest_identifiers,
    token_texts,
)
from jaxbooth.base.model import BaseModel
from jaxbooth.base.text_encoder import PromptEncoder, warn_about_truncation
from jaxbooth.base.trainable import fully_trained, trained_shapes
from jaxbooth.config.prior import PriorConfig
from jaxbooth.config.rates import learning_rates
from jaxbooth.config.run_config import Config
from jaxbooth.config.schema import Subject, TrainConfig
from jaxbooth.config.subjects import noun_phrase
from jaxbooth.console.messages import info, pluralize, warn
from jaxbooth.models.quantization import quantized_kernels, stored_shapes
from jaxbooth.params import Shapes
from jaxbooth.storage.disk import format_bytes
from jaxbooth.training.layout import unpadded_batch_size
from jaxbooth.training.optimizer import reported_learning_rate
from jaxbooth.weights.family import Distillation


def log_prompts(config: Config, text: PromptEncoder, captions: Sequence[str]) -> None:
    """Shows how each identifier is spelled in tokens, and what of any caption does not fit.

    Args:
        captions: of the subjects' images.
    """
    used = {word for subject in config.subjects for word in prompt_words(subject.instance_prompt)}
    for subject in config.subjects:
        log_identifier(text.encoders[0].tokenizer, subject, used, has_prior=bool(config.prior_terms))
    class_prompts = [subject.class_prompt or "" for subject in config.subjects]
    warn_about_truncation(text, [*captions, *class_prompts, *config.validation.prompts])


def warn_about_distillation(distillation: Distillation | None) -> None:
    """Warns that training a distilled model undoes what distillation achieved, and names the base to take instead."""
    if distillation:
        warn(
            f"this model was distilled to {distillation.steps} steps without guidance; training undoes that, and "
            f"images sampled in few steps become blurry. Train the model that it was distilled from: "
            f"{distillation.base}."
        )


def log_identifier(tokenizer: AnyTokenizer, subject: Subject, used: Collection[str], has_prior: bool) -> None:
    """Shows how the rarest word that only the instance prompt has is spelled, and warns of one that will not bind well.

    Without a class prompt it is the first word of what the prompt shows.
    """
    suggested = suggest_identifiers(tokenizer, used)
    *others, last = [identifier.word for identifier in suggested]
    better = f"{', '.join(others)} or {last}"
    if subject.class_prompt:
        words, class_words = prompt_words(subject.instance_prompt), prompt_words(subject.class_prompt)
    else:
        words, class_words = prompt_words(noun_phrase(subject.instance_prompt))[:1], []
    identifier = find_identifier(tokenizer, words, class_words)
    if identifier is None:
        if has_prior and not tokenizer.placeholder_tokens:
            warn(f"the instance prompt has no word that the class prompt lacks; give the subject a name, say {better}.")
        return
    word, length, shortest = identifier.word, len(identifier.ids), len(suggested[0].ids)
    info(f"identifier '{word}': {pluralize(length, 'token')}, {token_texts(tokenizer, identifier)}")
    if length >= shortest + MANY_MORE:
        warn(
            f"'{word}' is {length} tokens for this model, and each means something to it; a rare identifier of "
            f"{shortest}, such as {better}, binds better."
        )
    if identifier.is_common:
        warn(f"'{word}' is a word that the model knows, and its meaning will mix with the subject; try {better}.")


def log_prior(config: Config, base: BaseModel) -> None:
    """Says in one line which terms keep what the model knew, their weights and what each costs."""
    terms = [
        f"{name}, weight {weight:g} ({term_cost(config, base, name)})" for name, weight in config.prior_terms.items()
    ]
    info(f"prior: {'; '.join(terms)}" if terms else "prior off: the model may forget the class")


def term_cost(config: Config, base: BaseModel, name: str) -> str:
    """Returns what a term costs: rows of a step, passes of the frozen model, copies of weights."""
    whole = fully_trained(base, trained_shapes(base, config))
    if name == "weight-anchor":
        values = sum(math.prod(shape.shape) for part in whole for shape in base.module(part).shapes.values())
        return f"{format_bytes(4 * values)} for the base model's weights" if values else "no memory"
    if name == "outside-mask":
        return f"the frozen model's pass over instance rows{reference_cost(base, whole)}"
    rows = pluralize(config.prior.rows_per_method(config.train.batch_size), "row")
    if name in config.prior.distilled_methods:
        return f"{rows} a step and the frozen model's pass over them{reference_cost(base, whole)}"
    return f"{rows} a step"


def reference_cost(base: BaseModel, whole: Collection[str]) -> str:
    """Returns what the copy of a denoiser costs that is trained as a whole; a LoRA needs none."""
    if base.denoiser_name not in whole:
        return ""
    values = sum(math.prod(shape.shape) for shape in base.module(base.denoiser_name).shapes.values())
    return f", whose copy takes {format_bytes(values * base.dtype.itemsize)}"


def log_quantization(base: BaseModel) -> None:
    """Says which of the base model's kernels are quantized, and what that saves."""
    for name in (base.denoiser_name, *base.text_encoder_names):
        shapes, kind = base.module(name).shapes, base.quantization_of(name)
        quantized = quantized_kernels(shapes, kind)
        if quantized:
            kernels = sum(other.endswith(".kernel") for other in shapes)
            sizes = [parameter_bytes(stored_shapes(shapes, held_in, base.dtype)) for held_in in ("none", kind)]
            before, after = map(format_bytes, sizes)
            info(f"{name}: {len(quantized)} of {kernels} kernels in {kind}, {before} become {after}")


def parameter_bytes(shapes: Shapes) -> int:
    """Returns the bytes of parameters."""
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in shapes.values())


def log_padding(train: TrainConfig, prior: PriorConfig, padded: int, shards: int) -> None:
    """Says so where rows are computed for nothing, and which number would use them.

    Args:
        padded: rows of a step, padding included.
    """
    prior_rows = prior.total_rows(train.batch_size)
    rows = train.batch_size + prior_rows
    if padded <= rows:
        return
    micro_batches = train.gradient_accumulation_steps
    methods = len(prior.row_methods)
    follows = prior.rows is None
    better = unpadded_batch_size(
        train.batch_size, methods if follows else 0, 0 if follows else prior_rows, micro_batches, shards
    )
    parts = f"{micro_batches} micro-batches on {shards} devices" if micro_batches > 1 else f"{shards} devices"
    info(
        f"{rows} rows do not divide among {parts} and are padded to {padded}, which changes no result; "
        f"--train.batch-size {better} would use what the padding costs."
    )


def describe_length(config: Config, images: int) -> str:
    """Returns what the run's length means in images, and the peak learning rate."""
    train, rates = config.train, learning_rates(config)
    views = train.steps * train.batch_size
    rate = rates.tokens if rates.tokens_only else rates.denoiser
    of_b = f", of matrices B {rates.b_ratio * rate:g}" if rates.b_ratio != 1 else ""
    return (
        f"{train.steps} steps x ({train.batch_size} + {config.prior_rows}) rows = "
        f"{views} instance views, {views / images:.3g} views of each image; learning rate {rate:g}{of_b}"
    )


def learning_rate_jump(before: Config, after: Config, step: int) -> str | None:
    """Returns a sentence if the learning rate jumps up where a run goes on with another number of steps, else None.

    Args:
        before, after: of the run so far, and from now on.
        step: updates done.
    """
    old = reported_learning_rate(before.train, learning_rates(before))
    new = reported_learning_rate(after.train, learning_rates(after))
    last, planned, rate = (np.asarray(value).item() for value in (old(max(step - 1, 0)), old(step), new(step)))
    if rate <= 1.01 * max(last, planned):
        return None
    return (
        f"the learning rate jumps from {last:.2g} to {rate:.2g}: --train.lr-scheduler {after.train.lr_scheduler} now "
        f"falls until step {after.train.steps}, and so far until {before.train.steps}"
    )
