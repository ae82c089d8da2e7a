"""Every way of keeping the prior, side by side: trains and measures them all, and writes the tables of the docs.

    python scripts/prior_study.py --photos ../shared/dreambooth --out runs/prior-study --workers 3
    python scripts/prior_study.py --out runs/prior-study --tables

Trains every setting on every subject, base model and seed, fully and with a LoRA, measures each run, and writes
docs/prior-study.md, docs/prior-study.json, docs/prior-pareto.png and docs/prior-study-images.png. Runs of which the
figures are in --out or in docs/prior-study.json are not trained again: an interrupted study goes on, and more --seeds
add to one that is done.
"""

import argparse
import os
import statistics
import subprocess
import sys
from pathlib import Path

from study.executables import keep_executables
from study.page import TITLES, draw_pareto, image_page, page
from study.plan import (
    BASE,
    BASELINE,
    CLASS_IMAGES,
    EMBEDDED,
    SEEDS,
    SETTINGS,
    Run,
    Task,
    base_name,
    copy_photos,
    plan,
    runs_of,
)
from study.results import group_of, read_records
from study.work import make_missing_class_images, picture_file, work

from jaxbooth.storage.files import write_json, write_text

DOCS = Path(__file__).parents[1] / "docs"
PUBLISHED = DOCS / "prior-study.json"
SHOWN = {  # heading -> whose images are shown, fully fine-tuned
    "UNet: the subject, then the class": Task("demo", EMBEDDED),
    "flow transformer: the subject, then the class": Task("demo-flow", EMBEDDED),
}
# Several processes of one thread each do more on a few cores than one process of many threads.
ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
}


def parse() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/prior-study"))
    parser.add_argument("--photos", type=Path, default=Path("../shared/dreambooth"), help="the DreamBooth dataset")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--shard", help="I/N: do this share of the runs in this process, and write no pages")
    parser.add_argument("--tables", action="store_true", help="write the pages of what is there")
    return parser.parse_args()


def run_shard(out: Path, shard: str, seeds: int) -> None:
    """Does one worker's share."""
    keep_executables()
    worker, workers = map(int, shard.split("/"))
    done = set(read_records(PUBLISHED, out / "results"))
    work(out, runs_of(worker, workers, seeds), done)


def run_workers(workers: int) -> None:
    """Starts the workers and waits for them."""
    environment = os.environ | ONE_THREAD
    commands = [[sys.executable, *sys.argv, "--shard", f"{index}/{workers}"] for index in range(workers)]
    running = [subprocess.Popen(command, env=environment) for command in commands]
    codes = [worker.wait() for worker in running]
    if any(codes):
        sys.exit("a worker failed; run the same command again to go on")


def write_pages(out: Path) -> None:
    """Writes the four files of the docs from the records that are there."""
    records = read_records(PUBLISHED, out / "results")
    groups = {key: group_of(records, *key) for key in TITLES}
    missing = [TITLES[key] for key, group in groups.items() if BASELINE not in group.runs]
    if missing:
        sys.exit(f"{BASELINE} is not complete: {', '.join(missing)}")
    class_image_seconds = [one["cpu_seconds"] for one in records.values() if one["setting"] == CLASS_IMAGES]
    published = [{key: value for key, value in one.items() if key != "config"} for one in records.values()]
    write_json(PUBLISHED, {"plan": plan(), "records": published})
    notes = DOCS / "prior-study-notes.md"
    text = page(groups, statistics.median(class_image_seconds))
    write_text(DOCS / "prior-study.md", text + (f"\n{notes.read_text()}" if notes.exists() else ""))
    draw_pareto(groups, DOCS / "prior-pareto.png")
    pictures = {BASE: [picture_file(out, base_name(task)) for task in SHOWN.values()]}
    for setting in SETTINGS:
        pictures[setting] = [picture_file(out, Run(task, "full", setting, 0).name) for task in SHOWN.values()]
    there = {label: files for label, files in pictures.items() if all(path.exists() for path in files)}
    if there:  # they do not travel with the figures
        image_page(list(SHOWN), there, DOCS / "prior-study-images.png")


def main() -> None:
    """Does the work of a worker, or of all of them, and writes the pages."""
    arguments = parse()
    if arguments.shard:
        return run_shard(arguments.out, arguments.shard, arguments.seeds)
    if not arguments.tables:
        copy_photos(arguments.photos, arguments.out)
        make_missing_class_images(arguments.out)
        run_workers(arguments.workers)
    return write_pages(arguments.out)


if __name__ == "__main__":
    main()
