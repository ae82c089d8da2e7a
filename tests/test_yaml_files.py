"""Configuration files that would be costly, ambiguous or odd to read end in one short sentence that names the file."""

import re
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxbooth.config.load import dump_config, load_config
from jaxbooth.config.run_config import Config
from jaxbooth.config.section import flatten
from jaxbooth.errors import UserError

TENFOLD = "[" + ", ".join(["{0}"] * 10) + "]"
NAMES = "abcdefghij"
BOMB = "a: &a [x]\n" + "".join(
    f"{name}: &{name} {TENFOLD.format('*' + before)}\n" for before, name in zip(NAMES, NAMES[1:], strict=False)
)
MERGES = "a: &a {x: 1}\n" + "".join(
    f"{name}: &{name} {{<<: {TENFOLD.format('*' + before)}}}\n" for before, name in zip(NAMES, NAMES[1:], strict=False)
)


@pytest.fixture
def reason(tmp_path):
    """Returns why a file's content is refused."""

    def read(content: str | bytes) -> str:
        path = tmp_path / "run.yaml"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        with pytest.raises(UserError) as refusal:
            load_config(path)
        message = str(refusal.value)
        assert len(message) < 500
        assert message.startswith(str(path))
        return message.removeprefix(str(path))

    return read


@pytest.mark.parametrize("content", [BOMB, MERGES, BOMB + "validation: {prompts: *j}", "x: [" + "a, " * 20_000 + "a]"])
def test_aliases_that_multiply_are_refused_before_they_do(reason, content):
    assert "holds more than 10,000 values (aliases written out)" in reason(content)


@pytest.mark.parametrize(
    "content", ["a: &a [*a]", "train: &t {steps: *t}", "[" * 5000, "a: " * 3 + "{a: " * 400, "train: " + "[" * 30]
)
def test_what_holds_itself_or_is_nested_deeply_is_refused(reason, content):
    assert "nested too deeply" in reason(content) or "not valid YAML" in reason(content)


@pytest.mark.parametrize(
    "content",
    ["seed: " + "9" * 5000, "train: {learning_rate: " + "1" * 9999 + "}", "seed: !!int ''", "seed: !!bool maybe",
     "seed: 1" + ":1" * 300 + ".5", 'model: "\\UFFFFFFFF"'],
)  # fmt: skip
def test_a_number_of_thousands_of_digits_and_a_false_tag_are_refused(reason, content):
    assert "holds a number of thousands of digits, or a value that does not fit its tag." in reason(content)


def test_a_hexadecimal_number_of_thousands_of_digits_is_refused_without_writing_it(reason):
    assert ": seed = a number of 40000 bits is not valid" in reason("seed: 0x" + "f" * 10_000)


@pytest.mark.parametrize(
    ("content", "lines"),
    [("seed: 1\nmodel: demo\nseed: 2\n", "line 1 and again in line 3"), ("train: {steps: 1, steps: 2}", "line 1")],
)
def test_a_key_that_stands_twice_is_named_with_its_lines(reason, content, lines):
    assert f"stands in {lines}" in reason(content)


@pytest.mark.parametrize(
    "content", ["seed: !!python/object/apply:os.system ['true']", "model: !!python/name:os.system"]
)
def test_a_tag_that_would_run_code_is_not_valid(reason, content):
    assert "is not valid YAML: could not determine a constructor" in reason(content)


@pytest.mark.parametrize(
    ("content", "key"),
    [
        ("train: {steps: true}", "train.steps = True"),
        ("seed: false", "seed = False"),
        ("train: {learning_rate: .inf}", "train.learning_rate = inf"),
        ("train: {learning_rate: 1.0e+400}", "train.learning_rate = inf"),
        ("lora: {rank: [4]}", "lora.rank = [4]"),
        ("model: {a: 1}", "model = {'a': 1}"),
        ("train: null", "train = None"),
        ("text: {placeholder_tokens: sks}", "text.placeholder_tokens = 'sks'"),
        ('data: {instance_prompt: "a \\uDCFF"}', "data.instance_prompt = 'a \\udcff'"),
        ("5: 1", "5 = 5"),
    ],
)
def test_a_value_of_another_type_is_named_with_its_key(reason, content, key):
    assert f": {key} is not valid" in reason(content)


def test_a_value_of_a_megabyte_is_shortened_in_the_message(reason):
    assert "lora.targets = 'xxxxxxxx" in reason("lora: {targets: " + "x" * 200_000 + "}")
    assert "larger than 262,144 bytes" in reason("# " + "x" * 2**20)


@pytest.mark.parametrize("content", [b"seed: \xff", "seed: 1".encode("utf-16"), b"\x80"])
def test_a_file_that_is_not_utf_8_is_refused(reason, content):
    assert "is not UTF-8 text" in reason(content)


def test_a_byte_order_mark_is_read_over(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_bytes(b"\xef\xbb\xbfseed: 3\r\n")
    assert load_config(path).seed == 3


def test_a_folder_in_the_place_of_a_file_is_refused(tmp_path):
    (tmp_path / "config.yaml").mkdir()
    with pytest.raises(UserError, match=r"config\.yaml is not a file"):
        load_config(tmp_path / "config.yaml")


def test_a_folder_named_like_a_shipped_configuration_does_not_hide_it(tmp_path, monkeypatch):
    (tmp_path / "sd15").mkdir()
    monkeypatch.chdir(tmp_path)
    assert load_config("sd15").model == "stable-diffusion-v1-5/stable-diffusion-v1-5"


def test_a_few_anchors_and_a_date_as_a_prompt_are_read(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(
        "data: {instance_prompt: 2024-01-01, class_prompt: &cat a cat}\nvalidation: {prompts: [*cat, a dog]}\n"
    )
    config = load_config(path)
    assert config.data.instance_prompt == "2024-01-01"
    assert config.validation.prompts == ("a cat", "a dog")
    assert config.train == Config().train


ODD = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**40), 10**40) | st.floats() | st.text(max_size=30) | st.dates(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
ANY_KEY = st.sampled_from(sorted(flatten(Config())))


def load_or_refuse(path: Path) -> Config | str:
    """Returns the configuration in a file, or why it is refused."""
    try:
        return load_config(path)
    except UserError as error:
        return str(error)


@given(changes=st.dictionaries(ANY_KEY, ODD, min_size=1, max_size=3))
@settings(max_examples=150, deadline=None, derandomize=True)
def test_any_values_of_any_keys_are_a_configuration_or_one_short_sentence(tmp_path_factory, changes):
    content: dict = {}
    for key, value in changes.items():
        *sections, leaf = key.split(".")
        target = content
        for section in sections:
            target = target.setdefault(section, {})
        target[leaf] = value
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_text(yaml.safe_dump(content))
    outcome = load_or_refuse(path)
    if isinstance(outcome, Config):
        path.write_text(dump_config(outcome))
        assert load_config(path) == outcome
    else:
        assert re.fullmatch(rf"{re.escape(str(path))}.{{1,450}}\.", outcome, re.DOTALL)


@given(content=st.text("a:[]{}&*!- \n\t\"'|>?1.<", max_size=40) | st.binary(max_size=40))
@settings(max_examples=200, deadline=None, derandomize=True)
def test_any_text_is_a_configuration_or_one_short_sentence(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    outcome = load_or_refuse(path)
    assert isinstance(outcome, Config) or re.fullmatch(rf"{re.escape(str(path))}.{{1,450}}\.", outcome, re.DOTALL)
