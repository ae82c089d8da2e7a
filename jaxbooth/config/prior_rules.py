"""Settings of the prior that contradict each other, miss something or would have no effect."""

from collections.abc import Iterator

from jaxbooth.config.ineffective import changed_keys
from jaxbooth.config.prior import ROW_METHODS, PriorMethod
from jaxbooth.config.run_config import Config
from jaxbooth.config.schema import Subject
from jaxbooth.config.section import flag, flatten
from jaxbooth.console.messages import warn
from jaxbooth.errors import UserError

# method -> keys that are about it alone
METHOD_KEYS: dict[PriorMethod, tuple[str, ...]] = {
    "class-images": ("data.class_dir", "prior.target", "prior.class_images_weight"),
    "output-preservation": ("prior.class_caption", "prior.output_preservation_weight"),
    "blank-prompt": ("prior.blank_prompt_weight",),
    "weight-anchor": ("prior.weight_anchor_weight",),
}
# What describes class images: configurations do, and a flag may turn them off, so this is no error.
DESCRIPTIONS = (
    "data.num_class_images", "prior.sampler", "prior.steps", "prior.guidance_scale", "prior.sample_batch_size",
    "prior.seed",
)  # fmt: skip


def check_prior(config: Config) -> None:
    """Refuses settings of the prior that contradict each other or would have no effect.

    Raises:
        UserError: the message names the flags.
    """
    prior = config.prior
    if "none" in prior.method and len(prior.method) > 1:
        others = " and ".join(name for name in prior.method if name != "none")
        raise UserError(f"--prior.method none turns every method off, and {others} is named beside it; leave one out.")
    twice = next((name for name in prior.method if prior.method.count(name) > 1), None)
    if twice:
        raise UserError(f"--prior.method names {twice} twice; name it once and set its weight.")
    for problem in ineffective_prior_options(config):
        raise UserError(problem)
    tokens = config.text.placeholder_tokens
    if config.outside_mask_weight and tokens:
        raise UserError(
            f"--loss.outside-mask frozen asks the frozen model about captions with {tokens[0]}, which is new to it; "
            "leave it out, or name the subject with a word of the vocabulary."
        )
    for token in tokens:
        if token in (prior.class_caption or ""):
            raise UserError(
                f"--prior.class-caption holds the placeholder token {token}, which the frozen model does not know; "
                "leave it out."
            )


def ineffective_prior_options(config: Config) -> Iterator[str]:
    """Yields a message for every option of the prior that is set and has no effect."""
    prior, changed = config.prior, changed_keys(config)
    if "prior.weight" in changed and prior.weight and not uses_shared_weight(config):
        yield f"--prior.weight has no effect: {why_without_rows(config)}."
    if prior.rows and not prior.row_methods:
        yield f"--prior.rows has no effect: {why_without_rows(config)}."
    for method, keys in METHOD_KEYS.items():
        for key in keys:
            is_off = key in changed and method not in prior.weights
            if is_off and not (key.endswith("_weight") and method in prior.method):
                yield f"{flag(key)} is about {method}, and this run is without it ({why_without(config, method)})."
    for index, subject in enumerate(config.data.subjects):
        if subject.class_dir and not prior.uses_class_images:
            yield f"data.subjects, entry {index + 1}: class_dir is about class-images, and this run is without it."
    if config.loss.outside_mask == "frozen" and not config.outside_mask_weight:
        yield "--loss.outside-mask frozen has the weight 0; leave it out, or set --prior.outside-mask-weight."
    if "prior.weighting" in changed and not prior.row_methods:
        yield f"--prior.weighting is about prior rows, and this run has none: {why_without_rows(config)}."
    if prior.class_caption is not None and not prior.class_caption.strip():
        yield "--prior.class-caption is empty; write one, or choose --prior.method blank-prompt."
    if prior.class_caption and len(config.data.subjects) > 1:
        yield "--prior.class-caption is one for all subjects; leave it out, and each caption loses its identifier."


def uses_shared_weight(config: Config) -> bool:
    """Whether any term has the weight that terms without one of their own share."""
    prior, values = config.prior, flatten(config)
    own = [values[f"prior.{method.replace('-', '_')}_weight"] for method in prior.row_methods]
    outside = [prior.outside_mask_weight] if config.loss.outside_mask == "frozen" else []
    return None in (*own, *outside)


def why_without(config: Config, method: PriorMethod) -> str:
    """Returns what turned a method off."""
    prior = config.prior
    if method not in prior.method:
        return f"--prior.method {' '.join(prior.method)}"
    return "--prior.rows 0" if prior.rows == 0 else "its weight is 0"


def why_without_rows(config: Config) -> str:
    """Returns what left a run without prior rows."""
    prior = config.prior
    if prior.row_methods:
        return "every method has a weight of its own"
    named = [method for method in ROW_METHODS if method in prior.method]
    return why_without(config, named[0]) if named else f"--prior.method {' '.join(prior.method)} has no rows"


def check_class(config: Config, subject: Subject, key: str) -> None:
    """Refuses a class that class images cannot be made of; `key` is where its prompt was set."""
    prompt = subject.class_prompt or ""
    if not config.prior.uses_class_images:
        return
    if not prompt.strip():
        raise UserError(
            f"{key} is missing: --prior.method class-images generates images of it. Name the class, such as 'a photo "
            "of dog', or choose --prior.method output-preservation, which needs no class images, or none."
        )
    for word in config.text.placeholder_tokens:
        if word in prompt:
            raise UserError(
                f"{key} holds the placeholder token {word}, which the frozen model does not know; leave it out."
            )


def warn_about_prior(config: Config) -> None:
    """Warns if class images are described and none are used, or if the empty caption is both trained and held."""
    unused = [flag(key) for key in changed_keys(config) if key in DESCRIPTIONS]
    if unused and not config.prior.uses_class_images:
        warn(f"this run generates no class images and ignores {', '.join(unused)}.")
    if config.text.caption_dropout and "blank-prompt" in config.prior.weights:
        warn(
            "--text.caption-dropout trains the empty caption on the photos, and --prior.method blank-prompt holds it "
            "where it was; leave one of them out."
        )
