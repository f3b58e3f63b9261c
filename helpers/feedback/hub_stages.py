"""Stages that hold a published model, in memory from their first call to `release()`.

    paint = Painter(steps=4)      # prompt -> picture
    fits = PromptFit()            # prompt and picture -> a number
    blind = TextOnlyReward()      # question and answer -> a number

The choices, and what was read about them in November 2026; no time and no memory of a GPU was
measured:

stabilityai/sd-turbo draws 512 pixels in 1 to 4 steps without guidance, so that several candidates a
    prompt are cheap; PDS-DPO's SD3-medium is gated and takes 28 steps. In fp16 the UNet is 1.73 GB
    and the VAE 0.17 GB, beside a text encoder. Its card sends commercial users to
    stability.ai/license. It has no safety checker: look at what you publish. To vary the guidance,
    and with a checker: Painter(Weights("stable-diffusion-v1-5/stable-diffusion-v1-5",
    variant="fp16"), 28, 7.0), openrail-m; its files were not looked at.
yuvalkirstain/PickScore_v1 (arXiv 2305.01569) is CLIP-H, tuned on people's choices between pictures
    of one prompt: 3.94 GB in float32. PDS-DPO's ImageReward is a pickle that needs a package of its
    own; plain CLIP has seen no choices. Its card states no licence.
Skywork/Skywork-Reward-V2-Qwen3-0.6B (arXiv 2507.01352) is small and reads a whole conversation:
    about 2.4 GB in float32. The cards of its larger siblings of 4 and 8 billion weights say
    Apache-2.0; its own was not seen, nor a revision to pin.

None asks for an account. Only safetensors are read, and no code from the Hub is run.
"""

import gc
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm.auto import tqdm
from transformers import AutoModelForSequenceClassification, AutoTokenizer, CLIPModel, CLIPProcessor

from helpers.feedback.stages import Item, SynthesisError
from helpers.setup.hub import first_line
from helpers.setup.machine import this_machine
from helpers.vlm.answers import Job, in_batches
from helpers.vlm.load import ModelError


@dataclass(frozen=True)
class Weights:
    """A checkpoint: a folder, or a Hub id at a `revision` (None: the newest).

    `variant` is what file names say about the precision, "fp16" in model.fp16.safetensors.
    """

    name: str
    revision: str | None = None
    variant: str | None = None

    @property
    def public(self) -> str:
        """A Hub id as it is; a folder without the path to it, as names go into cards."""
        return Path(self.name).resolve().name if Path(self.name).is_dir() else self.name

    def __str__(self):
        return f"{self.public}@{self.revision}" if self.revision else self.public


SD_TURBO = Weights("stabilityai/sd-turbo", "b261bac6fd2cf515557d5d0707481eafa0485ec2", "fp16")
PICKSCORE = Weights("yuvalkirstain/PickScore_v1", "dc2ed378e35ed7046987c680120123faa75b4559")
SKYWORK = Weights("Skywork/Skywork-Reward-V2-Qwen3-0.6B")


# --- what all of them have in common -------------------------------------------------------------


class ModelStage:
    """A stage that holds weights, from its first call to `release()`.

    A kind of it defines `load()`, which returns a tuple; `results(items, *loaded)`, with one result
    for each item in order; `weights` and `batch_size`. The pipeline releases each stage before the
    next one loads, so that a machine needs room for one model at a time.
    """

    remedy = "use a smaller model"  # when one item alone is too much for the memory
    suffix = ""  # of the name
    loaded = None  # an instance's tuple, while it holds one

    @property
    def name(self) -> str:
        return self.weights.public.rsplit("/", 1)[-1] + self.suffix

    @property
    def settings(self) -> dict:
        return {"weights": str(self.weights)}

    def __call__(self, items: list[Item]):
        if not items:
            return []
        if self.loaded is None:
            self.loaded = self.load()
        return self.results(items, *self.loaded)

    def release(self) -> None:
        """Free the memory; another call loads the weights again."""
        self.loaded = None
        gc.collect()  # an error's traceback may hold the weights in a cycle
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def batches(self, job: Job):
        """Yields (rows, results), halving batches that do not fit. No bar: the run has one."""
        try:
            yield from in_batches(job, self.batch_size, tqdm(disable=True))
        except torch.cuda.OutOfMemoryError as error:
            raise SynthesisError(
                f"not enough memory for {self.name}, even for one item at a time: {self.remedy}"
            ) from error

    def run(self, job: Job) -> list:
        """The job's results, in the order of its rows."""
        found = {}
        for rows, results in self.batches(job):
            found.update(zip(rows, results, strict=True))
        return [found[row] for row in sorted(found)]


def in_order(items: list[Item], results: Callable) -> Job:
    """A Job over items in their order; `results` maps some of them to a list."""
    prompts, rows = [item.prompt for item in items], list(range(len(items)))
    return Job("stage", prompts, rows, lambda some: results([items[row] for row in some]))


def read(weights: Weights, load: Callable):
    """What `load(name, revision=...)` gives, and any failure of it as one sentence (ModelError)."""
    try:
        return load(weights.name, revision=weights.revision)
    except Exception as error:  # every library below has exceptions of its own
        raise ModelError(
            f"{weights.name} cannot be read ({type(error).__name__}: {first_line(error)}): check "
            "the name, the network, and that the checkpoint has safetensors: pickled weights "
            "(.bin, .pt, .ckpt) are never loaded"
        ) from error


def whole(kind, weights: Weights, device: str):
    """A transformers model in float32: rewards are compared in their last digits.

    kind: a class with `from_pretrained`. What a checkpoint lacks, transformers fills with random
    numbers and a warning, such as the head of a language model that is taken for a reward model;
    here that is a ModelError.
    """
    how = {"dtype": torch.float32, "use_safetensors": True, "output_loading_info": True}
    model, info = read(weights, lambda name, **at: kind.from_pretrained(name, **at, **how))
    if info["missing_keys"]:
        raise ModelError(
            f"{weights.name} has no {min(info['missing_keys'])}: it was not trained as a "
            f"{type(model).__name__}, choose another checkpoint"
        )
    return model.to(device)


# --- the generator -------------------------------------------------------------------------------


@dataclass(eq=False)
class Painter(ModelStage):
    """Image generator: `item.prompt` -> a square picture of `size` pixels, by diffusers.

    Yields. The noise comes from `item.seed` alone and is drawn on the CPU: a picture is the same
    in any batch and on any machine, but for the last digits of their arithmetic. Raises
    SynthesisError, naming the item, for a picture that is not a number (float16 overflows), is of
    one colour, or that a safety checker blacked out; those before it are kept.
    """

    weights: Weights = SD_TURBO
    steps: int = 4
    guidance: float = 0.0  # turbo models were distilled without; others take 5 to 11
    size: int = 512
    batch_size: int = 4
    device: str = field(default_factory=lambda: this_machine().kind)
    dtype: str | None = None  # None: float16 on CUDA, float32 elsewhere

    remedy = "lower `size`, or restart the kernel to free the memory"

    def __post_init__(self):
        if self.size < 8 or self.size % 8:
            raise ValueError(f"size={self.size}: choose a multiple of 8 pixels")
        if self.steps < 1:
            raise ValueError(f"steps={self.steps}: a picture takes one or more")
        self.dtype = self.dtype or ("float16" if self.device == "cuda" else "float32")

    @property
    def settings(self):
        how = {"steps": self.steps, "guidance": self.guidance, "size": self.size}
        return super().settings | {"dtype": self.dtype, **how}

    def load(self):
        from diffusers import AutoPipelineForText2Image  # 5 s that no other stage has to wait for

        how = {"dtype": getattr(torch, self.dtype), "variant": self.weights.variant}
        make = AutoPipelineForText2Image.from_pretrained
        pipe = read(self.weights, lambda name, **at: make(name, use_safetensors=True, **at, **how))
        pipe.set_progress_bar_config(disable=True)
        return (pipe.to(self.device),)

    def results(self, items, pipe):
        def draw(some):
            made = pipe(
                [item.prompt for item in some],
                num_inference_steps=self.steps,
                guidance_scale=self.guidance,
                height=self.size,
                width=self.size,
                generator=[torch.Generator("cpu").manual_seed(item.seed) for item in some],
                output_type="np",  # in a PIL picture, what is not a number would be black
            )
            flags = getattr(made, "nsfw_content_detected", None) or [False] * len(some)
            return list(zip(made.images, flags, strict=True))

        for rows, drawn in self.batches(in_order(items, draw)):
            for row, (pixels, flag) in zip(rows, drawn, strict=True):
                if fault := _fault(pixels, flag):
                    raise SynthesisError(f"item {items[row].key}, {items[row].prompt!r}: {fault}")
                yield Image.fromarray((255 * pixels).round().astype(np.uint8))


def _fault(pixels, flagged):
    """What is wrong with a picture (height, width, 3) in 0 to 1, and what to do; or None."""
    if flagged:
        return "the safety checker blacked the picture out: change the prompt"
    if not np.isfinite(pixels).all():
        return "the picture is not a number, as when float16 overflows: use dtype='float32'"
    if np.ptp(pixels) == 0:
        return "the picture is of one colour: change the prompt, or use dtype='float32'"


# --- rewards with published weights --------------------------------------------------------------


@dataclass(eq=False)
class PromptFit(ModelStage):
    """Image reward: how well a picture fits its prompt and pleases, by a CLIP model.

    CLIP's cosine of picture and prompt times its learned scale (arXiv 2103.00020). It compares
    pictures of one prompt; between prompts it says little. Warns when prompts are cut.
    """

    weights: Weights = PICKSCORE
    batch_size: int = 16
    device: str = field(default_factory=lambda: this_machine().kind)

    def load(self):
        processor = read(self.weights, CLIPProcessor.from_pretrained)
        return whole(CLIPModel, self.weights, self.device), processor

    def results(self, items, model, processor):
        limit = model.config.text_config.max_position_embeddings
        tokens = {i.key: len(processor.tokenizer.tokenize(i.prompt)) + 2 for i in items}
        longest = max(tokens, key=tokens.get)
        if tokens[longest] > limit:
            warnings.warn(
                f"{self.name} reads {limit} tokens of a prompt, and item {longest} has "
                f"{tokens[longest]}: the rest does not count, shorten it",
                stacklevel=3,
            )

        def fits(some):
            batch = processor(
                text=[item.prompt for item in some],
                images=[item.image for item in some],
                padding=True,
                truncation=True,
                max_length=limit,
                return_tensors="pt",
            )
            with torch.inference_mode():
                found = model(**batch.to(self.device))
                cosines = (found.image_embeds * found.text_embeds).sum(-1)  # both of length 1
                return (cosines * model.logit_scale.exp()).tolist()

        return self.run(in_order(items, fits))


@dataclass(eq=False)
class TextOnlyReward(ModelStage):
    """Answer reward that never looks: question and answer as a conversation, nothing else.

    A classifier with one output, over the chat template of its tokenizer. So PDS-DPO scores the
    answers about its pictures (arXiv 2412.17417).
    """

    weights: Weights = SKYWORK
    batch_size: int = 8
    device: str = field(default_factory=lambda: this_machine().kind)

    suffix = " (text only)"

    def load(self):
        tokenizer = read(self.weights, AutoTokenizer.from_pretrained)
        model = whole(AutoModelForSequenceClassification, self.weights, self.device)
        if model.config.num_labels != 1:
            lacks = f"has {model.config.num_labels} outputs, a reward is one"
            raise ModelError(f"{self.weights.name} {lacks}: choose a reward model")
        if tokenizer.chat_template is None or tokenizer.pad_token_id is None:
            lacks = "has no chat template or no padding token"
            raise ModelError(f"{self.weights.name} {lacks}: choose another")
        model.config.pad_token_id = tokenizer.pad_token_id  # it reads the last token before these
        return model, tokenizer

    def results(self, items, model, tokenizer):
        def likes(some):
            talks = [
                [{"role": "user", "content": item.question},
                 {"role": "assistant", "content": str(item.answer)}]
                for item in some
            ]  # fmt: skip
            texts = tokenizer.apply_chat_template(talks, tokenize=False)
            batch = tokenizer(texts, padding=True, add_special_tokens=False, return_tensors="pt")
            with torch.inference_mode():
                return model(**batch.to(self.device)).logits[:, 0].tolist()

        return self.run(in_order(items, likes))
