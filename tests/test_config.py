"""The schema, its YAML files, and which settings a continued run may change."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from jaxbooth.assets import shipped_configs
from jaxbooth.config.load import dump_config, load_config
from jaxbooth.config.loss import LossConfig
from jaxbooth.config.prior import PriorConfig
from jaxbooth.config.run_config import Config, first_conflict
from jaxbooth.config.schema import (
    DataConfig,
    LoraConfig,
    MeshConfig,
    Subject,
    TextConfig,
    TrainConfig,
    ValidationConfig,
)
from jaxbooth.config.section import flag, flatten
from jaxbooth.errors import UserError

SHIPPED = ["demo", "demo-flow", "klein-lora", "sd15", "sd15-lora", "sd21", "sdxl-lora", "zimage-lora"]


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    return path


def changed(config: Config) -> dict:
    defaults = flatten(Config())
    return {key: value for key, value in flatten(config).items() if value != defaults[key]}


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_configuration_loads_by_name_and_is_short(name):
    config = load_config(name)
    assert changed(config)
    assert len((shipped_configs() / f"{name}.yaml").read_text().splitlines()) <= 30


def test_every_shipped_configuration_loads():
    assert sorted(path.stem for path in shipped_configs().glob("*.yaml")) == SHIPPED


def test_the_demo_needs_nothing_but_the_package():
    config = load_config("demo")
    assert (config.model, config.data.instance_dir) == ("demo", Path("demo"))


def test_no_source_means_the_defaults():
    assert load_config(None) == Config()


def test_an_empty_file_means_the_defaults(tmp_path):
    assert load_config(written(tmp_path, "# nothing\n")) == Config()


def test_a_file_changes_what_it_names_and_nothing_else(tmp_path):
    config = load_config(written(tmp_path, "seed: 3\ntrain: {steps: 7}\nvalidation: {prompts: [a, b]}\n"))
    assert changed(config) == {"seed": 3, "train.steps": 7, "validation.prompts": ("a", "b")}


def test_a_number_without_a_dot_is_a_number_all_the_same(tmp_path):
    config = load_config(written(tmp_path, "train: {learning_rate: 1e-5}"))
    assert config.train.learning_rate == 1e-5


@pytest.mark.parametrize(("text", "key"), [("stpes: 5", "stpes"), ("train: {stpes: 5}", r"train\.stpes")])
def test_an_unknown_key_is_named_with_its_file(tmp_path, text, key):
    with pytest.raises(UserError, match=rf"run\.yaml: unknown key '{key}'"):
        load_config(written(tmp_path, text))


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("seed: -1", "seed = -1"),
        ("train: {steps: 0}", r"train\.steps = 0"),
        ("train: {b1: 1}", r"train\.b1 = 1"),
        ("train: {ema_decay: 1.0}", r"train\.ema_decay = 1\.0"),
        ("train: {learning_rate: .nan}", r"train\.learning_rate = nan"),
        ("prior: {weight: -0.5}", r"prior\.weight = -0\.5"),
        ("data: {resolution: 0}", r"data\.resolution = 0"),
        ("data: {crop: left}", r"data\.crop = 'left'"),
        ("prior: {sampler: plms}", r"prior\.sampler = 'plms'"),
        ("train: {optimizer: sgd}", r"train\.optimizer = 'sgd'"),
        ("mesh: {fsdp: 0}", r"mesh\.fsdp = 0"),
        ("train: 5", "train = 5"),
        ("seed: 1.5", r"seed = 1\.5"),
    ],
)
def test_a_value_out_of_range_is_named_with_its_key_and_file(tmp_path, text, key):
    with pytest.raises(UserError, match=rf"run\.yaml: {key} is not valid"):
        load_config(written(tmp_path, text))


@pytest.mark.parametrize(
    ("text", "needed"),
    [
        ("train: {steps: five}", "train.steps = 'five' is not valid: a whole number"),
        ("train: {steps: 2.5}", "train.steps = 2.5 is not valid: a whole number"),
        ("train: {b1: high}", "train.b1 = 'high' is not valid: a number"),
        ("export: perhaps", "export = 'perhaps' is not valid: true or false"),
        ("model: 5", "model = 5 is not valid: text"),
        ("lora: 16", "lora = 16 is not valid: a group of settings"),
    ],
)
def test_a_value_of_another_kind_is_answered_with_what_is_needed(tmp_path, text, needed):
    with pytest.raises(UserError, match=rf"run\.yaml: {needed} is needed\.$"):
        load_config(written(tmp_path, text))


@pytest.mark.parametrize("text", ["a: [", "a: b: c", "\tseed: 1", "seed: 1\n  train: 2"])
def test_a_file_that_is_not_yaml_is_named(tmp_path, text):
    with pytest.raises(UserError, match=r"run\.yaml is not valid YAML"):
        load_config(written(tmp_path, text))


@pytest.mark.parametrize("text", ["just words", "[1, 2]", "5"])
def test_yaml_without_keys_is_refused(tmp_path, text):
    with pytest.raises(UserError, match=r"run\.yaml: expected keys and values"):
        load_config(written(tmp_path, text))


@pytest.mark.parametrize("content", [b"\x89PNG\r\n\x1a\n\0", b"\xff\xfe\x00", b"PK\x03\x04\0\0"])
def test_a_binary_file_is_named(tmp_path, content):
    path = tmp_path / "run.yaml"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"run\.yaml is not"):
        load_config(path)


def test_a_name_that_is_neither_a_file_nor_shipped_lists_what_is(tmp_path):
    with pytest.raises(UserError, match=r"sd14 is neither a file nor one of .* \(demo, demo-flow, .*, sd15, .*\)"):
        load_config("sd14")


def test_a_configuration_cannot_be_changed_after_it_is_made():
    with pytest.raises(ValidationError, match="frozen"):
        Config().seed = 1


ODD = Config(
    model="owner/model",
    run_dir=Path("runs/with space"),
    seed=5,
    export=False,
    data=DataConfig(
        instance_dir=Path("my dog"), instance_prompt='é 😀: "sks" # dog\n', class_dir=Path("c"), class_prompt="null",
        crop="random", random_crops=2, flip=True,
        subjects=(
            Subject(instance_dir=Path("a"), instance_prompt="a <a>"),
            Subject(instance_dir=Path("b"), instance_prompt="b", weight=2),
        ),
    ),
    loss=LossConfig(prediction_space="x0", weighting="min_snr", max_timestep=500),
    lora=LoraConfig(rank=4, targets=r"unet\..*\.to_q", init=Path("x.safetensors")),
    text=TextConfig(placeholder_tokens=("<a>", "b"), clip_skip=1),
    prior=PriorConfig(sampler="euler", guidance_scale=1, rows=0, method=("class-images", "weight-anchor")),
    train=TrainConfig(
        learning_rate=1e-7, b2=0.95, ema_decay=0.999, dtype="bfloat16",
        optimizer="lion",
    ),
    mesh=MeshConfig(data=2, fsdp=4),
    validation=ValidationConfig(prompts=("yes", "1e3", "a: b")),
)  # fmt: skip


@pytest.mark.parametrize("config", [Config(), load_config("demo"), load_config("sd15"), ODD])
def test_a_dumped_configuration_loads_to_an_equal_one(tmp_path, config):
    assert load_config(written(tmp_path, dump_config(config))) == config


def test_a_dump_holds_every_key():
    text = dump_config(Config())
    assert all(f"{key.rpartition('.')[2]}:" in text for key in flatten(Config()))


def test_flatten_gives_dotted_keys_in_schema_order():
    keys = list(flatten(Config()))
    assert keys[:3] == ["model", "revision", "variant"]
    assert keys.index("export") + 1 == keys.index("data.instance_dir")
    assert keys[-1] == "distributed.timeout"


def test_a_run_continued_as_it_was_has_no_conflict():
    assert first_conflict(ODD, ODD) is None


@pytest.mark.parametrize(
    "new",
    [
        Config(run_dir=Path("elsewhere"), export=False),
        Config(train=TrainConfig(steps=9, steps_per_dispatch=1, checkpoint_every=3, max_checkpoints=9)),
        Config(train=TrainConfig(gradient_accumulation_steps=2, remat="blocks")),
        Config(prior=PriorConfig(sample_batch_size=1)),
        Config(mesh=MeshConfig(data=1, fsdp=2, tensor=2)),
        Config(
            validation=ValidationConfig(
                prompts=("x",), every=1, images_per_prompt=1, sampler="ddim", steps=2, guidance_scale=1
            )
        ),
    ],
)
def test_what_alters_no_finished_step_may_change(new):
    assert first_conflict(Config(), new) is None


@pytest.mark.parametrize(
    ("new", "conflict"),
    [
        (Config(model="other"), ("model", "demo", "other")),
        (Config(seed=1), ("seed", 0, 1)),
        (Config(data=DataConfig(resolution=256)), ("data.resolution", None, 256)),
        (Config(prior=PriorConfig(steps=20)), ("prior.steps", 50, 20)),
        (Config(train=TrainConfig(batch_size=4)), ("train.batch_size", 1, 4)),
        (Config(train=TrainConfig(ema_decay=0.9)), ("train.ema_decay", None, 0.9)),
        (Config(train=TrainConfig(dtype="bfloat16")), ("train.dtype", "auto", "bfloat16")),
    ],
)
def test_what_alters_a_finished_step_is_a_conflict(new, conflict):
    assert first_conflict(Config(), new) == conflict


def test_the_first_conflict_is_the_first_in_schema_order_and_not_a_free_one():
    new = Config(run_dir=Path("x"), seed=2, train=TrainConfig(steps=5, learning_rate=1.0))
    assert first_conflict(Config(), new) == ("seed", 0, 2)


@pytest.mark.parametrize(
    ("key", "expected"), [("run_dir", "--run-dir"), ("train.learning_rate", "--train.learning-rate")]
)
def test_a_flag_is_the_dotted_key_with_dashes(key, expected):
    assert flag(key) == expected


def test_prior_rows_are_as_many_as_instance_rows_unless_set_or_off():
    assert PriorConfig().total_rows(3) == 3
    assert PriorConfig(rows=5).total_rows(3) == 5
    assert PriorConfig(rows=5, weight=0).total_rows(3) == 0
    assert PriorConfig(method=("class-images", "output-preservation"), class_images_weight=0).total_rows(3) == 3
    assert PriorConfig(method=("class-images", "output-preservation", "weight-anchor"), rows=5).total_rows(3) == 10


def test_one_subject_is_a_list_of_one():
    data = DataConfig(instance_dir=Path("a"), instance_prompt="a sks", class_prompt="a dog", class_dir=Path("c"))
    subject = Subject(instance_dir=Path("a"), instance_prompt="a sks", class_prompt="a dog", class_dir=Path("c"))
    assert Config(data=data).subjects == (subject,)


# What a LoRA adapts


@pytest.mark.parametrize(
    ("name", "given", "targets"),
    [
        ("sd15-lora", {}, "attention"),
        ("demo", {"lora": {"rank": 4}}, "attention+ff+conv"),
        ("demo", {"lora": {"rank": 4, "targets": "attention"}}, "attention"),
        ("demo", {"default_lora_targets": "attention+ff"}, "attention+ff"),
    ],
)
def test_a_lora_adapts_what_suits_the_base_model_unless_it_is_set(name, given, targets):
    assert load_config(name, given).lora_targets == targets


def test_a_value_of_several_types_is_named_by_its_key(tmp_path):
    with pytest.raises(UserError, match=r"loss\.timestep_shift = 1001 is not valid"):
        load_config(written(tmp_path, "loss: {timestep_shift: 1001}"))
