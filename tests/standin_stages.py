"""Small doubles of what helpers.feedback.hub_stages loads: the real classes, random weights.

    Painter(Weights(str(sd_turbo(tmp_path)), variant="fp16"), size=64)

Each function saves to a folder as the published checkpoint is saved, and returns the folder.
"""

import torch
from diffusers import (
    AutoencoderKL,
    EulerDiscreteScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    CLIPVisionConfig,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForSequenceClassification,
)

BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())
SIZES = {"intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
TURNS = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{{ message.content }}<|im_end|>\n{% endfor %}"
)


def _clip_tokenizer():
    texts = [*BYTES, *(byte + "</w>" for byte in BYTES), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {text: i for i, text in enumerate(texts)}
    return CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=77)


def _clip_text(tokenizer):
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    pad = tokenizer.pad_token_id
    return CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=32, pad_token_id=pad, **ends, **SIZES
    )


def _clip_vision():
    return CLIPVisionConfig(hidden_size=32, image_size=32, patch_size=8, **SIZES)


def _clip_pictures():
    return CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})


def sd_turbo(folder, overflowing=False, censored=False):
    """A StableDiffusionPipeline, in float16 like the published one; its latents are half a side.

    `overflowing`: activations that float32 holds and float16 does not. `censored`: with a safety
    checker that objects to everything.
    """
    torch.manual_seed(0)
    tokenizer = _clip_tokenizer()
    unet = UNet2DConditionModel(
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=32,
        norm_num_groups=8,
    )
    vae = AutoencoderKL(
        block_out_channels=(32, 64),
        down_block_types=["DownEncoderBlock2D"] * 2,
        up_block_types=["UpDecoderBlock2D"] * 2,
        latent_channels=4,
        norm_num_groups=8,
    )
    if overflowing:
        vae.decoder.conv_in.weight.data *= 60_000
    pipe = StableDiffusionPipeline(
        vae=vae,
        text_encoder=CLIPTextModel(_clip_text(tokenizer)),
        tokenizer=tokenizer,
        unet=unet,
        scheduler=EulerDiscreteScheduler(timestep_spacing="trailing", steps_offset=1),
        safety_checker=_censor(tokenizer) if censored else None,
        feature_extractor=_clip_pictures() if censored else None,
        requires_safety_checker=censored,
    )
    for part in (pipe.vae, pipe.unet, pipe.text_encoder, pipe.safety_checker):
        if part is not None:
            part.half()
    pipe.save_pretrained(folder, safe_serialization=True, variant="fp16")
    return folder


def _censor(tokenizer):
    config = CLIPConfig(
        text_config=_clip_text(tokenizer).to_dict(),
        vision_config=_clip_vision().to_dict(),
        projection_dim=16,
    )
    checker = StableDiffusionSafetyChecker(config)
    checker.concept_embeds_weights.data.fill_(-2.0)  # every cosine is above it
    return checker


def pickscore(folder):
    """A CLIPModel with its processor."""
    torch.manual_seed(0)
    tokenizer = _clip_tokenizer()
    config = CLIPConfig(
        text_config=_clip_text(tokenizer).to_dict(),
        vision_config=_clip_vision().to_dict(),
        projection_dim=16,
    )
    CLIPModel(config).save_pretrained(folder)
    CLIPProcessor(_clip_pictures(), tokenizer).save_pretrained(folder)
    return folder


def skywork(folder, kind=Qwen3ForSequenceClassification, labels=1, template=TURNS):
    """A Qwen3 with one output, and a tokenizer with a chat template, in bf16."""
    torch.manual_seed(0)
    tokenizer = _qwen_tokenizer(template)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        head_dim=8,
        num_key_value_heads=2,
        num_labels=labels,
        pad_token_id=tokenizer.convert_tokens_to_ids("<|im_end|>"),  # not the tokenizer's
        **SIZES,
    )
    kind(config).to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _qwen_tokenizer(template):
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokenizer = Tokenizer(BPE({text: i for i, text in enumerate(special + BYTES)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(special)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=template,
    )


def pickled(folder, name):
    """Turn a file of safetensors in the folder into the pickle that older checkpoints have."""
    path = folder / name
    stem, *variant, _ = path.name.split(".")
    old = "pytorch_model" if stem == "model" else stem
    torch.save(load_file(path), path.with_name(".".join([old, *variant, "bin"])))
    path.unlink()
    return folder
