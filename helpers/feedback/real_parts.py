"""The pipeline's stages on the GPU tracks: published models, one in memory at a time.

    paint = Painter(steps=4)                # prompt -> picture
    fits = PromptFit()                      # prompt and picture -> a number
    answer = [Answerer(track) for track in answer_tracks(choose("t4"))]
    judges = [TextOnlyReward(), SightedReward(track), FactCount(track)]

The last three of these look with a VLM and come from `helpers.feedback.lookers`. The choices, and
what was read about them in November 2026; no time and no memory of a GPU was measured:

stabilityai/sd-turbo draws 512 pixels in 1 to 4 steps without guidance, so that several candidates a
    prompt are cheap; PDS-DPO's SD3-medium is gated and takes 28 steps. In fp16 the UNet is 1.73 GB
    and the VAE 0.17 GB, beside a text encoder. Its card sends commercial users to
    stability.ai/license. It has no safety checker: look at what you publish. To vary the guidance,
    and with a checker, take Stable Diffusion 1.5 (openrail-m; its files were not looked at):
    Painter(Weights("stable-diffusion-v1-5/stable-diffusion-v1-5", variant="fp16"), 28, 7.0).
yuvalkirstain/PickScore_v1 (arXiv 2305.01569) is CLIP-H, tuned on people's choices between pictures
    of one prompt: 3.94 GB in float32, read by transformers. PDS-DPO's ImageReward is a pickle that
    needs a package of its own; plain CLIP has seen no choices. Its card states no licence.
Skywork/Skywork-Reward-V2-Qwen3-0.6B (arXiv 2507.01352) is small and reads a whole conversation:
    0.6 billion weights, about 2.4 GB in float32. The cards of its larger siblings of 4 and 8
    billion say Apache-2.0; its own was not seen, nor a revision to pin.

None asks for an account. Only safetensors are read, and no code from the Hub is run.
"""

import warnings
from dataclasses import dataclass, field

import numpy as np
import torch
from PIL import Image
from transformers import AutoModelForSequenceClassification, AutoTokenizer, CLIPModel, CLIPProcessor

from helpers.feedback.lookers import Answerer, FactCount, SightedReward, answer_tracks
from helpers.feedback.part import (
    Part,
    PartError,
    Weights,
    accelerator,
    in_order,
    read,
    require,
    short,
    whole,
)
from helpers.vlm.load import ModelError

__all__ = [
    "Answerer", "FactCount", "Painter", "PartError", "PromptFit", "SightedReward",
    "TextOnlyReward", "Weights", "answer_tracks",
]  # fmt: skip

SD_TURBO = Weights("stabilityai/sd-turbo", "b261bac6fd2cf515557d5d0707481eafa0485ec2", "fp16")
PICKSCORE = Weights("yuvalkirstain/PickScore_v1", "dc2ed378e35ed7046987c680120123faa75b4559")
SKYWORK = Weights("Skywork/Skywork-Reward-V2-Qwen3-0.6B")


@dataclass(eq=False)
class Painter(Part):
    """Image generator: `item.prompt` -> a square picture of `size` pixels, by diffusers.

    Yields. The noise comes from `item.seed` alone and is drawn on the CPU: a picture is the same
    in any batch and on any machine, but for the last digits of their arithmetic. Raises PartError,
    naming the item, for a picture that is not a number (float16 overflows), is of one colour, or
    that a safety checker blacked out; those before it are kept.
    """

    weights: Weights = SD_TURBO
    steps: int = 4
    guidance: float = 0.0  # turbo models were distilled without; others take 5 to 11
    size: int = 512
    batch_size: int = 4
    device: str = field(default_factory=accelerator)
    dtype: str | None = None  # None: float16 on CUDA, float32 elsewhere

    remedy = "lower `size`, or restart the kernel to free the memory"

    def __post_init__(self):
        if self.size < 8 or self.size % 8:
            raise ValueError(f"size={self.size}: choose a multiple of 8 pixels")
        if self.steps < 1:
            raise ValueError(f"steps={self.steps}: a picture takes one or more")
        self.dtype = self.dtype or ("float16" if self.device == "cuda" else "float32")

    @property
    def name(self):
        return short(self.weights.name)

    @property
    def settings(self):
        how = {"steps": self.steps, "guidance": self.guidance, "size": self.size}
        return {"weights": str(self.weights), "dtype": self.dtype, **how}

    def load(self):
        from diffusers import AutoPipelineForText2Image  # 5 s that no other part has to wait for

        how = {"dtype": getattr(torch, self.dtype), "variant": self.weights.variant}
        pipe = read(
            self.weights,
            lambda name, **at: AutoPipelineForText2Image.from_pretrained(
                name, use_safetensors=True, **at, **how
            ),
        )
        pipe.set_progress_bar_config(disable=True)
        return (pipe.to(self.device),)

    def results(self, items, pipe):
        require(items, "prompt")
        for item, (pixels, flag) in zip(items, self._drawn(items, pipe), strict=True):
            if fault := fault_of(pixels, flag):
                raise PartError(f"item {item.key}, {item.prompt!r}: {fault}")
            yield Image.fromarray((255 * pixels).round().astype(np.uint8))

    def _drawn(self, items, pipe):
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

        return self.stream(in_order(items, draw), items)


def fault_of(pixels, flagged=False):
    """What is wrong with a picture (height, width, 3) in 0 to 1, and what to do; or None."""
    if flagged:
        return "the safety checker blacked the picture out: change the prompt"
    if not np.isfinite(pixels).all():
        return "the picture is not a number, as when float16 overflows: use dtype='float32'"
    if np.ptp(pixels) == 0:
        return "the picture is of one colour: change the prompt, or use dtype='float32'"


class Judge(Part):
    """A reward with published weights, in float32: nothing else of it changes a score."""

    @property
    def name(self):
        return short(self.weights.name)

    @property
    def settings(self):
        return {"weights": str(self.weights)}


@dataclass(eq=False)
class PromptFit(Judge):
    """Image reward: how well a picture fits its prompt and pleases, by a CLIP model.

    CLIP's cosine of picture and prompt times its learned scale (arXiv 2103.00020). It compares
    pictures of one prompt; between prompts it says little. Warns when prompts are cut.
    """

    weights: Weights = PICKSCORE
    batch_size: int = 16
    device: str = field(default_factory=accelerator)

    def load(self):
        processor = read(self.weights, CLIPProcessor.from_pretrained)
        return whole(CLIPModel, self.weights, self.device), processor

    def results(self, items, model, processor):
        require(items, "prompt", "image")
        limit = model.config.text_config.max_position_embeddings
        self._warn_of_cut(items, processor.tokenizer, limit)

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

        return self.run(in_order(items, fits), items)

    def _warn_of_cut(self, items, tokenizer, limit):
        tokens = {item.key: len(tokenizer.tokenize(item.prompt)) + 2 for item in items}
        longest = max(tokens, key=tokens.get)
        if tokens[longest] > limit:
            warnings.warn(
                f"{self.name} reads {limit} tokens of a prompt, and item {longest} has "
                f"{tokens[longest]}: the rest does not count, shorten it",
                stacklevel=4,
            )


@dataclass(eq=False)
class TextOnlyReward(Judge):
    """Answer reward that never looks: question and answer as a conversation, nothing else.

    A classifier with one output, over the chat template of its tokenizer. So PDS-DPO scores the
    answers about its pictures (arXiv 2412.17417).
    """

    weights: Weights = SKYWORK
    batch_size: int = 8
    device: str = field(default_factory=accelerator)

    @property
    def name(self):
        return f"{super().name} (text only)"

    def load(self):
        tokenizer = read(self.weights, AutoTokenizer.from_pretrained)
        model = whole(AutoModelForSequenceClassification, self.weights, self.device)
        if model.config.num_labels != 1:
            raise ModelError(
                f"{self.weights.name} has {model.config.num_labels} outputs, a reward is one: "
                "choose a reward model"
            )
        if tokenizer.chat_template is None or tokenizer.pad_token_id is None:
            raise ModelError(
                f"{self.weights.name} has no chat template or no padding token: choose another"
            )
        model.config.pad_token_id = tokenizer.pad_token_id  # it reads the last token before these
        return model, tokenizer

    def results(self, items, model, tokenizer):
        require(items, "question", "answer")

        def likes(some):
            texts = tokenizer.apply_chat_template([_talk(item) for item in some], tokenize=False)
            batch = tokenizer(texts, padding=True, add_special_tokens=False, return_tensors="pt")
            with torch.inference_mode():
                return model(**batch.to(self.device)).logits[:, 0].tolist()

        return self.run(in_order(items, likes), items)


def _talk(item):
    return [
        {"role": "user", "content": item.question},
        {"role": "assistant", "content": str(item.answer)},
    ]
