"""Evaluates a run: generates images, measures them beside the base model's, and writes the result."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh

from jaxbooth.backend import enable_compilation_cache, warn_about_cpu_fallback
from jaxbooth.base.sampling import SamplingConfig, configured_sampling
from jaxbooth.config.limits import MAX_EVALUATED_IMAGES
from jaxbooth.config.run_config import Config
from jaxbooth.config.schema import Subject
from jaxbooth.config.subjects import name_subject
from jaxbooth.console.messages import info, pluralize, print_result, warn
from jaxbooth.console.progress import heartbeat
from jaxbooth.diffusion.samplers import SamplerName
from jaxbooth.errors import UserError
from jaxbooth.evaluation.images import generate_missing, open_image_folder, read_images
from jaxbooth.evaluation.models import ComparedModel, base_model, parse_model, run_model
from jaxbooth.evaluation.results import differences, metric_means, print_table, prompt_results
from jaxbooth.metrics.definitions import DEFINITIONS, RESULT_FORMAT, Scores
from jaxbooth.metrics.prompts import (
    TEMPLATES,
    Cell,
    EvalPrompt,
    cells,
    class_prompts,
    prompts_without_subject,
    read_templates,
    subject_prompts,
    template_set,
)
from jaxbooth.metrics.scorer import FeatureModels, Scorer, load_feature_models, reference_images
from jaxbooth.runs.folder import RunFolder, open_run
from jaxbooth.runs.overlap import check_output
from jaxbooth.runs.restore import run_mesh
from jaxbooth.storage.disk import check_writable
from jaxbooth.storage.files import write_json
from jaxbooth.storage.remote import as_path, is_local

RESULT = "evaluation.json"


@dataclass(frozen=True)
class Evaluation:
    """What is generated and measured, the same for every model.

    Attributes:
        config: of the evaluated run.
        out: folder of the result.
    """

    config: Config
    mesh: Mesh
    prompts: list[EvalPrompt]
    images_per_prompt: int
    num_class_images: int
    sampling: SamplingConfig
    seed: int
    out: Path

    @property
    def cells(self) -> list[Cell]:
        """All images of one model."""
        return cells(self.prompts, self.images_per_prompt, self.num_class_images)

    def images(self, model: ComparedModel) -> list[list[np.ndarray]]:
        """Generates those images of a model that are missing, and returns all of them by prompt."""
        pipeline = model.load(self.mesh, self.config)
        folder = self.out / "images" / model.name
        manifest = {
            "weights": model.weights_identity(pipeline),
            "prompts": [prompt.text for prompt in self.prompts],
            "seed": self.seed,
            "resolution": self.sampling.resolution,
        }
        open_image_folder(folder, manifest | self.sampling.metadata())
        generated = generate_missing(pipeline, self.prompts, self.cells, self.sampling, self.seed, folder)
        info(
            f"{model.label}: {pluralize(generated, 'image')} generated, {len(self.cells) - generated} found in {folder}"
        )
        return read_images(folder, self.cells, len(self.prompts))


@heartbeat()
def evaluate(
    run: str | Path,
    step: int | None = None,
    compare: Sequence[str] = (),
    prompts: str = "auto",
    images_per_prompt: int = 4,
    num_class_images: int = 32,
    subject: str | None = None,
    noun: str | None = None,
    clip: str | None = None,
    dino: str | None = None,
    allow_pickle: bool = False,
    seed: int = 0,
    sampler: SamplerName | None = None,
    steps: int | None = None,
    guidance_scale: float | None = None,
    out: Path | None = None,
) -> Path:
    """Generates images, computes the metrics, prints them and writes them down; returns the path of the result.

    Args:
        run: folder.
        step: of the checkpoint; default: the newest.
        compare: other runs, RUN@STEP, or models to measure as well.
        prompts: "live", "object", "auto" (which of both suits the class), or a text file.
        subject, noun: what the subject and its class are called; default: read off the run's prompts.
        clip, dino, allow_pickle: see `load_feature_models`.
        sampler, steps, guidance_scale: default: those of the run's validation.
        out: folder; default: `evaluation` in the run folder.

    Raises:
        UserError: the run, a model or a feature model cannot be used as it is.
    """
    enable_compilation_cache()
    warn_about_cpu_fallback()
    folder, config = open_run(run)
    mesh = run_mesh(config)
    models = [base_model(config.source), run_model(folder.root, step, "run"), *map(parse_model, compare)]
    evaluation = Evaluation(
        config=config,
        mesh=mesh,
        prompts=evaluation_prompts(config.subjects, prompts, subject, noun),
        images_per_prompt=images_per_prompt,
        num_class_images=num_class_images,
        sampling=evaluation_sampling(config, sampler, steps, guidance_scale),
        seed=seed,
        out=evaluation_folder(out, folder.root, config),
    )
    check_image_count(len(evaluation.cells))
    source = replace(config.source, allow_pickle=config.allow_pickle or allow_pickle)
    feature_models = load_feature_models(clip, dino, source, mesh)
    results = measure(evaluation, feature_models, models, prompts)
    path = evaluation.out / RESULT
    write_json(path, results)
    print_table(results)
    print_result(f"written: {path}")
    return path


def evaluation_sampling(
    config: Config, sampler: SamplerName | None, steps: int | None, guidance_scale: float | None
) -> SamplingConfig:
    """Returns how images are generated; default: as those of the run's validation."""
    run_sampling = configured_sampling(config.validation, config.resolution)
    return replace(
        run_sampling,
        sampler=sampler or run_sampling.sampler,
        steps=steps or run_sampling.steps,
        guidance_scale=guidance_scale or run_sampling.guidance_scale,
    )


def measure(
    evaluation: Evaluation, feature_models: FeatureModels, models: Sequence[ComparedModel], prompts: str
) -> dict[str, Any]:
    """Generates and scores the images of every model; returns the content of the result's file."""
    config = evaluation.config
    skipped = skipped_metrics(evaluation, feature_models)
    for name, reason in skipped.items():
        info(f"{DEFINITIONS[name].short_title} is left out: {reason}")
    references = reference_images(config.subjects, config.resolution, config.data.hold_out, config.seed)
    scorer = Scorer(feature_models, evaluation.prompts, references)
    scored = [(model, scorer.score(evaluation.images(model))) for model in models]
    return evaluation_json(evaluation, feature_models, scored, prompts) | {"skipped": skipped}


def evaluation_prompts(
    subjects: Sequence[Subject], prompts: str, phrase: str | None = None, noun: str | None = None
) -> list[EvalPrompt]:
    """Returns the prompts of every subject, and the class prompts.

    Args:
        prompts: as in `evaluate`.
        phrase, noun: what a single subject and its class are called.

    Raises:
        UserError: a subject is named for a run that has several, or the prompts cannot be read.
    """
    if len(subjects) > 1 and (phrase or noun):
        raise UserError("--subject and --noun name one subject, and this run has several; leave them out.")
    names = [name_subject(subject, phrase, noun) for subject in subjects]
    filled = []
    for index, name in enumerate(names):
        source = template_set(name.noun) if prompts == "auto" else prompts
        templates = TEMPLATES[source] if source in TEMPLATES else read_templates(Path(source))
        filled += subject_prompts(templates, name, index)
        info(f"subject '{name.phrase}', class '{name.noun}': {len(templates)} prompts ({source})")
    unnamed = prompts_without_subject(filled, names)
    if unnamed:
        warn(
            f"the subject is not named in {pluralize(len(unnamed), 'prompt')}, such as '{unnamed[0]}'; "
            "write {} where it goes."
        )
    return filled + class_prompts(subjects)


def evaluation_folder(out: Path | None, run: Path, config: Config) -> Path:
    """Returns the folder of an evaluation; default: `evaluation` in the run folder.

    Raises:
        UserError: it cannot be written, or lies among what the run reads and writes.
    """
    folder = as_path(out) if out else RunFolder(run).evaluation
    if is_local(folder):
        check_writable(folder, "--out")
        check_output(folder, run, config, allowed="evaluation")
    return folder


def check_image_count(count: int) -> None:
    """Raises UserError if a model is to generate more images than an evaluation can hold."""
    if count > MAX_EVALUATED_IMAGES:
        raise UserError(
            f"{count:,} images of each model are too many, and {MAX_EVALUATED_IMAGES:,} is the most; lower "
            "--images-per-prompt or --num-class-images, or shorten --prompts."
        )


def skipped_metrics(evaluation: Evaluation, feature_models: FeatureModels) -> dict[str, str]:
    """Returns why some metrics are missing, by metric."""
    reasons = {}
    if not feature_models.dino:
        reasons["dino"] = "no DINO model; name one with --dino FOLDER or a Hub id."
    if not feature_models.clip:
        reasons |= dict.fromkeys(("clip_i", "clip_t"), "no CLIP model; name one with --clip FOLDER or a Hub id.")
    if not any(prompt.group == "class" for prompt in evaluation.prompts):
        reasons |= dict.fromkeys(("pres", "div"), "the run has no class prompt.")
    elif evaluation.num_class_images == 1:
        reasons["div"] = "one image of the class has nothing to differ from; raise --num-class-images."
    if evaluation.images_per_prompt == 1:
        reasons["div_subject"] = "one image a prompt has nothing to differ from; raise --images-per-prompt."
    return reasons


def evaluation_json(
    evaluation: Evaluation,
    feature_models: FeatureModels,
    scored: Sequence[tuple[ComparedModel, Scores]],
    prompts: str,
) -> dict[str, Any]:
    """Returns the content of `evaluation.json`.

    Args:
        scored: the base model first.
        prompts: as in `evaluate`.
    """
    sampling, base_scores = evaluation.sampling, scored[0][1]
    models = []
    for model, scores in scored:
        folder = f"images/{model.name}"
        entry: dict[str, Any] = {"name": model.name, "label": model.label, "source": model.path, "step": model.step}
        entry |= {"images": folder, "metrics": metric_means(scores)}
        if scores is not base_scores:
            entry["differences"] = differences(scores, base_scores)
        entry["prompts"] = prompt_results(evaluation.prompts, evaluation.cells, scores, folder)
        models.append(entry)
    settings = {
        "prompts": prompts,
        "images_per_prompt": evaluation.images_per_prompt,
        "num_class_images": evaluation.num_class_images,
        "seed": evaluation.seed,
    }
    return {
        "format": RESULT_FORMAT,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "settings": settings | sampling.metadata() | {"resolution": sampling.resolution},
        "feature_models": feature_models.metadata(),
        "definitions": {name: DEFINITIONS[name].describe(feature_models.dino is not None) for name in base_scores},
        "models": models,
    }
