"""Settings that contradict each other are refused in one sentence; those that go together pass."""

import re
from typing import Any

import pytest
from PIL import Image

from jaxbooth.assets import DEMO_MODEL, shipped_configs
from jaxbooth.base.model import BaseModel
from jaxbooth.base.trainable import trained_shapes
from jaxbooth.config.load import load_config, to_user_error
from jaxbooth.config.rates import learning_rates
from jaxbooth.config.rules import check_config
from jaxbooth.config.run_config import Config
from jaxbooth.data.images import ImageFile
from jaxbooth.errors import UserError
from jaxbooth.runs.inputs import check_masks, check_placeholder_captions
from jaxbooth.training.optimizer import make_optimizer

WORD = {"instance_prompt": "a photo of <sks>"}
NEW = {"placeholder_tokens": ("<sks>",)}
LORA = {"rank": 4}
SUBJECTS = [
    {"instance_dir": "cats", "instance_prompt": "a <a> cat", "class_prompt": "a cat"},
    {"instance_dir": "dogs", "instance_prompt": "a <b> dog", "class_prompt": "a dog"},
]


def several(*changes: dict[str, Any]) -> dict[str, Any]:
    """A data section of SUBJECTS, each with its changes."""
    filled = [*changes, *({} for _ in SUBJECTS)][: len(SUBJECTS)]
    none = dict.fromkeys(("instance_dir", "instance_prompt", "class_prompt"))
    return none | {"subjects": [subject | change for subject, change in zip(SUBJECTS, filled, strict=True)]}


def configure(**sections: dict[str, Any]) -> Config:
    """A run that passes, with changes."""
    data = {"instance_dir": "cats", "instance_prompt": "a sks cat", "class_prompt": "a cat"}
    return Config.model_validate(sections | {"data": data | sections.get("data", {})})


# Options that would do nothing

IDLE = [
    ({"text": {"learning_rate": 1e-6}}, "--text.learning-rate is the rate of the text encoder, which is frozen"),
    ({"lora": {"alpha": 8}}, "--lora.alpha needs --lora.rank"),
    ({"lora": {"rslora": True}}, "--lora.rslora needs --lora.rank"),
    ({"lora": {"kind": "dora"}}, "--lora.kind needs --lora.rank"),
    ({"lora": {"b_rate_ratio": 16}}, "--lora.b-rate-ratio needs --lora.rank"),
    ({"lora": {"targets": "attention+ff"}}, "--lora.targets needs --lora.rank"),
    ({"lora": {"rank": 4, "factor": 8}}, "--lora.factor only acts with --lora.kind lokr"),
    ({"lora": {"init": "a.safetensors"}}, "--lora.init needs --lora.rank"),
    ({"text": {"vectors_per_token": 2}}, "--text.vectors-per-token needs --text.placeholder-tokens"),
    ({"text": {"initializer_token": "dog"}}, "--text.initializer-token needs --text.placeholder-tokens"),
    ({"text": {"token_learning_rate": 1e-3}}, "--text.token-learning-rate needs --text.placeholder-tokens"),
    ({"text": {"token_training": "pivotal"}}, "--text.token-training needs --text.placeholder-tokens"),
    ({"text": NEW | {"token_share": 0.2}, "data": WORD},
     "--text.token-share only acts with --text.token-training pivotal"),
    ({"text": {"keep_tags": 1}}, "--text.keep-tags only acts with --text.shuffle-tags or --text.tag-dropout"),
    ({"text": {"caption_variants": 8}}, "--text.caption-variants only acts with --text.shuffle-tags or"),
    ({"loss": {"huber_c": 0.2}}, "--loss.huber-c only acts with --loss.loss-type huber"),
    ({"loss": {"timestep_mean": 0.5}}, "--loss.timestep-mean only acts with --loss.timestep-sampling logit_normal"),
    ({"loss": {"timestep_std": 0.5}}, "--loss.timestep-std only acts with --loss.timestep-sampling logit_normal"),
    ({"data": {"random_crops": 2}}, "--data.random-crops only acts with --data.crop random"),
    ({"loss": {"snr_gamma": 1}}, "--loss.snr-gamma only acts with --loss.weighting min_snr"),
    ({"prior": {"weighting": "snr", "weight": 0}}, "--prior.weighting is about prior rows, .* its weight is 0"),
    ({"prior": {"target": "frozen", "rows": 0}}, "--prior.target is about class-images, .*--prior.rows 0"),
    ({"data": {"class_dir": "birds"}, "prior": {"weight": 0}}, "--data.class-dir is about class-images"),
    ({"data": several({}, {"class_dir": "a"}), "prior": {"rows": 0}}, "entry 2: class_dir is about class-images"),
    ({"prior": {"rows": 3, "weight": 0}}, "--prior.rows has no effect: its weight is 0"),
    ({"prior": {"rows": 0, "weight": 0.5}}, "--prior.weight has no effect: --prior.rows 0"),
    ({"train": {"optimizer": "adafactor", "b1": 0.5}}, "--train.b1 does nothing with --train.optimizer adafactor"),
    ({"train": {"optimizer": "adafactor", "b2": 0.5}}, "--train.b2 does nothing with --train.optimizer adafactor"),
    ({"train": {"optimizer": "prodigy", "mu_dtype": "bfloat16"}}, "--train.mu-dtype does nothing with"),
    ({"train": {"optimizer": "lion", "eps": 1e-6}}, "--train.eps does nothing with --train.optimizer lion"),
]  # fmt: skip

# Trigger words

TRIGGERS = [
    ({"text": {"trigger_word": ""}}, "--text.trigger-word '' is empty"),
    ({"text": {"trigger_word": " sks"}}, "--text.trigger-word ' sks' is empty or has spaces around it"),
    ({"text": {"trigger_word": "sks, cat"}}, "--text.trigger-word 'sks, cat' holds a comma"),
    ({"text": {"trigger_word": "sk"}}, "--data.instance-prompt 'a sks cat' lacks the word sk, .* write the word into"),
    ({"text": {"trigger_word": "cat"}}, "--data.class-prompt holds this word too"),
    ({"text": {"trigger_word": "sks"}, "data": several()}, "--text.trigger-word sks is one word, .* has 2 subjects"),
]

# Subjects, classes and rows

INPUTS = [
    ({"data": {"instance_dir": None}}, "--data.instance-dir is missing"),
    ({"data": {"instance_prompt": " "}}, "--data.instance-prompt is missing"),
    ({"data": {"class_prompt": None}}, "--data.class-prompt is missing: .* or none."),
    ({"data": several() | {"instance_dir": "cats"}}, "--data.instance-dir and data.subjects exclude each other"),
    ({"data": several() | {"class_prompt": "a cat"}}, "--data.class-prompt and data.subjects exclude each other"),
    ({"data": several({}, {"instance_prompt": ""})}, "data.subjects, entry 2: instance_prompt is empty"),
    ({"data": several({}, {"class_prompt": None})}, "data.subjects, entry 2: class_prompt is missing"),
    ({"data": several({}, {"instance_prompt": "a <a> cat"})}, "entry 2: 'a <a> cat' is another subject's prompt too"),
    ({"data": WORD | {"class_prompt": "a photo of <sks>"}, "text": NEW},
        "--data.class-prompt holds the placeholder token"),
    ({"data": several({}, {"class_prompt": "a <b>"}), "text": {"placeholder_tokens": ("<b>",)}}, 
        "entry 2: .* placeholder token <b>"),
    ({"train": {"batch_size": 3, "gradient_accumulation_steps": 2}},
     "--train.batch-size 3 is not a multiple of --train.gradient-accumulation-steps"),
    ({"train": {"batch_size": 2, "gradient_accumulation_steps": 2}, "prior": {"rows": 3}},
     "--prior.rows 3 is not a"),
    ({"validation": {"prompts": ("a", " ")}}, "--validation.prompts holds an empty prompt"),
]  # fmt: skip

# Parts of the training

ALONE = NEW | {"token_training": "textual-inversion"}
OFF = {"weight": 0}
TRAINING = [
    ({"text": ALONE, "prior": OFF, "train": {"text_encoder": True}}, 
        "--train.text-encoder trains more than the placeholder tokens"),
    ({"text": ALONE, "prior": OFF, "lora": LORA}, "--lora.rank trains more than the placeholder tokens"),
    ({"text": ALONE, "prior": OFF, "train": {"weight_decay": 0.1}},
     "--train.weight-decay does not act on placeholder tokens"),
    ({"text": ALONE | {"caption_dropout": 0.1}, "prior": OFF},
     "--text.caption-dropout makes rows without the placeholder tokens"),
    ({"text": ALONE, "prior": OFF, "train": {"learning_rate": 1e-4}},
     "--train.learning-rate is the UNet's, which is frozen"),
    ({"text": ALONE},
     "--text.token-training textual-inversion .* class-images would teach nothing; set --prior.method none"),
    ({"text": NEW, "prior": OFF, "data": {"class_prompt": None}}, "--text.initializer-token is missing"),
    ({"text": NEW | {"token_training": "pivotal"}, "train": {"steps": 1}},
     "--text.token-share 0.5 of 1 steps leaves none"),
    ({"text": NEW | {"token_training": "pivotal", "token_share": 0.99}, "train": {"steps": 10}},
     "0.99 of 10 steps leaves"),
    ({"text": NEW, "train": {"optimizer": "schedule_free_adamw"}}, "schedule_free_adamw knows one learning rate"),
    ({"text": {"learning_rate": 1e-6}, "train": {"text_encoder": True, "optimizer": "schedule_free_adamw"}}, "one l"),
    ({"train": {"optimizer": "schedule_free_adamw", "ema_decay": 0.9}}, "averages the weights itself"),
    ({"train": {"optimizer": "prodigy", "learning_rate": 1e-4}}, "--train.learning-rate 0.0001 only scales .* to 1"),
    ({"text": NEW | {"token_learning_rate": 5e-4}, "train": {"optimizer": "prodigy"}}, "--text.token-learning-rate"),
    ({"lora": LORA | {"b_rate_ratio": 16, "kind": "lokr"}}, "--lora.b-rate-ratio 16 is for .* and lokr has none"),
    ({"lora": LORA | {"b_rate_ratio": 16}, "train": {"optimizer": "prodigy"}},
     "--lora.b-rate-ratio 16 asks for two learning rates, and --train.optimizer prodigy finds one"),
    ({"loss": {"min_timestep": 9, "max_timestep": 8}}, "--loss.max-timestep 8 is below --loss.min-timestep 9"),
]  # fmt: skip


@pytest.mark.parametrize(("sections", "sentence"), IDLE + TRIGGERS + INPUTS + TRAINING)
def test_a_contradiction_is_named(sections, sentence):
    with pytest.raises(UserError, match=sentence.replace("--", r"\-\-")) as refusal:
        check_config(configure(**sections))
    assert re.fullmatch(r"[^\n]*[^.\s]\.", str(refusal.value))


@pytest.mark.parametrize("path", sorted(shipped_configs().glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_configurations_pass(path):
    config = load_config(path)
    data = configure().data if config.data.instance_dir is None else config.data
    check_config(config.model_copy(update={"data": data}))


@pytest.mark.parametrize(
    "sections",
    [
        {"prior": OFF, "data": {"class_prompt": None}},
        {"prior": {"rows": 0}, "data": {"class_prompt": None}},
        {"train": {"text_encoder": True}, "text": {"learning_rate": 1e-6}, "lora": LORA | {"kind": "dora"}},
        {"loss": {"snr_gamma": 1}, "prior": {"weighting": "min_snr"}},
        {"loss": {"min_timestep": 8, "max_timestep": 8}},
        {"text": NEW | {"token_training": "pivotal", "token_share": 0.2}, "lora": LORA},
        {"text": {"trigger_word": "SKS", "shuffle_tags": True, "keep_tags": 2, "caption_variants": 4}},
        {"text": {"tag_dropout": 0.2, "keep_tags": 1}},
        {"text": ALONE, "prior": OFF, "train": {"remat": "blocks", "ema_decay": 0.9, "max_grad_norm": 0}},
        {"text": ALONE | {"token_learning_rate": 1}, "prior": OFF, "train": {"optimizer": "prodigy"}},
        {"text": NEW | {"initializer_token": "dog"}, "prior": OFF, "data": WORD | {"class_prompt": None}},
        {"train": {"optimizer": "schedule_free_adamw", "warmup_steps": 10}, "lora": LORA | {"b_rate_ratio": 4}},
        {"data": several({"class_dir": "birds"}), "train": {"batch_size": 4, "gradient_accumulation_steps": 2}},
        {"data": several({}, {"instance_dir": "cats", "class_prompt": "a cat"})},
    ],
)
def test_what_goes_together_passes(sections):
    check_config(configure(**sections))


@pytest.mark.parametrize("off", [OFF, {"rows": 0}])
def test_one_warning_names_what_describes_class_images_that_are_not_made(off, capsys):
    config = load_config("demo")
    check_config(config)
    check_config(configure(prior=off))
    assert not capsys.readouterr().out
    check_config(config.model_copy(update={"prior": config.prior.model_copy(update=off)}))
    output = capsys.readouterr().out
    assert output.count("warning") == 1
    assert "--data.num-class-images, --prior.guidance-scale, --prior.sample-batch-size" in output


@pytest.mark.parametrize(
    ("section", "key", "value"), [("lora", "rank", 0), ("text", "max_token_chunks", 0), ("text", "caption_dropout", 1)]
)
def test_a_value_that_no_run_can_use_is_named(section, key, value):
    with pytest.raises(ValueError, match=key) as error:
        Config.model_validate({section: {key: value}})
    assert f"{section}.{key} = {value} is not valid" in str(to_user_error(error.value, "run.yaml"))


# What only the base model can tell


@pytest.mark.parametrize("targets", [r"unet\.no_such_layer", r"text_encoder\..*", "conv_in"])
def test_targets_that_match_nothing_are_refused(targets, base):
    with pytest.raises(UserError, match=re.escape(f"--lora.targets {targets!r} matches no layer of the unet")):
        trained_shapes(base, configure(lora=LORA | {"targets": targets}))


def test_targets_have_to_match_a_layer_of_every_trained_component(base):
    config = configure(lora=LORA | {"targets": r"unet\.conv_in"}, train={"text_encoder": True})
    with pytest.raises(UserError, match="matches no layer of the text_encoder"):
        trained_shapes(base, config)


@pytest.mark.parametrize("clip_skip", [4, 12])
def test_leaving_out_every_layer_is_refused(clip_skip):
    BaseModel.read(DEMO_MODEL, clip_skip=3)
    with pytest.raises(UserError, match=rf"--text\.clip-skip {clip_skip} leaves nothing .* of 4 layers"):
        BaseModel.read(DEMO_MODEL, clip_skip=clip_skip)


@pytest.mark.parametrize(("share", "steps"), [(0.5, 100), (0.1, 500)])
def test_a_warmup_longer_than_a_phase_is_refused(share, steps):
    text = NEW | {"token_training": "pivotal", "token_share": share}
    config = configure(text=text, train={"steps": steps, "warmup_steps": 49})
    make_optimizer(config.train, learning_rates(config))
    with pytest.raises(UserError, match=r"--train\.warmup-steps 50 leaves nothing of the 50 steps"):
        make_optimizer(config.train.model_copy(update={"warmup_steps": 50}), learning_rates(config))


# What only the images can tell


def test_a_placeholder_token_that_no_caption_has_is_refused(tmp_path):
    captions = ("a photo of <a>", "a cat", "<b>")
    files = [ImageFile(tmp_path / f"{index}.png", caption) for index, caption in enumerate(captions)]
    check_placeholder_captions(("<a>", "<b>"), files)
    with pytest.raises(UserError, match=r"--text\.placeholder-tokens <b>: no instance caption has this word"):
        check_placeholder_captions(("<a>", "<b>"), files[:2])


def test_masks_that_no_image_has_are_refused(tmp_path):
    files = []
    for index, mode in enumerate(("RGB", "RGBA")):
        Image.new(mode, (8, 8), "red").save(tmp_path / f"{index}.png")
        files.append(ImageFile(tmp_path / f"{index}.png", "a cat"))
    check_masks(files)
    with pytest.raises(UserError, match=r"--data\.masks: no image has a mask"):
        check_masks(files[:1])


# Rates that are far off


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({"train": {"learning_rate": 5e-4}}, "--train.learning-rate 0.0005 is 100 times 5e-06, the default"),
        ({"train": {"learning_rate": 0.5}, "lora": LORA}, "--train.learning-rate 0.5 is 5,000 times 0.0001"),
        (
            {"train": {"text_encoder": True}, "text": {"learning_rate": 1e-2}},
            "--text.learning-rate 0.01 is 2,000 times 5e-06",
        ),
    ],
)
def test_a_rate_of_a_hundred_times_the_default_is_warned_of(sections, said, capsys):
    check_config(configure(**sections))
    assert f"warning: {said}" in capsys.readouterr().out


@pytest.mark.parametrize(
    "sections",
    [
        {},
        {"train": {"learning_rate": 4e-4}},
        {"train": {"learning_rate": 5e-3}, "lora": LORA},
        {"train": {"learning_rate": 1.0, "optimizer": "prodigy", "weight_decay": 0.01}},
    ],
)
def test_lower_rates_pass_in_silence(sections, capsys):
    check_config(configure(**sections))
    assert "warning" not in capsys.readouterr().out
