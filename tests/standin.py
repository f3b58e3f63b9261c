"""Small doubles of what the GPU tracks download: a checkpoint like SmolVLM's, pairs like RLAIF-V's.

    hub.add("models", "HuggingFaceTB/SmolVLM-256M-Instruct", smolvlm(tmp_path / "model"))
    hub.add("datasets", "openbmb/RLAIF-V-Dataset", {"README.md": CARD, **rlaifv_shards(60)})

Classes, columns, types and forms are the real ones; sizes are not, and nothing is copied from them.
"""

import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import torch
from datasets import Features, Image, List, Value
from PIL import Image as PILImage
from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers.models import BPE
from transformers import (
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3ImageProcessorPil,
    Idefics3Processor,
    PreTrainedTokenizerFast,
)

from helpers.vlm.pocket import CHAT_TEMPLATE, SPECIAL_TOKENS

SIDE = 8  # the most rows and columns of tiles that have a token: 512 pixels in tiles of 64
IMAGE_TOKENS = ("<image>", "<fake_token_around_image>", "<global-img>") + tuple(
    f"<row_{row}_col_{col}>" for row in range(1, SIDE + 1) for col in range(1, SIDE + 1)
)

# What the tokenizer's merges are learned from. Every other text is spelled in bytes.
SENTENCES = (
    "What is in the image? Describe the picture in detail. How many people are there?",
    "There is a wooden table with a white plate, and a dog is sitting beside the window.",
    "The man in the red shirt is holding an umbrella while two children play on the grass.",
    "In the background there are several parked cars, a tree and a tall building.",
)


# --- a checkpoint ------------------------------------------------------------------------------


def smolvlm(folder, tile=64):
    """Save a random Idefics3 model and its processor as safetensors in bf16; returns the folder.

    Tiles have `tile` pixels and 4 image tokens; pictures are resized to four tiles a side, so that
    a square one takes 17, as in SmolVLM. With tile=512, its own, an image_edge means what it does
    there.
    """
    processor = _processor(tile)
    model = _model(processor, tile)
    model.to(torch.bfloat16).save_pretrained(folder, safe_serialization=True)
    processor.save_pretrained(folder)
    return folder


def _tokenizer():
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = list(SPECIAL_TOKENS + IMAGE_TOKENS)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        SENTENCES,
        trainers.BpeTrainer(
            vocab_size=512, special_tokens=special, initial_alphabet=alphabet, show_progress=False
        ),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|im_start|>",
        eos_token="<end_of_utterance>",
        pad_token="<|im_end|>",
        unk_token="<|endoftext|>",
        additional_special_tokens=list(IMAGE_TOKENS),
    )


def _processor(tile):
    image_processor = Idefics3ImageProcessorPil(
        size={"longest_edge": 4 * tile},
        max_image_size={"longest_edge": tile},
        do_image_splitting=True,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    return Idefics3Processor(
        image_processor, _tokenizer(), image_seq_len=4, chat_template=CHAT_TEMPLATE
    )


def _model(processor, tile):
    tokenizer = processor.tokenizer
    ids = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    config = Idefics3Config(
        vision_config={
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": tile,
            "patch_size": tile // 8,  # 64 patches a tile, shuffled 16 into one: 4 tokens
        },
        text_config={
            "model_type": "llama",
            "hidden_size": 128,
            "intermediate_size": 256,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,  # every projection is a multiple of 64 wide, as 4 bits want
            "vocab_size": len(tokenizer),
            "max_position_embeddings": 8192,
            "tie_word_embeddings": False,
            **ids,
        },
        scale_factor=4,
        image_token_id=processor.image_token_id,
        tie_word_embeddings=False,
        **ids,
    )
    torch.manual_seed(0)
    return Idefics3ForConditionalGeneration(config)


# --- preference pairs --------------------------------------------------------------------------

RLAIFV = Features(
    ds_name=Value("string"),
    image=Image(),
    question=Value("string"),
    chosen=Value("string"),
    rejected=Value("string"),
    origin_dataset=Value("string"),
    origin_split=Value("string"),
    idx=Value("string"),
    image_path=Value("string"),
)
_COLUMNS = "".join(
    f"  - name: {name}\n    dtype: {'image' if name == 'image' else 'string'}\n" for name in RLAIFV
)
CARD = f"---\nlicense: cc-by-nc-4.0\ndataset_info:\n  features:\n{_COLUMNS}---\n# Generated pairs\n"

SIZES = ((160, 120), (120, 160), (128, 128), (200, 112), (96, 64), (90, 150))  # pixels
THINGS = ("table", "dog", "window", "umbrella", "tree", "plate", "car", "bicycle", "lamp")
COLOURS = ("red", "white", "green", "wooden", "yellow", "dark")


def rlaifv_shards(count, shards=3, seed=0):
    """{path: parquet bytes} of `count` pairs in RLAIF-V's schema, three row groups a shard.

    Every tenth pair is about the image of the one before it. (The real shards are named
    RLAIF-V-Dataset_000.parquet and so on; the card, and not the name, says what is in them.)
    """
    rows = _rows(count, seed)
    edges = [count * i // shards for i in range(shards + 1)]
    return {
        f"data/train-{i:05d}-of-{shards:05d}.parquet": _parquet(rows[start:end], RLAIFV)
        for i, (start, end) in enumerate(zip(edges, edges[1:], strict=False))
    }


def formatted(count, splits=("train", "test"), seed=0):
    """Such pairs in conversations, {path: parquet bytes}: `count` in one shard for each split.

    HuggingFaceH4/rlaif-v_formatted and trl-lib/rlaif-v have this form and these splits. Arrow gives
    the image part of a prompt a `text` of None, there as here.
    """
    part = {"type": Value("string"), "text": Value("string")}
    message = List({"content": List(part), "role": Value("string")})
    features = Features(images=List(Image()), prompt=message, chosen=message, rejected=message)
    return {
        f"data/{split}-00000-of-00001.parquet": _parquet(
            [_conversation(row) for row in _rows(count, seed + i)], features
        )
        for i, split in enumerate(splits)
    }


def _conversation(row):
    def turn(role, text, *images):
        return [{"role": role, "content": [*images, {"type": "text", "text": text}]}]

    return {
        "images": [row["image"]],
        "prompt": turn("user", row["question"], {"type": "image", "text": None}),
        "chosen": turn("assistant", row["chosen"]),
        "rejected": turn("assistant", row["rejected"]),
    }


def _parquet(rows, features):
    table = pa.Table.from_pylist(rows, schema=features.arrow_schema)
    file = io.BytesIO()
    pyarrow.parquet.write_table(table, file, row_group_size=max(1, -(-len(rows) // 3)))
    return file.getvalue()


def _rows(count, seed):
    rng, rows = np.random.default_rng(seed), []
    for i in range(count):
        image = rows[-1]["image"] if i % 10 == 9 else {"bytes": _photo(rng), "path": None}
        colour, other = rng.choice(COLOURS, 2, replace=False)
        thing, absent = rng.choice(THINGS, 2, replace=False)
        rows.append(
            {
                "ds_name": "RLAIF-V",
                "image": image,
                "question": f"What is beside the {thing}? Picture {i}.",
                "chosen": f"There is a {colour} {thing}, and nothing else can be seen clearly.",
                "rejected": f"There is a {other} {thing}, and a {absent} stands right beside it.",
                "origin_dataset": "a generated set",
                "origin_split": json.dumps({"model": "stand-in", "type": "question"}),
                "idx": str(i),
                "image_path": f"pictures/{i:06d}.jpg",
            }
        )
    return rows


def _photo(rng):
    """JPEG bytes of smooth colours with grain: it compresses as a photograph does."""
    width, height = SIZES[rng.integers(len(SIZES))]
    smooth = PILImage.fromarray(rng.integers(0, 256, (4, 5, 3), dtype=np.uint8))
    pixels = np.asarray(smooth.resize((width, height), PILImage.Resampling.BICUBIC), np.int16)
    grain = rng.integers(-12, 13, pixels.shape)
    file = io.BytesIO()
    PILImage.fromarray((pixels + grain).clip(0, 255).astype(np.uint8)).save(file, "JPEG")
    return file.getvalue()
