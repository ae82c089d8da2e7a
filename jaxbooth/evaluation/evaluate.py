"""`jaxbooth evaluate RUN`: draw, measure, compare, write it down."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh
from tyro.conf import Positional

from jaxbooth.backend import enable_compilation_cache, warn_about_cpu_fallback
from jaxbooth.base.sampling import SamplingConfig
from jaxbooth.config.limits import MAX_EVALUATED_IMAGES, GuidanceScale, PairedImageCount, SamplerSteps, Seed, Step
from jaxbooth.config.run_config import Config
from jaxbooth.config.schema import Section
from jaxbooth.console.messages import counted, result, say, warn
from jaxbooth.console.progress import working
from jaxbooth.diffusion.samplers import SamplerName
from jaxbooth.errors import UserError
from jaxbooth.evaluation.images import Cell, cells, generate_missing, open_image_folder, read_images
from jaxbooth.evaluation.models import ComparedModel, base_model, parse_model, run_model
from jaxbooth.evaluation.results import FORMAT, differences, metric_means, prompt_results
from jaxbooth.evaluation.table import print_table
from jaxbooth.metrics.definitions import DEFINITIONS, Scores
from jaxbooth.metrics.prompts import (
    TEMPLATES,
    EvalPrompt,
    class_prompts,
    name_subject,
    prompts_without_subject,
    read_templates,
    subject_prompts,
    template_set,
)
from jaxbooth.metrics.scorer import FeatureModels, Scorer, load_feature_models, reference_images
from jaxbooth.runs.folder import RunFolder, open_run, run_mesh
from jaxbooth.runs.overlap import check_output
from jaxbooth.storage.disk import check_writable
from jaxbooth.storage.files import write_json
from jaxbooth.storage.remote import is_local, place

RESULT = "evaluation.json"


class EvaluateArguments(Section):
    """Measure a run: DINO and CLIP-I (subject), CLIP-T (prompt), PRES and DIV (class), beside its base model."""

    run: Positional[str]
    """Run folder."""
    step: Step | None = None
    """Step of the checkpoint; default: the newest."""
    compare: tuple[str, ...] = ()
    """Other runs, RUN@STEP, or models to put beside it."""
    prompts: str = "auto"
    """live or object (the paper's 25 each; auto: by class), or a text file, one prompt a line, {} for the subject."""
    num: PairedImageCount = 4
    """Images of each prompt; the paper has 4."""
    class_num: PairedImageCount = 32
    """Images of the class prompt."""
    subject: str | None = None
    """What fills {}, such as "sks dog"; default: read off the instance prompt."""
    noun: str | None = None
    """The class in it, such as dog; default: read off the class prompt."""
    clip: str | None = None
    """CLIP folder or Hub id, or none; default openai/clip-vit-base-patch32, and the embedded one for the demo model."""
    dino: str | None = None
    """DINO or DINOv2 folder or Hub id, or none; default facebook/dino-vits16, and none for the demo model."""
    allow_pickle: bool = False
    """Also read .bin files of CLIP and DINO, with PyTorch's weights-only loader."""
    seed: Seed = 0
    """Decides the noise."""
    sampler: SamplerName | None = None
    """Default: the run's validation sampler."""
    steps: SamplerSteps | None = None
    """Network evaluations for one image; default: as in the run's validation."""
    guidance_scale: GuidanceScale | None = None
    """Default: the run's validation guidance."""
    out: Path | None = None
    """Folder for evaluation.json and the images; default: RUN/evaluation."""


@dataclass(frozen=True)
class Evaluation:
    """What is drawn and measured, the same for every model."""

    arguments: EvaluateArguments
    config: Config
    entries: list[EvalPrompt]
    settings: SamplingConfig
    mesh: Mesh
    out: Path

    @property
    def wanted(self) -> list[Cell]:
        """All images of one model."""
        return cells(self.entries, self.arguments.num, self.arguments.class_num)

    def images(self, model: ComparedModel) -> list[list[np.ndarray]]:
        """Draws what is missing of a model's images, and reads them all."""
        pipeline = model.load(self.config, self.mesh)
        folder = self.out / "images" / model.name
        made = {
            "weights": model.weights(pipeline),
            "prompts": [entry.prompt for entry in self.entries],
            "seed": self.arguments.seed,
            "resolution": self.settings.resolution,
        }
        open_image_folder(folder, made | self.settings.metadata())
        drawn = generate_missing(pipeline, self.entries, self.wanted, self.settings, self.arguments.seed, folder)
        say(f"{model.label}: {counted(drawn, 'image')} drawn, {len(self.wanted) - drawn} found in {folder}")
        return read_images(folder, self.entries, self.wanted)


def evaluation_prompts(arguments: EvaluateArguments, config: Config) -> list[EvalPrompt]:
    """Returns the prompts of every subject, and of every class.

    Raises:
        UserError: a subject is named for a run that has several, or the prompts cannot be read.
    """
    subjects = config.subjects
    if len(subjects) > 1 and (arguments.subject or arguments.noun):
        raise UserError("--subject and --noun name one subject, and this run has several; leave them out.")
    names = [name_subject(subject, arguments.subject, arguments.noun) for subject in subjects]
    entries = []
    for number, named in enumerate(names):
        kind = template_set(named.noun) if arguments.prompts == "auto" else arguments.prompts
        templates = TEMPLATES[kind] if kind in TEMPLATES else read_templates(Path(kind))
        entries += subject_prompts(templates, named, number)
        say(f"subject '{named.phrase}', class '{named.noun}': {len(templates)} prompts ({kind})")
    missing = prompts_without_subject(entries, names)
    if missing:
        warn(
            f"the subject is not named in {counted(len(missing), 'prompt')}, such as '{missing[0]}'; write {{}} where "
            "it goes."
        )
    return entries + class_prompts(subjects)


def prepare_evaluation(arguments: EvaluateArguments, config: Config, root: Path, mesh: Mesh) -> Evaluation:
    """Puts together what every model is asked for."""
    chosen = config.validation
    settings = SamplingConfig(
        arguments.sampler or chosen.sampler,
        arguments.steps or chosen.steps,
        arguments.guidance_scale or chosen.guidance_scale,
        config.resolution,
    )
    out = place(arguments.out) if arguments.out else RunFolder(root).evaluation
    if is_local(out):
        check_writable(out, "--out")
        check_output(out, root, config, allowed="evaluation")
    evaluation = Evaluation(arguments, config, evaluation_prompts(arguments, config), settings, mesh, out)
    if len(evaluation.wanted) > MAX_EVALUATED_IMAGES:
        raise UserError(
            f"{len(evaluation.wanted):,} images of each model are too many, and {MAX_EVALUATED_IMAGES:,} is the most; "
            "lower --num or --class-num, or shorten --prompts."
        )
    return evaluation


def skipped_metrics(evaluation: Evaluation, extractors: FeatureModels) -> dict[str, str]:
    """Returns why some metrics are missing."""
    found = {}
    if not extractors.dino:
        found["dino"] = "no DINO model; name one with --dino FOLDER or a Hub id."
    if not extractors.clip:
        found |= dict.fromkeys(("clip_i", "clip_t"), "no CLIP model; name one with --clip FOLDER or a Hub id.")
    if not any(entry.group == "class" for entry in evaluation.entries):
        found |= dict.fromkeys(("pres", "div"), "the run has no class prompt.")
    elif evaluation.arguments.class_num == 1:
        found["div"] = "one image of the class has nothing to differ from; raise --class-num."
    if evaluation.arguments.num == 1:
        found["div_subject"] = "one image a prompt has nothing to differ from; raise --num."
    return found


@working()
def evaluate(arguments: EvaluateArguments) -> Path:
    """Draws the images, computes the metrics, prints them and writes them down; returns the path of the result.

    Raises:
        UserError: the run, a model or an extractor cannot be used as it is.
    """
    enable_compilation_cache()
    warn_about_cpu_fallback()
    run, config = open_run(arguments.run)
    mesh = run_mesh(config)
    models = [base_model(config), run_model(run.root, arguments.step, "run"), *map(parse_model, arguments.compare)]
    evaluation = prepare_evaluation(arguments, config, run.root, mesh)
    extractors = load_feature_models(config, arguments.clip, arguments.dino, mesh, arguments.allow_pickle)
    measure = Scorer(extractors, evaluation.entries, reference_images(config))
    left_out = skipped_metrics(evaluation, extractors)
    for name, reason in left_out.items():
        say(f"{DEFINITIONS[name].title.format('').replace(' ( distance)', '')} is left out: {reason}")
    scored = [(model, measure(evaluation.images(model))) for model in models]
    found = evaluation_json(evaluation, extractors, scored) | {"skipped": left_out}
    path = evaluation.out / RESULT
    write_json(path, found)
    print_table(found)
    result(f"written: {path}")
    return path


def evaluation_json(
    evaluation: Evaluation, extractors: FeatureModels, scored: Sequence[tuple[ComparedModel, Scores]]
) -> dict[str, Any]:
    """Returns the content of `evaluation.json`."""
    arguments, settings = evaluation.arguments, evaluation.settings
    base = scored[0][1]
    models = []
    for model, scores in scored:
        folder = f"images/{model.name}"
        entry: dict[str, Any] = {"name": model.name, "label": model.label, "source": model.path, "step": model.step}
        entry |= {"images": folder, "metrics": metric_means(scores)}
        if scores is not base:
            entry["differences"] = differences(scores, base)
        models.append(entry | {"prompts": prompt_results(evaluation.entries, evaluation.wanted, scores, folder)})
    chosen = {key: getattr(arguments, key) for key in ("prompts", "num", "class_num", "seed")}
    return {
        "format": FORMAT,
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "settings": chosen | settings.metadata() | {"resolution": settings.resolution},
        "extractors": extractors.facts(),
        "definitions": {name: DEFINITIONS[name].facts(extractors.dino is not None) for name in base},
        "models": models,
    }
