"""From a configuration to everything that the loop needs: pictures, weights, class images, latents."""

import re
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from PIL import Image

from jaxbooth.config import Config
from jaxbooth.console import is_main, say, warn
from jaxbooth.data.images import Folder, Framing, Picture, scan
from jaxbooth.data.latents import Bank, all_variants, build_bank, encode_pictures
from jaxbooth.data.prior import ClassSet, generate_missing, open_class_set
from jaxbooth.data.sheet import sheet
from jaxbooth.diffusion.samplers import make_grid
from jaxbooth.errors import UserError
from jaxbooth.files import write_json, write_png
from jaxbooth.params import Params
from jaxbooth.pipeline import Base, encode_text, warn_about_lost_text
from jaxbooth.run_folder import RunFolder
from jaxbooth.sampling import Painter, Settings, check_resolution
from jaxbooth.weights.diffusers_dir import COMPONENTS, read_json, weight_files

SHEET_COLUMNS = 5
COMMON_SHARE = 0.6  # of a CLIP vocabulary: merges learned early, which are frequent words
MANY_TOKENS = 4


@dataclass(frozen=True)
class Inputs:
    """What was found on disk before any weight is read."""

    base: Base
    instance: Folder
    classes: ClassSet | None
    framing: Framing


def check_config(config: Config) -> None:
    """Refuses settings that contradict each other, before anything is read.

    Raises:
        UserError: the message names the flags.
    """
    data, train = config.data, config.train
    if data.instance_dir is None:
        raise UserError("--data.instance-dir is missing: the folder with the subject's pictures.")
    if not (data.instance_prompt or "").strip():
        raise UserError(
            "--data.instance-prompt is missing; write one with a rare identifier, such as 'a photo of sks dog'."
        )
    if config.prior_rows and not (data.class_prompt or "").strip():
        raise UserError(
            "--data.class-prompt is missing: prior preservation is on (--train.prior-weight "
            f"{train.prior_weight}). Name the class, such as 'a photo of dog', or set --train.prior-weight 0."
        )
    if config.prior_rows and data.class_dir and data.class_dir.resolve() == data.instance_dir.resolve():
        raise UserError(f"--data.instance-dir and --data.class-dir are both {data.class_dir}; they must differ.")
    for key, rows in (("batch-size", train.batch_size), ("prior-batch-size", config.prior_rows)):
        if rows % train.accumulation:
            raise UserError(f"--train.{key} {rows} is not a multiple of --train.accumulation {train.accumulation}.")
    for prompt in config.validation.prompts:
        if not prompt.strip():
            raise UserError("--validation.prompts holds an empty prompt; remove it.")


def read_inputs(config: Config, base: Base) -> Inputs:
    """Scans the pictures, opens everything that could turn out unusable later, and says what the run will do."""
    check_resolution(base, config.resolution, "--data.resolution")
    make_grid(base.schedule, config.validation.sampler, config.validation.steps, "--validation.steps")
    if config.prior_rows:
        make_grid(base.schedule, config.prior.sampler, config.prior.steps, "--prior.steps")
    for component in COMPONENTS:
        weight_files(base.folder / component)
    data = config.data
    crops = data.random_crops if data.crop == "random" else 0
    framing = Framing(config.resolution, crops, data.flip, config.seed)
    assert data.instance_dir is not None  # check_config has seen to it
    instance = scan(data.instance_dir, data.instance_prompt or "", "--data.instance-dir")
    skipped = f", {instance.skipped} other file(s) skipped" if instance.skipped else ""
    say(f"instance: {len(instance.pictures)} picture(s) in {data.instance_dir}{skipped}")
    classes = open_class_set(config, base.folder) if config.prior_rows else None
    if classes:
        say(f"prior on, weight {config.train.prior_weight}: {classes.plan()}")
    else:
        say("prior off: the model may forget the class")
    return Inputs(base, instance, classes, framing)


def explain_prompts(config: Config, inputs: Inputs) -> None:
    """Shows how the identifier is spelled in tokens, and what of any caption does not fit."""
    base, data = inputs.base, config.data
    class_words = set(words(data.class_prompt or ""))
    new_words = [word for word in words(data.instance_prompt or "") if word not in class_words]
    spelled = {word: base.tokenizer(word, add_special_tokens=False)["input_ids"] for word in new_words}
    if spelled:
        word, ids = max(spelled.items(), key=lambda item: (len(item[1]), max(item[1])))  # the rarest
        say(f"identifier '{word}': {len(ids)} token(s), {' '.join(base.tokenizer.convert_ids_to_tokens(ids))}")
        if len(ids) >= MANY_TOKENS:
            warn(f"'{word}' takes {len(ids)} tokens; a rarer and shorter identifier, such as sks, binds better.")
        if len(ids) == 1 and ids[0] < COMMON_SHARE * len(base.tokenizer):
            warn(f"'{word}' is a word that the model knows; its meaning will mix with the subject.")
    elif config.prior_rows:
        warn(
            "the instance prompt has no word that the class prompt lacks; give the subject an identifier, such as sks."
        )
    captions = [picture.caption for picture in inputs.instance.pictures]
    warn_about_lost_text(base, [*captions, data.class_prompt or "", *config.validation.prompts])


def words(prompt: str) -> list[str]:
    """Splits a prompt into lower-case words."""
    return re.findall(r"[\w<>-]+", prompt.lower())


def contact_sheet(inputs: Inputs) -> Image.Image:
    """Draws exactly what the model will see of the subject: crops, transparency, orientation, captions."""
    pixels, captions = zip(*all_variants(inputs.instance.pictures, inputs.framing), strict=True)
    return sheet(list(pixels), list(captions), min(SHEET_COLUMNS, len(pixels)))


def write_contact_sheet(run: RunFolder, image: Image.Image) -> None:
    """Saves the contact sheet."""
    if is_main():
        write_png(run.contact_sheet, image, {})
    say(f"contact sheet: {run.contact_sheet}")


def note_pictures(run: RunFolder, groups: dict[str, list[Picture]]) -> None:
    """Records which pictures a run uses, and warns when a continued run finds others, which changes its rows."""
    names = {kind: [picture.path.name for picture in pictures] for kind, pictures in groups.items()}
    if run.pictures.exists() and read_json(run.pictures) != names:
        warn(f"the pictures are not those that {run.root} was started with; later steps will see other rows.")
    if is_main():
        write_json(run.pictures, names)


def make_class_images(config: Config, base: Base, params: dict[str, Params], classes: ClassSet, mesh: Mesh) -> None:
    """Generates the class images that are missing, with the frozen base model."""
    if not classes.missing:
        return
    chosen = config.prior
    settings = Settings(chosen.sampler, chosen.steps, chosen.guidance_scale, config.resolution)
    painter = Painter(base, mesh, settings, chosen.batch_size, quiet=True)
    prompt = config.data.class_prompt or ""

    def paint(indices: list[int]) -> np.ndarray:
        return painter(params, [prompt] * len(indices), chosen.seed, indices)

    generate_missing(classes, paint, painter.batch)


def make_bank(
    config: Config, inputs: Inputs, params: dict[str, Params], class_pictures: list[Picture], mesh: Mesh
) -> Bank:
    """Encodes all pictures and captions."""
    base = inputs.base
    groups = [
        (pictures, encode_pictures(base, params["vae"], pictures, inputs.framing, mesh))
        for pictures in (inputs.instance.pictures, class_pictures)
        if pictures
    ]
    encode = jax.jit(lambda values, ids: encode_text(base, values, ids).astype(jnp.float32))

    def encode_captions(captions: list[str]) -> jax.Array:
        ids = jnp.asarray(base.tokenize(captions))
        return ids if config.train.text_encoder else encode(params["text_encoder"], ids)

    return build_bank(groups, encode_captions, mesh)
