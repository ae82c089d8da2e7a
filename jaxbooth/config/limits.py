"""The range of every number and the length of every text that jaxbooth takes, as types. Flags, configuration files and
the library's functions share them.

An upper bound is far above what a run can use, and below what would fill the memory, take years, or overflow. Floats
are finite.
"""

from collections.abc import Callable
from functools import wraps
from typing import Annotated, ParamSpec, TypeVar

from annotated_types import Ge, Gt, Le, Len, Lt
from pydantic import AllowInfNan, ConfigDict, ValidationError, validate_call

from jaxbooth.errors import UserError, short_repr
from jaxbooth.prng import MAX_SEED

MAX_ROWS_TRAINED = 2**31 - 1  # steps x rows of a step: their positions are int32
MAX_ENLARGEMENT = 8  # of a side, over what the model was trained at; memory grows with its square
MAX_EVALUATED_IMAGES = 20_000  # of one model; they lie in memory together
MAX_SUBJECTS = 256  # each is a part of the train step
MAX_MANIFEST = 100_000  # subjects with runs of their own; each has a configuration in memory
MAX_PROMPTS = 1000  # of an evaluation
MAX_PROMPT = 10_000  # characters, of captions too; 64 chunks have 4800 tokens
MAX_CAPTIONS = 1000  # of one image; each is encoded and kept
MAX_SAMPLED_IMAGES = 1000  # of one validation or evaluation while training; they lie in memory together

Seed = Annotated[int, Ge(0), Le(MAX_SEED)]

# Length of a run
TrainSteps = Annotated[int, Gt(0), Le(10**8)]
WarmupSteps = Annotated[int, Ge(0), Le(10**8)]
Step = Annotated[int, Gt(0), Le(10**8)]  # of a checkpoint
Interval = Annotated[int, Gt(0), Le(10**9)]  # steps between two saves or samples; "never" is a usual wish
DispatchSteps = Annotated[int, Gt(0), Le(10_000)]  # their metrics are kept on the device
CheckpointCount = Annotated[int, Gt(0), Le(10**9)]  # "all" is a usual wish; disk space is checked
Patience = Annotated[int, Gt(0), Le(10**6)]

# Rows and images
BatchSize = Annotated[int, Gt(0), Le(65_536)]
PriorRows = Annotated[int, Ge(0), Le(65_536)]
DeviceBatchSize = Annotated[int, Gt(0), Le(1024)]
ClassImageCount = Annotated[int, Gt(0), Le(100_000)]
ImageCount = Annotated[int, Gt(0), Le(10_000)]  # of one prompt, all in memory
HeldOutCount = Annotated[int, Ge(0), Le(10_000)]  # of one subject
PairedImageCount = Annotated[int, Gt(0), Le(1000)]  # of one prompt, each compared with each
Pixels = Annotated[int, Gt(0), Le(8192)]  # a side
CropCount = Annotated[int, Gt(0), Le(256)]
SamplerSteps = Annotated[int, Gt(0), Le(1000)]  # a schedule has 1000 timesteps
Timestep = Annotated[int, Ge(0), Le(10**6)]
GuidanceScale = Annotated[float, Gt(0), Le(100), AllowInfNan(False)]  # beyond about 30, images are flat colours

# Text
Prompt = Annotated[str, Len(0, MAX_PROMPT)]
ClipSkip = Annotated[int, Ge(0), Le(100)]
ChunkCount = Annotated[int, Gt(0), Le(64)]
VectorCount = Annotated[int, Gt(0), Le(75)]  # a chunk has no more
Token = Annotated[str, Len(0, 200)]
PlaceholderTokens = Annotated[tuple[Token, ...], Len(0, 256)]
TagCount = Annotated[int, Ge(0), Le(1000)]
CaptionCount = Annotated[int, Gt(0), Le(MAX_CAPTIONS)]
Prompts = Annotated[tuple[Prompt, ...], Len(0, 100)]
PromptCount = Annotated[int, Gt(0), Le(MAX_PROMPTS)]
Regex = Annotated[str, Len(0, 1000)]

# Optimization
Rate = Annotated[float, Gt(0), Le(1000), AllowInfNan(False)]
Weight = Annotated[float, Ge(0), Le(10**6), AllowInfNan(False)]
PositiveWeight = Annotated[float, Ge(1e-6), Le(10**6), AllowInfNan(False)]
Decay = Annotated[float, Ge(0), Le(0.999999), AllowInfNan(False)]  # nearer to 1, it is 1 in float32
EmaDecay = Annotated[float, Gt(0), Le(0.999999), AllowInfNan(False)]
Share = Annotated[float, Gt(0), Lt(1), AllowInfNan(False)]
Dropout = Annotated[float, Ge(0), Le(0.999), AllowInfNan(False)]
Epsilon = Annotated[float, Ge(1e-30), Le(1), AllowInfNan(False)]  # smaller, it is 0 in float32, and 0 / 0 follows
GradNorm = Annotated[float, Ge(0), Le(10**9), AllowInfNan(False)]
LogitMean = Annotated[float, Ge(-100), Le(100), AllowInfNan(False)]
LogitStd = Annotated[float, Gt(0), Le(100), AllowInfNan(False)]
ModeScale = Annotated[float, Ge(-1), Le(1.75), AllowInfNan(False)]  # beyond 2 / (pi - 2), timesteps lie outside
TimestepShift = Annotated[float, Ge(1e-3), Le(1000), AllowInfNan(False)]
NoiseStrength = Annotated[float, Ge(0), Le(10), AllowInfNan(False)]
Alpha = Annotated[float, Ge(1e-6), Le(10**6), AllowInfNan(False)]
RateRatio = Annotated[float, Ge(1), Le(10_000), AllowInfNan(False)]
Rank = Annotated[int, Gt(0), Le(16_384)]  # the layers of the base model may allow less
Factor = Annotated[int, Ge(-1), Le(16_384)]  # of a layer's inputs and outputs

# Devices and processes
MeshAxis = Annotated[int, Gt(0), Le(2**20)]
MeshRest = Annotated[int, Ge(-1), Le(2**20)]
ProcessCount = Annotated[int, Gt(0), Le(2**20)]
Port = Annotated[int, Ge(0), Le(65_535)]  # 0 takes any
ProcessId = Annotated[int, Ge(0), Lt(2**20)]
Seconds = Annotated[float, Gt(0), Le(10**6), AllowInfNan(False)]

P = ParamSpec("P")
R = TypeVar("R")


def check_arguments(function: Callable[P, R]) -> Callable[P, R]:
    """Makes a function check its arguments against their annotations.

    Raises (when the function is called):
        UserError: an argument is missing, unknown, of another type or out of range.
    """
    validated = validate_call(config=ConfigDict(arbitrary_types_allowed=True, defer_build=True))(function)

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return validated(*args, **kwargs)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            name = ".".join(map(str, first["loc"]))
            given = "" if first["type"].startswith(("missing", "unexpected")) else f" = {short_repr(first['input'])}"
            called = getattr(function, "__qualname__", "call")
            raise UserError(f"{called}: {name}{given} is not valid: {first['msg'].lower()}.") from None

    return call


SlotCount = Annotated[int, Ge(1), Le(65_536)]
SubjectCount = Annotated[int, Ge(1), Le(100_000_000)]
