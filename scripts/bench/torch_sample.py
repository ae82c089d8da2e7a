"""diffusers' pipelines in PyTorch on random weights, in bfloat16: prompts to pixels, with guidance."""

import argparse

import diffusers
import torch
import transformers
from diffusers import AutoencoderKL, DDPMScheduler, DPMSolverMultistepScheduler, UNet2DConditionModel
from torch_model import read_config
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer
from worker import Subject, serve, timed


def pipeline_of(folder: str, device: str) -> diffusers.DiffusionPipeline:
    """Builds a pipeline from configurations."""
    index = read_config(folder, ".", "model_index.json")
    parts = {"unet": UNet2DConditionModel, "vae": AutoencoderKL}
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    loaded = {name: kind.from_config(read_config(folder, name)).to(device, dtype) for name, kind in parts.items()}
    is_xl = "text_encoder_2" in index
    for number in ("", "_2") if is_xl else ("",):
        kind = CLIPTextModelWithProjection if number else CLIPTextModel
        config = transformers.CLIPTextConfig(**read_config(folder, f"text_encoder{number}"))
        loaded[f"text_encoder{number}"] = kind(config).to(device, dtype)
        loaded[f"tokenizer{number}"] = CLIPTokenizer.from_pretrained(folder, subfolder=f"tokenizer{number}")
    loaded["scheduler"] = DDPMScheduler.from_config(read_config(folder, "scheduler"))
    if is_xl:
        return diffusers.StableDiffusionXLPipeline(**loaded)
    return diffusers.StableDiffusionPipeline(
        **loaded, safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )


def build(arguments: argparse.Namespace) -> Subject:
    """Prepares the pipeline."""
    torch.manual_seed(0)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    pipeline = pipeline_of(arguments.folder, arguments.device)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.unet.to(memory_format=torch.channels_last)
    pipeline.vae.to(memory_format=torch.channels_last)
    if arguments.sampler == "dpmpp_2m":
        pipeline.scheduler = DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config)
    if arguments.compile:
        pipeline.unet = torch.compile(pipeline.unet)
    prompts = ["a photo of a dog"] * arguments.rows

    def draw(count: int) -> None:
        for _ in range(count):
            pipeline(prompts, num_inference_steps=arguments.steps, guidance_scale=7.5, output_type="np")

    name = torch.cuda.get_device_name() if arguments.device == "cuda" else "cpu"
    versions = {"torch": torch.__version__, "diffusers": diffusers.__version__}
    peak = torch.cuda.max_memory_allocated if arguments.device == "cuda" else (lambda: None)
    facts = {"device": name, "rows": arguments.rows, "versions": versions}
    return Subject(lambda count: timed(lambda: draw(count)), facts, peak)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", required=True, help="a diffusers folder; no weights needed")
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--sampler", default="dpmpp_2m")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--compile", action="store_true")
    given = parser.parse_args()
    serve(lambda: build(given))
