"""What the reproductions share: a random Idefics3 of SmolVLM's kind, two pairs, a DPOTrainer.

    trainer = dpo_trainer(max_steps=1)     # on the CPU, in float32, without a network
    trainer.train()
    verdict(there=..., expected="one pass", happens="two passes")      # the end of each script

Needs torch, transformers, trl, peft, datasets, tokenizers, Pillow and numpy; no checkpoint.
"""

import os
import sys
import tempfile

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch
import transformers
from datasets import Dataset, Features, Image, List, Value
from peft import LoraConfig
from PIL import Image as PILImage
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3ImageProcessorPil,
    Idefics3Processor,
    PreTrainedTokenizerFast,
)
from trl import DPOConfig, DPOTrainer

PIXELS, PATCH = 32, 8  # 16 patches an image; pixel shuffle makes 4 tokens of them
SPECIAL = ["<pad>", "<bos>", "<end_of_utterance>", "<unk>"]
SPECIAL += ["<image>", "<fake_token_around_image>", "<global-img>"]
WORDS = "User Assistant : . ? What is this A red blue square circle on the left right".split()
TEMPLATE = (
    "<bos>{% for m in messages %}{{ m['role'] | capitalize }} : "
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for p in m['content'] %}"
    "{{ '<image>' if p['type'] == 'image' else p['text'] }}{% endfor %}{% endif %}"
    " <end_of_utterance>{% endfor %}{% if add_generation_prompt %}Assistant : {% endif %}"
)


def processor():
    """Idefics3Processor with a vocabulary of two dozen words; a picture is 4 tokens, no tiles."""
    words = Tokenizer(
        models.WordLevel({w: i for i, w in enumerate(SPECIAL + WORDS)}, unk_token="<unk>")
    )
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<end_of_utterance>",
        unk_token="<unk>",
        additional_special_tokens=SPECIAL[4:],
    )
    edge = {"longest_edge": PIXELS}
    images = Idefics3ImageProcessorPil(size=edge, max_image_size=edge, do_image_splitting=False)
    return Idefics3Processor(images, tokenizer, image_seq_len=4, chat_template=TEMPLATE)


def model(seed=0):
    """Two vision layers, two decoder layers, 64 wide, random."""
    width = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    config = Idefics3Config(
        vision_config={**width, "image_size": PIXELS, "patch_size": PATCH},
        text_config={
            **width,
            **ids,
            "model_type": "llama",
            "num_key_value_heads": 4,
            "vocab_size": len(SPECIAL + WORDS),
        },
        scale_factor=2,
        image_token_id=SPECIAL.index("<image>"),
        tie_word_embeddings=False,
        **ids,
    )
    torch.manual_seed(seed)
    return Idefics3ForConditionalGeneration(config)


def pairs(count=2):
    """A conversational preference dataset with a column `images`, one picture a row."""

    def turn(role, text):
        return [{"role": role, "content": text}]

    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (count, PIXELS, PIXELS, 3), dtype=np.uint8)
    rows = [
        {
            "images": [PILImage.fromarray(picture)],
            "prompt": turn("user", "What is this ?"),
            "chosen": turn("assistant", "A red square on the left ."),
            "rejected": turn("assistant", "A blue circle ."),
        }
        for picture in pixels
    ]
    talk = List({"role": Value("string"), "content": Value("string")})
    columns = {"images": List(Image()), "prompt": talk, "chosen": talk, "rejected": talk}
    return Dataset.from_list(rows, features=Features(columns))


def text_lora():
    """LoRA on the language model only: the vision tower and the connector stay frozen."""
    return LoraConfig(r=4, target_modules=r".*text_model.*\.(q|v)_proj")


def dpo_trainer(dataset=None, policy=None, **settings):
    """TRL's DPOTrainer on `pairs()` with a new text-only adapter; `settings` go to DPOConfig."""
    defaults = {
        "output_dir": os.path.join(tempfile.gettempdir(), "reproduction"),
        "per_device_train_batch_size": 2,
        "max_steps": 1,
        "logging_steps": 1,
        "max_length": None,
        "bf16": False,
        "use_cpu": True,
        "disable_tqdm": True,
        "report_to": "none",
        "save_strategy": "no",
        "dataloader_pin_memory": False,
    }
    trainer = DPOTrainer(
        policy or model(),
        args=DPOConfig(**{**defaults, **settings}),
        train_dataset=dataset or pairs(),
        processing_class=processor(),
        peft_config=text_lora(),
    )
    trainer.remove_callback(transformers.PrinterCallback)
    return trainer


def verdict(there, expected, happens):
    """Print both and end the script: status 0 while the fault is there, else 1 and a sentence."""
    print("expected:", expected)
    print("happens: ", happens)
    sys.exit(0 if there else "mended: what is expected is what happens now")
