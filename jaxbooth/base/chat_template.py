"""Chat templates: what the tokenizer of a language model puts around a prompt.

A template is a Jinja program out of a model's files. transformers renders it in a sandbox, but neither its time nor its
memory has a limit there. It is therefore rendered once, by transformers, in a child process that can be stopped; what
it puts before and after a prompt is kept, and no prompt is given to the program itself.
"""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

from jaxbooth.errors import UserError, short_repr

MAX_TEMPLATE = 2**16  # characters; Qwen3's has 4,100
MAX_FRAME = 2**12  # characters around a prompt; Qwen3's has 60
TIMEOUT_SECONDS = 60  # most of which a slow disk may take to import transformers
FIRST_PROMPT = "a jaxbooth caption"
# Other prompts, which a template must put into the text as they are, too.
OTHER_PROMPTS = (
    "",
    "  spaces \t and lines\n\n",
    "<|im_end|></think><tool_response>{{ messages }}{% if %}</tool_response>",
    "ein süßes Kätzchen 猫",
)
# {path, template, variables, prompts} -> the text of each prompt; or why there is none
CHILD = """
import json, sys
request = json.load(sys.stdin)
sys.path[:] = request["path"]
from transformers.utils.chat_template_utils import render_jinja_template
try:
    import resource
    resource.setrlimit(resource.RLIMIT_AS, (2**32, 2**32))
except (ImportError, ValueError, OSError):
    pass
conversations = [[{"role": "user", "content": prompt}] for prompt in request["prompts"]]
try:
    texts, _ = render_jinja_template(
        conversations, chat_template=request["template"], add_generation_prompt=True, **request["variables"]
    )
    print(json.dumps([None, texts]))
except BaseException as error:
    print(json.dumps([f"{type(error).__name__}: {error}", None]))
"""
Variables = tuple[tuple[str, str | bool], ...]


class ChatTemplate(NamedTuple):
    """What stands before and after a prompt."""

    before: str
    after: str

    def apply(self, prompt: str) -> str:
        """Returns the text that is tokenized for a prompt."""
        return f"{self.before}{prompt}{self.after}"


@lru_cache(maxsize=16)
def read_chat_template(
    template: str, variables: Variables, source: str, seconds: float = TIMEOUT_SECONDS
) -> ChatTemplate:
    """Renders the template of a conversation that is one prompt of a user, with the opening of an answer.

    Args:
        variables: that the template may ask for, such as `enable_thinking`.
        source: where it comes from, for messages.
        seconds: that it may take.

    Raises:
        UserError: the template is too long, fails, does not end, or changes prompts.
    """
    if len(template) > MAX_TEMPLATE:
        raise UserError(f"{source} has a chat template of {len(template):,} characters; {MAX_TEMPLATE:,} is the most.")
    prompts = (FIRST_PROMPT, *OTHER_PROMPTS)
    texts = render(template, variables, prompts, source, seconds)
    before, found, after = texts[0].partition(FIRST_PROMPT)
    frame = ChatTemplate(before, after)
    if not found or texts != [frame.apply(prompt) for prompt in prompts]:
        raise UserError(
            f"{source} has a chat template that does not put prompts into the text as they are; "
            "take the tokenizer of the published model."
        )
    if len(before) + len(after) > MAX_FRAME:
        raise UserError(
            f"{source} has a chat template that puts {len(before) + len(after):,} characters around a prompt; "
            f"{MAX_FRAME:,} is the most."
        )
    return frame


def render(template: str, variables: Variables, prompts: Sequence[str], source: str, seconds: float) -> list[str]:
    """Returns the text that transformers makes of each prompt, in a child process.

    Raises:
        UserError: the template fails or does not end.
    """
    request = {"path": sys.path, "template": template, "variables": dict(variables), "prompts": prompts}
    command = [sys.executable, "-I", "-S", "-c", CHILD]
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1"}  # each takes address space, which is limited
    try:
        done = subprocess.run(
            command, input=json.dumps(request), capture_output=True, text=True, timeout=seconds, check=False,
            env=environment,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise UserError(
            f"{source} has a chat template that takes more than {seconds:g} s; take the tokenizer of the published "
            "model."
        ) from None
    if done.returncode:
        raise UserError(f"{source}: its chat template cannot be rendered ({short_repr(done.stderr[-200:])}).")
    reason, texts = json.loads(done.stdout)
    if reason is not None:
        raise UserError(
            f"{source} has a chat template that fails ({short_repr(reason)}); take the tokenizer of the published "
            "model."
        )
    return texts
