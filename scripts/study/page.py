"""The pages of the docs that the study makes: tables, a figure and images."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from PIL import Image, ImageDraw, ImageFont
from study.measure import CLASS_IMAGES, PROMPTS, SAMPLER_STEPS
from study.plan import ANCHORS, BASE, BASELINE, BATCH_SIZE, PHOTOS, RANK, RATES, SETTINGS, STEPS, SUBJECTS
from study.results import METRICS, Group, change, difference, together

from jaxbooth.metrics.bootstrap import Estimate

TITLES = {
    ("demo", "full"): "UNet (demo), full fine-tuning",
    ("demo", "lora"): "UNet (demo), LoRA",
    ("demo-flow", "full"): "flow transformer (demo-flow), full fine-tuning",
    ("demo-flow", "lora"): "flow transformer (demo-flow), LoRA",
}
HEADS = ("CLIP-I (higher)", "CLIP-T (higher)", "PRES (lower)", "DIV (higher)", "drift (lower)")
BLUES, PURPLES = ("#9ecae1", "#3182bd", "#08306b"), ("#d4b9da", "#a352a8", "#4a0d5e")
LABEL_WIDTH, HEADING_HEIGHT, FONT_SIZE = 230, 26, 15  # pixels
ONE_SEED = """ With one seed and three subjects, an interval is the range over the subjects: one without zero
says that all three agree in the sign, and no more."""
Groups = Mapping[tuple[str, str], Group]


def styles() -> dict[str, tuple[str, str]]:
    """Returns the colour and the marker of each setting; methods of one kind look alike."""
    named = {
        "none": ("#555555", "X"),
        "frozen target": ("#17a2a2", "o"),
        "output-preservation": ("#e6850e", "s"),
        "blank-prompt": ("#d62728", "D"),
        "class-images + weight-anchor": ("#2ca02c", "P"),
    }
    images = [name for name in SETTINGS if name.startswith("class-images ") and name not in named]
    anchors = [name for name in SETTINGS if name.startswith("weight-anchor ")]
    named |= {name: (colour, "o") for name, colour in zip(images, BLUES, strict=True)}
    return named | {name: (colour, "^") for name, colour in zip(anchors, PURPLES, strict=True)}


def interval(estimate: Estimate) -> str:
    """Returns a difference with its interval."""
    return f"{estimate.mean:+.3f} [{estimate.low:+.3f}, {estimate.high:+.3f}]"


def excludes_zero(estimate: Estimate) -> bool:
    """Whether the interval lies on one side of zero."""
    return estimate.low is not None and estimate.high is not None and estimate.low * estimate.high > 0


def table_row(cells: Sequence[str]) -> str:
    """Returns a row of a Markdown table."""
    return f"| {' | '.join(cells)} |"


def main_table(group: Group) -> str:
    """Returns means with their changes against the base model, and what a run costs."""
    lines = [table_row(["", *HEADS, "CPU s", "class images"]), "|---" * (len(HEADS) + 3) + "|"]
    lines.append(table_row([BASE, *(f"{group.base[name].mean():.3f}" for name in METRICS), "", ""]))
    for setting, values in group.runs.items():
        cells = [f"{values[name].mean():.3f} ({interval(change(group, setting, name))})" for name in METRICS]
        costs = [f"{values['cpu_seconds'].min():.0f}", f"{values['class_images'].max():.0f}"]
        lines.append(table_row([setting, *cells, *costs]))
    return "\n".join(lines)


def paired_table(group: Group) -> str:
    """Returns the differences to the paper's prior; those that an interval tells from zero are bold."""
    lines = [table_row([f"less {BASELINE}", *HEADS]), "|---" * (len(HEADS) + 1) + "|"]
    for setting in (name for name in group.runs if name != BASELINE):
        estimates = [difference(group, setting, name) for name in METRICS]
        texts = [f"**{interval(one)}**" if excludes_zero(one) else interval(one) for one in estimates]
        lines.append(table_row([setting, *texts]))
    return "\n".join(lines)


def page(groups: Groups, class_image_seconds: float) -> str:
    """Returns the page in Markdown.

    Args:
        class_image_seconds: CPU time that the class images of one subject took.
    """
    parts = [head(groups, class_image_seconds)]
    for key, group in groups.items():
        parts.append(f"## {TITLES[key][0].upper()}{TITLES[key][1:]}")
        parts += [main_table(group), f"Less `{BASELINE}` of the same subject and seed:", paired_table(group)]
    parts += ["## All four together", f"Less `{BASELINE}` of the same model, way of training, subject and seed:"]
    parts.append(paired_table(together(list(groups.values()))))
    return "\n\n".join(parts) + "\n"


def draw_pareto(groups: Groups, path: Path) -> None:
    """Draws subject fidelity over leakage, a panel for each group."""
    figure, axes = plt.subplots(2, 2, figsize=(12, 9.5), layout="constrained")
    for axis, (key, group) in zip(axes.flat, groups.items(), strict=True):
        draw_panel(axis, group)
        axis.set_title(TITLES[key], fontsize=11)
    handles = {
        label: handle for axis in axes.flat for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    order = [name for name in (BASE, *SETTINGS) if name in handles]
    figure.legend(
        [handles[name] for name in order], order, loc="outside lower center", ncols=4, fontsize=10, frameon=False
    )
    figure.savefig(path, dpi=110)
    plt.close(figure)


def draw_panel(axis: Axes, group: Group) -> None:
    """Draws the settings of one group: means, with the intervals of their changes as crosses."""
    center = {name: float(group.base[name].mean()) for name in ("pres", "clip_i")}
    axis.plot(center["pres"], center["clip_i"], "*", color="black", markersize=14, label=BASE, linestyle="none")
    for setting in group.runs:
        colour, marker = styles()[setting]
        pres, clip_i = change(group, setting, "pres"), change(group, setting, "clip_i")
        axis.errorbar(
            center["pres"] + pres.mean,
            center["clip_i"] + clip_i.mean,
            xerr=arms(pres),
            yerr=arms(clip_i),
            fmt=marker,
            color=colour,
            markersize=8,
            elinewidth=1,
            alpha=0.9,
            label=setting,
        )
    axis.set_xlabel("PRES: the class looks like the subject (lower is better)")
    axis.set_ylabel("CLIP-I: the subject is learned (higher is better)")
    axis.spines[["top", "right"]].set_visible(False)


def arms(estimate: Estimate) -> np.ndarray:
    """Returns how far an interval reaches below and above its mean, (2, 1)."""
    return np.abs(np.array([[estimate.low], [estimate.high]], float) - estimate.mean)


def image_page(columns: Sequence[str], pictures: Mapping[str, Sequence[Path]], path: Path) -> None:
    """Writes the images of several models below each other, each row with its label at the left.

    Args:
        columns: heading of each column.
        pictures: label -> a file for each column, all of one size; they are shown at half of it.
    """
    rows = {label: [Image.open(file).convert("RGB").reduce(2) for file in files] for label, files in pictures.items()}
    width, height = next(iter(rows.values()))[0].size
    size = (LABEL_WIDTH + len(columns) * width, HEADING_HEIGHT + len(rows) * height)
    canvas = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(canvas)
    for column, heading in enumerate(columns):
        pen.text((LABEL_WIDTH + column * width + 4, 4), heading, "black", ImageFont.load_default(FONT_SIZE))
    for index, (label, row) in enumerate(rows.items()):
        top = HEADING_HEIGHT + index * height
        pen.text((8, top + height // 2 - 8), label, "black", ImageFont.load_default(FONT_SIZE))
        for column, image in enumerate(row):
            canvas.paste(image, (LABEL_WIDTH + column * width, top))
    canvas.quantize(256).save(path, optimize=True)


def head(groups: Groups, class_image_seconds: float) -> str:
    """Returns what the page says first."""
    counts = sorted({group.num_seeds for group in groups.values()})
    seeds = "1 seed" if counts == [1] else f"{' or '.join(map(str, counts))} seeds"
    agreement = ONE_SEED if counts == [1] else ""
    is_whole = all(len(group.runs) == len(SETTINGS) for group in groups.values())
    gaps = "" if is_whole else " Settings that a table lacks were not measured with all subjects."
    return f"""# Ways to keep the prior, side by side

The figures behind [Keeping the prior](prior.md), made by `python scripts/prior_study.py`. The embedded UNet (demo)
learns for {STEPS["demo"]} steps and the embedded flow transformer (demo-flow) for {STEPS["demo-flow"]}, with
{BATCH_SIZE} instance rows and {BATCH_SIZE} rows of each method that has rows; the rate is {RATES["full"]:g}, and
{RATES["lora"]:g} for a LoRA of rank {RANK}. Subjects: {", ".join(SUBJECTS)}, {PHOTOS} images of each; {seeds}.
`class-images + weight-anchor` has the weights 1 and {ANCHORS[1]:g}.{gaps}

Of every run, {PROMPTS} of the paper's prompts with one image each and {CLASS_IMAGES} images of the class are sampled in
{SAMPLER_STEPS} steps, always from the same noise, and the demo's CLIP measures them. *PRES* is how much images of the
class look like the subject, *DIV* how much they differ from each other, *drift* the mean squared distance of their
latents to those of the base model's images from the same noise. Brackets are 95 % bootstrap intervals that resample
subjects and, within them, seeds.{agreement}

A cell is the mean over all runs, with its change against the base model. *CPU s* is the least CPU time of a run on one
core, so that compiling and what else the machine does hardly count. The class images of one subject took
{class_image_seconds:.0f} s more, once. Bold differences have an interval without zero.

![Subject fidelity over leakage](prior-pareto.png)

![Images of each method](prior-study-images.png)

The first four images of a block are of prompts about the subject, the others of the class prompt: the fluent cat, full
fine-tuning, first seed."""
