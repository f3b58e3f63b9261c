"""The pocket VLM: SmolVLM's own architecture (Idefics3) at half a million weights.

Everything here is transformers' own: the configuration, the processor, the checkpoint format. Only
the sizes are ours, and the tokenizer's vocabulary, which is the words of the pocket world.

    model, processor = load()
    python -m tools.train_pocket     # trains it again, from the seed
"""

import random
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import WordLevel
from torch.nn.utils.rnn import pad_sequence
from tqdm.auto import tqdm
from transformers import (
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3ImageProcessorPil,
    Idefics3Processor,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from helpers.pairs.format import turns
from helpers.vlm.answers import Answer, answers
from helpers.vlm.load import load as load_checkpoint
from helpers.world import scenes as world
from helpers.world.drawings import COLOURS

CHECKPOINT = Path(__file__).resolve().parents[2] / "data" / "pocket" / "model"

# The tokens that SmolVLM's tokenizer adds, in the roles they have there.
SPECIAL_TOKENS = ("<|im_start|>", "<|im_end|>", "<|endoftext|>", "<end_of_utterance>")
IMAGE_TOKENS = ("<image>", "<fake_token_around_image>", "<global-img>") + tuple(
    f"<row_{row}_col_{col}>" for row in range(1, 7) for col in range(1, 7)
)
WORDS = sorted(
    set("User Assistant System I see also and Is Are there the to of left Yes No".split())
    | set("What do you an one exactly on in middle right".split())
    | set(world.COUNTS) | set(COLOURS) | set(world.NOUNS)
    | {noun + "s" for noun in world.NOUNS}
)  # fmt: skip
PUNCTUATION = (".", ",", "?", ":")

# "User:<image>What do you see?<end_of_utterance>", a new line, "Assistant: ...": as in SmolVLM.
CHAT_TEMPLATE = (
    "<|im_start|>{% for message in messages %}{{ message['role'] | capitalize }}"
    "{% if message['content'][0]['type'] == 'image' %}{{ ':' }}{% else %}{{ ': ' }}{% endif %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'text' %}{{ part['text'] }}"
    "{% elif part['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}"
    "<end_of_utterance>\n{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)

PIXELS, PATCH, SHUFFLE, WIDTH = 48, 8, 2, 96
INIT = WIDTH**-0.5  # of the language model; transformers' 0.02 leaves so small a one uniform
IMAGE_SEQ_LEN = (PIXELS // PATCH // SHUFFLE) ** 2  # 9 image tokens: one for each place


def build_tokenizer() -> PreTrainedTokenizerFast:
    """One token a word, one a punctuation mark; white space only separates."""
    tokens = SPECIAL_TOKENS + IMAGE_TOKENS + PUNCTUATION + tuple(WORDS)
    tokenizer = Tokenizer(
        WordLevel({token: i for i, token in enumerate(tokens)}, unk_token="<|endoftext|>")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation("isolated")]
    )
    tokenizer.decoder = decoders.WordPiece(cleanup=True)  # joins with spaces, none before "."
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|im_start|>",
        eos_token="<end_of_utterance>",
        pad_token="<|im_end|>",
        unk_token="<|endoftext|>",
        additional_special_tokens=list(IMAGE_TOKENS),
        padding_side="left",
    )


def build_processor() -> Idefics3Processor:
    """SmolVLM's processor class; a picture becomes 48 x 48 pixels and 9 image tokens."""
    image_processor = Idefics3ImageProcessorPil(
        size={"longest_edge": PIXELS},
        max_image_size={"longest_edge": PIXELS},
        do_image_splitting=False,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    return Idefics3Processor(
        image_processor,
        build_tokenizer(),
        image_seq_len=IMAGE_SEQ_LEN,
        chat_template=CHAT_TEMPLATE,
    )


def build_model(processor: Idefics3Processor, seed: int = 0) -> Idefics3ForConditionalGeneration:
    """A new, untrained pocket VLM: vision tower, pixel shuffle and projector, Llama decoder."""
    tokenizer = processor.tokenizer
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    ids = {name: getattr(tokenizer, name) for name in names}
    width = {"hidden_size": WIDTH, "intermediate_size": 2 * WIDTH, "num_attention_heads": 4}
    config = Idefics3Config(
        vision_config={**width, "num_hidden_layers": 2, "image_size": PIXELS, "patch_size": PATCH},
        text_config={
            "model_type": "llama",
            **width,
            "num_hidden_layers": 3,
            "num_key_value_heads": 2,
            "vocab_size": len(tokenizer),
            "max_position_embeddings": 256,
            "tie_word_embeddings": True,
            "initializer_range": INIT,
            **ids,
        },
        scale_factor=SHUFFLE,
        image_token_id=processor.image_token_id,
        tie_word_embeddings=True,
        **ids,
    )
    torch.manual_seed(seed)
    return Idefics3ForConditionalGeneration(config)


def load(
    path: str | Path = CHECKPOINT,
) -> tuple[Idefics3ForConditionalGeneration, Idefics3Processor]:
    """(model, processor) of the bundled checkpoint, read as any checkpoint from the Hub is.

    Raises helpers.vlm.load.ModelError with one sentence when it is missing or corrupt.
    """
    return load_checkpoint(path)


def save(model: PreTrainedModel, processor: Idefics3Processor, path: str | Path) -> None:
    """Write a checkpoint that `from_pretrained` loads with no custom code."""
    model.save_pretrained(path, safe_serialization=True)
    processor.save_pretrained(path)


def captions(
    model: PreTrainedModel, processor: Idefics3Processor, scenes: Sequence[world.Scene], **settings
) -> list[Answer]:
    """Its answer to "What do you see?" about each scene; `settings` as in `answers`."""
    pictures = [world.draw(scene) for scene in scenes]
    asked = [world.DESCRIBE] * len(scenes)
    return answers(model, processor, pictures, asked, **{"batch_size": 256, **settings})


# --- supervised training -------------------------------------------------------------------------


def conversations(scene: world.Scene, rng: random.Random) -> tuple[list[dict], list[dict]]:
    """What is taught about a scene: its caption, and four of its probes in one conversation."""
    asked = rng.sample(world.probes(scene, rng.choice(world.NEGATIVES)), 4)
    texts = [text for probe in asked for text in (probe.question, probe.answer.capitalize())]
    return turns(world.DESCRIBE, world.describe(scene)), turns(*texts)


def encode_conversations(
    processor: Idefics3Processor, scenes: Sequence[world.Scene], seed: int = 0
) -> dict:
    """The conversations about all scenes as tensors; row i of each is about scene i.

    Returns `captions` and `questions`, each (input_ids, labels) of shape (scenes, length), padded
    on the right, labels -100 outside the answers, and `pixel_values` (scenes, 1, 3, 48, 48).
    """
    rng, chunk = random.Random(seed), 200
    ids, pixels = {"captions": [], "questions": []}, []
    for start in tqdm(range(0, len(scenes), chunk), desc="drawing", leave=False):
        some = scenes[start : start + chunk]
        images = [[world.draw(scene)] for scene in some]
        taught = [conversations(scene, rng) for scene in some]
        for kind, talks in zip(ids, zip(*taught, strict=True), strict=True):
            text = processor.apply_chat_template(list(talks), tokenize=False)
            batch = processor(images=images, text=text)
            ids[kind] += [torch.tensor(row) for row in batch["input_ids"]]
        pixels += [torch.as_tensor(picture) for picture in batch["pixel_values"]]
    labelled = {kind: _labelled(rows, processor.tokenizer) for kind, rows in ids.items()}
    return {**labelled, "pixel_values": torch.stack(pixels)}


def _labelled(rows, tokenizer):
    """(input_ids, labels), scored after "Assistant:", up to and with <end_of_utterance>."""
    ids = pad_sequence(rows, batch_first=True, padding_value=tokenizer.pad_token_id)
    assistant, end = tokenizer.convert_tokens_to_ids(["Assistant", tokenizer.eos_token])
    ends = (ids == end).long()
    turn = ends.cumsum(1) - ends  # 0 for the first question, 1 for its answer, and so on
    speaker = (ids == assistant) | (ids == assistant).roll(1, 1)  # "Assistant" and ":"
    return ids, ids.where((turn % 2 == 1) & ~speaker, -100)


def train_supervised(
    model: PreTrainedModel,
    lessons: dict,
    epochs: int,
    batch_size: int = 48,
    lr: float = 1.5e-3,
    seed: int = 0,
    log: Callable[[int, float], None] | None = None,
) -> PreTrainedModel:
    """Next-token training on the answers: AdamW, one-cycle learning rate, on the CPU.

    `lessons` from `encode_conversations`. Each step sees captions or questions, in turn: in a mixed
    batch the many words of the captions would drown the few of the answers. `log(step, loss)` is
    called after every step. Returns the model. Raises ValueError for fewer than four steps.
    """
    pixels = lessons["pixel_values"]
    order = torch.Generator().manual_seed(seed)
    per_epoch = len(pixels) // batch_size
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.98), weight_decay=0.05)
    steps = 2 * epochs * per_epoch
    if steps < 4:
        raise ValueError(f"only {steps} steps: take more scenes or epochs, or a smaller batch_size")
    warmup = max(0.1, 2 / steps)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, steps, pct_start=warmup)
    model.train()
    for step in (progress := tqdm(range(steps), desc="supervised training")):
        if step % (2 * per_epoch) == 0:
            epoch = torch.randperm(len(pixels), generator=order)
        start = (step // 2) % per_epoch * batch_size
        rows = epoch[start : start + batch_size]
        ids, labels = lessons["questions" if step % 2 else "captions"]
        length = int((labels[rows] != -100).any(0).nonzero().max()) + 1  # no column of padding
        loss = model(
            input_ids=ids[rows, :length], labels=labels[rows, :length], pixel_values=pixels[rows]
        ).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 2 == 0:
            progress.set_postfix(caption_loss=f"{loss.item():.3f}", refresh=False)
        if log:
            log(step, loss.item())
    return model.eval()
