"""SmolVLM's published dimensions: its model and its processor without a download.

    model = shapes(config("256M"))      # 256,484,928 weights, none of them in memory
    reader = processor("256M", tokenizer)

For counting memory and tokens before anything is loaded, and for rehearsals with random weights.
Every number is from the files config.json, preprocessor_config.json and processor_config.json on
the Hub: HuggingFaceTB/SmolVLM-256M-Instruct, SmolVLM-500M-Instruct and SmolVLM-Instruct (2.2B).
"""

import torch
from transformers import (
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3ImageProcessorPil,
    Idefics3Processor,
    PreTrainedTokenizerBase,
)

# SigLIP base, patches of 16 in tiles of 512 pixels: the 256M and the 500M share it.
_SIGLIP_BASE = {
    "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
    "num_attention_heads": 12, "image_size": 512, "patch_size": 16,
}  # fmt: skip
_LLAMA = {"model_type": "llama", "head_dim": 64, "rms_norm_eps": 1e-5, "pad_token_id": 2}

PUBLISHED = {
    "256M": {
        "text_config": {  # SmolLM2-135M
            "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
            "num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49280,
            "max_position_embeddings": 8192, "rope_theta": 100000.0,
        },
        "vision_config": _SIGLIP_BASE, "scale_factor": 4, "image_token_id": 49190,
    },
    "500M": {
        "text_config": {  # SmolLM2-360M
            "hidden_size": 960, "intermediate_size": 2560, "num_hidden_layers": 32,
            "num_attention_heads": 15, "num_key_value_heads": 5, "vocab_size": 49280,
            "max_position_embeddings": 8192, "rope_theta": 100000.0,
        },
        "vision_config": _SIGLIP_BASE, "scale_factor": 4, "image_token_id": 49190,
    },
    "2.2B": {
        "text_config": {  # SmolLM2-1.7B
            "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 24,
            "num_attention_heads": 32, "num_key_value_heads": 32, "vocab_size": 49155,
            "max_position_embeddings": 16384, "rope_theta": 273768.0,
        },
        "vision_config": {  # SigLIP so400m, patches of 14 in tiles of 384 pixels
            "hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27,
            "num_attention_heads": 16, "image_size": 384, "patch_size": 14,
        },
        "scale_factor": 3, "image_token_id": 49153,
    },
}  # fmt: skip
TILES_ACROSS = 4  # published processors enlarge a picture to four tiles along its longest edge


def config(size: str, **changes) -> Idefics3Config:
    """The Idefics3Config of "256M", "500M" or "2.2B"; `changes` replace its top-level fields.

    The embeddings and the output layer are two matrices in all three. Raises ValueError for an
    unknown size.
    """
    if size not in PUBLISHED:
        raise ValueError(f"no published SmolVLM of size {size!r}: choose {', '.join(PUBLISHED)}")
    published = PUBLISHED[size]
    text = {**_LLAMA, **published["text_config"]}
    return Idefics3Config(**{"pad_token_id": 2, **published, "text_config": text, **changes})


def shapes(config: Idefics3Config) -> Idefics3ForConditionalGeneration:
    """The model of an Idefics3Config on torch's meta device: every shape, no number, no memory."""
    with torch.device("meta"):
        return Idefics3ForConditionalGeneration(config)


def processor(
    size: str, tokenizer: PreTrainedTokenizerBase, chat_template: str | None = None
) -> Idefics3Processor:
    """The Idefics3Processor of a size, around any tokenizer that has SmolVLM's image tokens."""
    published = config(size)
    tile = published.vision_config.image_size
    image_processor = Idefics3ImageProcessorPil(
        size={"longest_edge": TILES_ACROSS * tile},
        max_image_size={"longest_edge": tile},
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    return Idefics3Processor(
        image_processor, tokenizer, tile_tokens(published), chat_template=chat_template
    )


def patches_across(config: Idefics3Config) -> int:
    """Patches along one edge of a tile. Where they do not divide it, the rest is cut off."""
    return config.vision_config.image_size // config.vision_config.patch_size


def tile_tokens(config: Idefics3Config) -> int:
    """Positions that one tile takes in the prompt, after the pixel shuffle."""
    return (patches_across(config) // config.scale_factor) ** 2
