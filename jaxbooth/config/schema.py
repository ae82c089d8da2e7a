"""The sections of a run's configuration: frozen, documented key by key, an unknown key is an error."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Len
from pydantic import model_validator
from tyro.conf import Suppress

from jaxbooth.config import limits
from jaxbooth.config.section import Section
from jaxbooth.diffusion.samplers import SamplerName
from jaxbooth.models.adapter_kinds import AdapterKindName
from jaxbooth.models.lokr import NEAREST
from jaxbooth.models.remat import Remat

SchedulerPrediction = Literal["epsilon", "v_prediction", "sample"]
HeldOutMetric = Literal["validation_loss"]
Metric = Literal["dino", "clip_i", "clip_t", "pres", "div", HeldOutMetric]


class Subject(Section):
    """One subject of several, with its class: the keys of the data section that differ between them."""

    instance_dir: Path
    """Folder with images of this subject."""
    instance_prompt: limits.Prompt
    """Prompt with this subject's identifier."""
    class_prompt: limits.Prompt | None = None
    """Prompt of its class; subjects with the same one share their class images."""
    class_dir: Path | None = None
    """Default: the folder that another subject of the same class prompt names, else RUN/prior/<class prompt>."""
    validation_dir: Path | None = None
    """Other images of this subject; see `data.validation_dir`."""
    weight: limits.PositiveWeight = 1.0
    """Factor on the loss of this subject's images and its class images."""


class DataConfig(Section):
    """The subject's images and the class."""

    instance_dir: Path | None = None
    """Folder with 3 to 6 photos of the subject (jpg, png, webp, avif, tiff; heic with an extra). "demo": the
    demo's."""
    instance_prompt: limits.Prompt | None = None
    """Prompt with a rare identifier, such as "a photo of sks dog", for images without a caption of their own."""
    class_dir: Path | None = None
    """Folder of class images; missing ones are generated into it. Default: RUN/prior."""
    class_prompt: limits.Prompt | None = None
    """Prompt of the class, without the identifier. Needed for class images."""
    num_class_images: limits.ClassImageCount = 200
    """Class images to start with. Missing ones are generated; if the folder has more, all are used."""
    validation_dir: Path | None = None
    """Folder with other photos of the subject, captioned like those of instance_dir. They are never trained on; the
    loss on them is measured at every validation."""
    hold_out: limits.HeldOutCount = 0
    """Photos of each subject to take out of the training and to measure the loss on instead. The seed and the file
    names decide which."""
    resolution: limits.Pixels | None = None
    """Side of the training images, in pixels; default: what the base model was trained at."""
    crop: Literal["center", "random"] = "center"
    """What to keep of an image that is not square."""
    random_crops: limits.CropCount = 4
    """Crops kept of each image with --data.crop random."""
    flip: bool = False
    """Also train on mirrored images. Leave off for faces and anything with writing on it."""
    masks: bool = False
    """Learn only where a mask is white: <stem>.mask.png beside an image, or its alpha channel."""
    buckets: bool = False
    """Keep the images' shapes: aspect-ratio buckets of about resolution x resolution pixels instead of squares."""
    subjects: Annotated[tuple[Subject, ...], Len(0, limits.MAX_SUBJECTS), Suppress] = ()
    """Several subjects in one run, in place of instance_dir and the prompts above (in a YAML file)."""


class TrainConfig(Section):
    """The optimisation. A step is one optimizer update."""

    steps: limits.TrainSteps = 1000
    """Length of the run. Raise it and run the same command again to train on."""
    batch_size: limits.BatchSize = 1
    """Instance images per step, over all devices and microbatches."""
    learning_rate: limits.Rate | None = None
    """Peak learning rate; default: 1 for prodigy, else that of default_rates for whole components or for a LoRA."""
    lr_scheduler: Literal["constant", "linear", "cosine"] = "constant"
    """What follows the warmup: a constant rate, or one that falls to 0 at the last step."""
    warmup_steps: limits.WarmupSteps = 0
    """Steps of linear warmup from 0 (prodigy, schedule_free_adamw: from 1 / steps of the rate)."""
    optimizer: Literal["adamw", "adafactor", "lion", "prodigy", "schedule_free_adamw"] = "adamw"
    """Update rule."""
    weight_decay: limits.Weight = 1e-2
    """Decoupled weight decay, on every trained parameter."""
    b1: limits.Decay = 0.9
    """Decay of the first moment (adamw, lion, prodigy, schedule_free_adamw)."""
    mu_dtype: Literal["float32", "bfloat16"] = "float32"
    """Dtype in which the first moment is kept (adamw, lion); bfloat16 saves 2 bytes for each trained parameter."""
    b2: limits.Decay | None = None
    """Decay of the second moment; default 0.999, and 0.99 for lion."""
    eps: limits.Epsilon = 1e-8
    """Added to the root of the second moment (adamw, prodigy, schedule_free_adamw)."""
    max_grad_norm: limits.GradNorm = 1.0
    """Largest global gradient norm; 0 turns clipping off."""
    gradient_accumulation_steps: limits.BatchSize = 1
    """Microbatches that a step is split into to save memory. It does not change the result."""
    remat: Literal["auto"] | Remat = "auto"
    """What the backward pass recomputes to save memory (gradient checkpointing): none, dots (all but matrix
    products), attention (transformers) or blocks (everything; a third more work). auto: the first of none,
    attention and blocks that fits."""
    text_encoder: bool = False
    """Also train the text encoder, or both of SDXL's."""
    ema_decay: limits.EmaDecay | None = None
    """Keep an exponential moving average of the weights, and sample and export that."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Compute dtype; weights and optimizer stay float32. auto: bfloat16 on TPU and GPU, float32 on CPU."""
    steps_per_dispatch: limits.DispatchSteps = 10
    """Steps that the device runs before it returns to the host. It does not change the result."""
    checkpoint_every: limits.Interval = 500
    """Steps between checkpoints; the last step is always kept."""
    max_checkpoints: limits.CheckpointCount = 2
    """Newest checkpoints to keep."""

    @property
    def remat_policy(self) -> Remat:
        """The policy that a step is traced with; `auto` keeps everything until someone has looked what fits."""
        return "none" if self.remat == "auto" else self.remat


class DefaultRates(Section):
    """Learning rates that suit the base model, by what is trained. A rate set in the sections train and text
    overrides them."""

    full: limits.Rate = 5e-6
    """Of whole components: the UNet or transformer, and the text encoder where it is trained too."""
    lora: limits.Rate = 1e-4
    """Of a LoRA."""
    tokens: limits.Rate = 5e-4
    """Of placeholder tokens' embeddings."""


class LoraConfig(Section):
    """A LoRA instead of full fine-tuning."""

    rank: limits.Rank | None = None
    """Rank of the LoRA (4 to 64); not set: the whole UNet or transformer is trained."""
    kind: AdapterKindName = "lora"
    """lora; dora, which also learns each output's magnitude; loha, the elementwise product of two; or lokr, the
    Kronecker product of a small matrix and a larger one, which has this rank or, from half of its side on, is whole."""
    alpha: limits.Alpha | None = None
    """The LoRA is scaled by alpha / rank; default: the rank."""
    targets: limits.Regex | None = None
    """attention, attention+ff, attention+ff+conv, or a regular expression that matches names such as unet.conv_in or
    transformer.layers.0.attention.to_q; default: default_lora_targets."""
    rslora: bool = False
    """Scale by alpha / sqrt(rank) instead."""
    factor: limits.Factor = NEAREST
    """Groups that a LoKr cuts a layer's inputs and outputs into; -1: as many as they are wide. Where it does not divide
    them, the next smaller number that does."""
    b_rate_ratio: limits.RateRatio = 1.0
    """Learning rate of the matrices B over that of the matrices A; LoRA+ has 16. Of lora and dora; not with prodigy."""
    init: Path | None = None
    """LoRA file to start from, of jaxbooth or another trainer."""

    @model_validator(mode="before")
    @classmethod
    def read_dora(cls, values: Any) -> Any:
        """Reads `dora`, which configurations had before there was `kind`."""
        if not isinstance(values, Mapping) or not isinstance(values.get("dora"), bool):
            return values
        rest = {key: value for key, value in values.items() if key != "dora"}
        return rest | ({"kind": "dora"} if values["dora"] else {})


class TextConfig(Section):
    """How prompts are read, and what of the text encoders is trained."""

    learning_rate: limits.Rate | None = None
    """Of the text encoder, with --train.text-encoder; default: --train.learning-rate."""
    caption_dropout: limits.Dropout = 0.0
    """Share of images trained with an empty caption, for guidance."""
    trigger_word: limits.Token | None = None
    """Word that every instance caption has to hold: it is put in front of those that lack it, and in the place of
    [trigger]."""
    shuffle_tags: bool = False
    """Shuffle what stands between the commas of instance captions."""
    tag_dropout: limits.Dropout = 0.0
    """Share of the tags that is left out of instance captions; one tag always stays."""
    keep_tags: limits.TagCount = 0
    """First tags of a caption that are neither shuffled nor left out."""
    caption_variants: limits.CaptionCount = 16
    """Variants of each image's captions that are encoded and kept, with shuffled or dropped tags."""
    clip_skip: limits.ClipSkip = 0
    """Last layers of the text encoder to leave out."""
    max_token_chunks: limits.ChunkCount = 1
    """Chunks of 75 tokens that a prompt may have; 1 is the model's own maximum."""
    placeholder_tokens: limits.PlaceholderTokens = ()
    """Words to add to the vocabulary and learn, such as "<sks>"; use them in the prompts (textual inversion)."""
    vectors_per_token: limits.VectorCount = 1
    """Embeddings learned for each placeholder token."""
    initializer_token: limits.Token | None = None
    """Word whose embedding the placeholder tokens start from; default: the last word of the subject's class prompt."""
    token_learning_rate: limits.Rate | None = None
    """Of the placeholder tokens; default: 1 for prodigy, else that of default_rates."""
    token_training: Literal["joint", "pivotal", "textual-inversion"] = "joint"
    """When placeholder tokens are trained: with everything else, before everything else, or alone."""
    token_share: limits.Share = 0.5
    """Share of the steps that train the tokens with --text.token-training pivotal."""

    @property
    def is_textual_inversion(self) -> bool:
        """Whether the embeddings of placeholder tokens are all that is trained."""
        return bool(self.placeholder_tokens) and self.token_training == "textual-inversion"

    @property
    def varies_tags(self) -> bool:
        """Whether instance captions are trained with in several variants."""
        return self.shuffle_tags or self.tag_dropout > 0


class MeshConfig(Section):
    """How the devices are arranged."""

    data: limits.MeshRest = -1
    """Copies of the model; -1: as many as the other axes leave devices for."""
    fsdp: limits.MeshAxis = 1
    """Devices over which weights and optimizer state are sharded."""
    tensor: limits.MeshAxis = 1
    """Devices over which the transformers' wide layers are split."""


class DistributedConfig(Section):
    """Several processes, one for each host. Cloud TPU, GKE, SLURM and Open MPI need none of these flags."""

    coordinator: str | None = None
    """HOST:PORT of process 0, the same for all processes."""
    num_processes: limits.ProcessCount | None = None
    """How many processes there are."""
    process_id: limits.ProcessId | None = None
    """Number of this process, from 0."""
    timeout: limits.Seconds = 300.0
    """Seconds to wait until all processes have started."""


class ValidationConfig(Section):
    """The images sampled while training."""

    prompts: limits.Prompts = ()
    """Default: the instance prompt, the class prompt and one unrelated prompt."""
    every: limits.Interval = 100
    """Steps between sample grids; step 0 is the base model's."""
    images_per_prompt: limits.PairedImageCount = 4
    """Images of each prompt, with the same seeds every time."""
    sampler: SamplerName | None = None
    """See `jaxbooth sample --help`. Default: dpmpp_2m; euler for flow models."""
    steps: limits.SamplerSteps = 25
    """Sampling steps of one image, each a network evaluation (two with heun)."""
    guidance_scale: limits.GuidanceScale | None = None
    """Classifier-free guidance; 1 turns it off. Default: what suits the base model, such as 7.5 for SD 1.5."""
    drift_limit: limits.PositiveWeight | None = None
    """Drift of the class (eval/drift in validation.jsonl) that causes a warning. The last checkpoint before it is
    kept."""


class EvaluationConfig(Section):
    """CLIP and DINO metrics on a few images while training; `jaxbooth evaluate` measures a finished run."""

    every: limits.Interval | None = None
    """Steps between evaluations; not set: no evaluations."""
    num_prompts: limits.PromptCount = 5
    """How many of the paper's 25 prompts."""
    images_per_prompt: limits.PairedImageCount = 2
    """Images of each prompt, with the same seeds every time."""
    num_class_images: limits.PairedImageCount = 8
    """Images of the class prompt."""
    clip: str | None = None
    """CLIP folder or Hub id, or none; default: openai/clip-vit-base-patch32, and the demo's own for the demo model."""
    dino: str | None = None
    """DINO or DINOv2 folder or Hub id, or none; default: facebook/dino-vits16, and none for the demo model."""
    keep_best: Metric | None = None
    """Metric whose best checkpoint is kept in addition to the newest ones. validation_loss is the loss on held-out
    images of the subject, at every validation; the others need --evaluation.every."""
    patience: limits.Patience | None = None
    """Training stops after this many evaluations (of validation_loss: validations) without a better value of that
    metric."""
