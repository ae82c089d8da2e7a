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
from jaxbooth.evaluation.images import Place, draw_missing, open_grid, places, read_grid
from jaxbooth.evaluation.models import Compared, base_of, other, run_at
from jaxbooth.evaluation.results import FORMAT, by_prompt, differences, overall
from jaxbooth.evaluation.table import print_table
from jaxbooth.metrics.definitions import DEFINITIONS, Scores
from jaxbooth.metrics.prompts import (
    TEMPLATES,
    Entry,
    class_entries,
    name_subject,
    read_templates,
    subject_entries,
    template_kind,
    without_subject,
)
from jaxbooth.metrics.scorer import Extractors, Measure, open_extractors, references
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
    """Pictures of each prompt; the paper has 4."""
    class_num: PairedImageCount = 32
    """Pictures of the class prompt."""
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
    """Network evaluations for one picture; default: as in the run's validation."""
    guidance_scale: GuidanceScale | None = None
    """Default: the run's validation guidance."""
    out: Path | None = None
    """Folder for evaluation.json and the pictures; default: RUN/evaluation."""


@dataclass(frozen=True)
class Evaluation:
    """What is drawn and measured, the same for every model."""

    arguments: EvaluateArguments
    config: Config
    entries: list[Entry]
    settings: SamplingConfig
    mesh: Mesh
    out: Path

    @property
    def wanted(self) -> list[Place]:
        """All pictures of one model."""
        return places(self.entries, self.arguments.num, self.arguments.class_num)

    def pictures(self, model: Compared) -> list[list[np.ndarray]]:
        """Draws what is missing of a model's pictures, and reads them all."""
        pipeline = model.load(self.config, self.mesh)
        folder = self.out / "pictures" / model.name
        made = {
            "weights": model.weights(pipeline),
            "prompts": [entry.prompt for entry in self.entries],
            "seed": self.arguments.seed,
            "resolution": self.settings.resolution,
        }
        open_grid(folder, made | self.settings.metadata())
        drawn = draw_missing(pipeline, self.entries, self.wanted, self.settings, self.arguments.seed, folder)
        say(f"{model.label}: {counted(drawn, 'image')} drawn, {len(self.wanted) - drawn} found in {folder}")
        return read_grid(folder, self.entries, self.wanted)


def entries_of(arguments: EvaluateArguments, config: Config) -> list[Entry]:
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
        kind = template_kind(named.noun) if arguments.prompts == "auto" else arguments.prompts
        templates = TEMPLATES[kind] if kind in TEMPLATES else read_templates(Path(kind))
        entries += subject_entries(templates, named, number)
        say(f"subject '{named.phrase}', class '{named.noun}': {len(templates)} prompts ({kind})")
    missing = without_subject(entries, names)
    if missing:
        warn(
            f"the subject is not named in {counted(len(missing), 'prompt')}, such as '{missing[0]}'; write {{}} where "
            "it goes."
        )
    return entries + class_entries(subjects)


def prepare(arguments: EvaluateArguments, config: Config, root: Path, mesh: Mesh) -> Evaluation:
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
    evaluation = Evaluation(arguments, config, entries_of(arguments, config), settings, mesh, out)
    if len(evaluation.wanted) > MAX_EVALUATED_IMAGES:
        raise UserError(
            f"{len(evaluation.wanted):,} images of each model are too many, and {MAX_EVALUATED_IMAGES:,} is the most; "
            "lower --num or --class-num, or shorten --prompts."
        )
    return evaluation


def skipped(evaluation: Evaluation, extractors: Extractors) -> dict[str, str]:
    """Returns why some metrics are missing."""
    found = {}
    if not extractors.dino:
        found["dino"] = "no DINO model; name one with --dino FOLDER or a Hub id."
    if not extractors.clip:
        found |= dict.fromkeys(("clip_i", "clip_t"), "no CLIP model; name one with --clip FOLDER or a Hub id.")
    if not any(entry.group == "class" for entry in evaluation.entries):
        found |= dict.fromkeys(("pres", "div"), "the run has no class prompt.")
    elif evaluation.arguments.class_num == 1:
        found["div"] = "one picture of the class has nothing to differ from; raise --class-num."
    if evaluation.arguments.num == 1:
        found["div_subject"] = "one picture a prompt has nothing to differ from; raise --num."
    return found


@working()
def evaluate(arguments: EvaluateArguments) -> Path:
    """Draws the pictures, computes the metrics, prints them and writes them down; returns the path of the result.

    Raises:
        UserError: the run, a model or an extractor cannot be used as it is.
    """
    enable_compilation_cache()
    warn_about_cpu_fallback()
    run, config = open_run(arguments.run)
    mesh = run_mesh(config)
    models = [base_of(config), run_at(run.root, arguments.step, "run"), *map(other, arguments.compare)]
    evaluation = prepare(arguments, config, run.root, mesh)
    extractors = open_extractors(config, arguments.clip, arguments.dino, mesh, arguments.allow_pickle)
    measure = Measure(extractors, evaluation.entries, references(config))
    left_out = skipped(evaluation, extractors)
    for name, reason in left_out.items():
        say(f"{DEFINITIONS[name].title.format('').replace(' ( distance)', '')} is left out: {reason}")
    scored = [(model, measure(evaluation.pictures(model))) for model in models]
    found = facts(evaluation, extractors, scored) | {"skipped": left_out}
    path = evaluation.out / RESULT
    write_json(path, found)
    print_table(found)
    result(f"written: {path}")
    return path


def facts(evaluation: Evaluation, extractors: Extractors, scored: Sequence[tuple[Compared, Scores]]) -> dict[str, Any]:
    """Returns the content of `evaluation.json`."""
    arguments, settings = evaluation.arguments, evaluation.settings
    base = scored[0][1]
    models = []
    for model, scores in scored:
        folder = f"pictures/{model.name}"
        entry: dict[str, Any] = {"name": model.name, "label": model.label, "source": model.path, "step": model.step}
        entry |= {"pictures": folder, "metrics": overall(scores)}
        if scores is not base:
            entry["differences"] = differences(scores, base)
        models.append(entry | {"prompts": by_prompt(evaluation.entries, evaluation.wanted, scores, folder)})
    chosen = {key: getattr(arguments, key) for key in ("prompts", "num", "class_num", "seed")}
    return {
        "format": FORMAT,
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "settings": chosen | settings.metadata() | {"resolution": settings.resolution},
        "extractors": extractors.facts(),
        "definitions": {name: DEFINITIONS[name].facts(extractors.dino is not None) for name in base},
        "models": models,
    }
