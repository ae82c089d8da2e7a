"""The sample grids of a run: a slider over its steps, and each prompt's images beside the base model's."""

import asyncio
from pathlib import Path
from typing import NamedTuple

from markupsafe import Markup
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from jaxbooth.report.sample_grids import SampleGrid, format_sampling
from jaxbooth.ui.numbers import number_in_path, read_number
from jaxbooth.ui.parts import render_part
from jaxbooth.ui.render import encodable, environment, segment
from jaxbooth.ui.roots import NotFound
from jaxbooth.ui.run_list import RunSummary
from jaxbooth.ui.sample_tiles import Tile, Tiles, grid_steps
from jaxbooth.ui.state import Server, server_of

# An image's address names its version, so that it never changes.
FOR_EVER = {"cache-control": "private, max-age=31536000, immutable"}
NO_TILES = Tiles(0, (), [], {})


class ImageView(NamedTuple):
    """An image of the page."""

    address: str
    tile: Tile


class PromptView(NamedTuple):
    """One prompt's images of the base model and of the step that is shown; a side may have none."""

    prompt: str
    before: list[ImageView]
    after: list[ImageView]


class SamplesView(NamedTuple):
    """What is shown of a run's samples.

    Attributes:
        steps: that can be chosen.
        at: index of the one that is shown.
        sampling: how the images were generated.
    """

    steps: list[int]
    at: int
    prompts: list[PromptView]
    sampling: str

    @property
    def step(self) -> int:
        """The step that is shown."""
        return self.steps[self.at]


def samples_part(server: Server, run: RunSummary, request: Request) -> Markup:
    """Returns slider and images; `at` is the slider's position, and `last` that of its end when it was drawn."""
    return render_part("watch_samples.html", run=run, samples=samples_view(server, run, request))


async def images(request: Request) -> Response:
    """Sends the images of a position of the slider alone."""
    server, name = server_of(request), request.path_params["name"]

    def render() -> str:
        run = server.run(name)
        view = samples_view(server, run, request)
        return encodable(environment().get_template("watch_images.html").render(run=run, samples=view))

    return HTMLResponse(await asyncio.to_thread(render))


def samples_view(server: Server, run: RunSummary, request: Request) -> SamplesView | None:
    """Returns what is shown; None where the run has no samples yet.

    A slider that stood at its end stays there when there is a new sample.
    """
    steps = grid_steps(samples_folder(run))
    if not steps:
        return None
    at = read_number(request.query_params.get("at", ""))
    if at is None or at >= len(steps) or at == read_number(request.query_params.get("last", "")):
        at = len(steps) - 1
    before, after = (tiles_of(server, run, step) for step in (steps[0], steps[at]))
    prompts = list(dict.fromkeys((*after.prompts, *before.prompts)))
    shown = [
        PromptView(
            prompt,
            image_views(run, steps[0], before, prompt) if at and steps[0] == 0 else [],
            image_views(run, steps[at], after, prompt),
        )
        for prompt in prompts
    ]
    settings = {key: value for key, value in after.settings.items() if key != "step"}
    return SamplesView(steps, at, shown, format_sampling(SampleGrid(0, Path(), (), settings)))


def image_views(run: RunSummary, step: int, tiles: Tiles, prompt: str) -> list[ImageView]:
    """Returns the images of a prompt at a step."""
    if prompt not in tiles.prompts:
        return []
    row = tiles.prompts.index(prompt)
    address = f"/runs/{segment(run.name)}/samples/{step}/{row}"
    return [ImageView(f"{address}/{column}?v={tiles.version}", tile) for column, tile in enumerate(tiles.rows[row])]


def samples_folder(run: RunSummary) -> Path:
    """Returns the folder of a run's sample grids."""
    return run.folder.samples(0).parent


def tiles_of(server: Server, run: RunSummary, step: int) -> Tiles:
    """Returns the images of a step's grid; `NO_TILES` where it cannot be read or leads elsewhere."""
    try:
        return grid_tiles(server, run, step)
    except NotFound:
        return NO_TILES


def grid_tiles(server: Server, run: RunSummary, step: int) -> Tiles:
    """Returns the images of a step's grid.

    Raises:
        NotFound: there is none, it cannot be read, or leads elsewhere.
    """
    return server.tiles.get(grid_path(server, run, step), image_side(run))


def grid_path(server: Server, run: RunSummary, step: int) -> Path:
    """Returns the file of a step's grid.

    Raises:
        NotFound: there is none, or it leads out of the run's folder.
    """
    return server.roots.below(samples_folder(run), run.folder.samples(step).name)


def image_side(run: RunSummary) -> int | None:
    """Returns the side of a run's sample images in pixels, if it is known."""
    return run.progress.config.data.resolution if run.progress.config else None


async def image(request: Request) -> Response:
    """Sends one image of a grid."""
    step, row, column = (number_in_path(request.path_params[key]) for key in ("step", "row", "column"))
    server = server_of(request)
    name = request.path_params["name"]
    tiles = await asyncio.to_thread(lambda: grid_tiles(server, server.run(name), step))
    return send_tile(tiles, row, column)


def send_tile(tiles: Tiles, row: int, column: int) -> Response:
    """Sends an image.

    Raises:
        NotFound: the grid has no such row or column.
    """
    if row >= len(tiles.rows) or column >= len(tiles.rows[row]):
        raise NotFound(f"{row}/{column}")
    tile = tiles.rows[row][column]
    return Response(tile.content, media_type=tile.media_type, headers=FOR_EVER)


async def thumbnail(request: Request) -> Response:
    """Sends a small JPEG of a grid's first image."""
    step, name = number_in_path(request.path_params["step"]), request.path_params["name"]
    server = server_of(request)

    def make() -> bytes:
        run = server.run(name)
        return server.tiles.thumbnail(grid_path(server, run, step), image_side(run))

    return Response(await asyncio.to_thread(make), media_type="image/jpeg", headers=FOR_EVER)


ROUTES = [
    Route("/runs/{name}/samples/images", images),
    Route("/runs/{name}/samples/{step}/{row}/{column}", image),
    Route("/runs/{name}/thumbnails/{step}", thumbnail),
]
