"""Cards for what is published: the facts that a stranger needs, and no more than was measured.

    data = Data("openbmb/RLAIF-V-Dataset", revision, "cc-by-nc-4.0", train=1000, test=100)
    results = [Measured("captions with a false object", 0.35, 0.13, -0.25, -0.19, n=1000)]
    card = adapter_card("me/smolvlm-dpo", base, data, settings_of(trainer), results, "NVIDIA T4")
    print(card)

The head of a card is what the Hub reads: licence, base model, data. The rest is for people.
"""

from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from huggingface_hub import DatasetCard, DatasetCardData, ModelCard, ModelCardData

from helpers.setup.hub import TAGS


@dataclass(frozen=True)
class Data:
    """The pairs behind a card: where they come from, and how many were used."""

    name: str  # on the Hub, or in words
    revision: str | None
    licence: str | None  # as the Hub spells it, such as "cc-by-nc-4.0"
    train: int
    test: int = 0


@dataclass(frozen=True)
class Measured:
    """A metric on the same n items before and after; low to high is the change's 95% interval."""

    metric: str
    before: float
    after: float
    low: float
    high: float
    n: int


def on_hub(name):
    """Whether a name can be one on the Hub: owner/name, and no folder here."""
    return name.count("/") == 1 and not name.startswith((".", "/", "~")) and not Path(name).exists()


def _named(data):
    name = f"[{data.name}](https://huggingface.co/datasets/{data.name})"
    named = name if on_hub(data.name) else data.name
    return named + (f", revision `{data.revision}`" if data.revision else "")


def dataset_card(repo_id, data, split_by):
    """The card of formatted pairs. data: the `Data` they were made of, split_by: how, in words."""
    head = DatasetCardData(
        license=data.licence or "unknown",
        task_categories=["image-text-to-text"],
        source_datasets=[data.name] if on_hub(data.name) else None,
        tags=list(TAGS),
    )
    terms = data.licence or "none stated; ask the owners of the source before you use it"
    return DatasetCard(f"""---
{head.to_yaml()}
---
# {repo_id.split("/")[-1]}

Preference pairs for Direct Preference Optimization of a vision language model, in the
conversational form of TRL: `images`, `prompt`, `chosen`, `rejected`.

- **Source**: {_named(data)}
- **Rows**: {data.train:,} for training, {data.test:,} for testing
- **Split**: {split_by}
- **Images**: the bytes of the source, not decoded and encoded again
- **Licence**: the source's: {terms}. The pictures may have terms of their own

```python
from datasets import load_dataset

pairs = load_dataset("{repo_id}", split="train")
```

The answers and the preferences are the source's, with its mistakes. Nothing was checked by hand.
""")


def settings_of(trainer):
    """What a trained DPOTrainer was set to: {name: value}, in the order of the card."""
    args, adapter = trainer.args, trainer.model.peft_config["default"]
    batch = args.per_device_train_batch_size, args.gradient_accumulation_steps, args.world_size
    return {
        "loss": " + ".join(args.loss_type),
        "beta": args.beta,
        "learning rate": args.learning_rate,
        "pairs a step": "{} x {} accumulated x {} device(s)".format(*batch),
        "steps": trainer.state.global_step,
        "LoRA rank": adapter.r,
        "precision": _precision(trainer),
        "seed": args.seed,
    }


def _precision(trainer):
    """Computation, adapter and base: three precisions that need not be the same."""
    mixed = "fp16 mixed" if trainer.args.fp16 else "bf16 mixed" if trainer.args.bf16 else "float32"
    weights = {p.requires_grad: str(p.dtype).split(".")[-1] for p in trainer.model.parameters()}
    base = trainer.model.get_base_model()
    frozen = "4 bits" if getattr(base, "is_loaded_in_4bit", False) else weights[False]
    return f"{mixed}; adapter in {weights[True]}, frozen base in {frozen}"


def adapter_card(repo_id, base_model, data, settings, measured, hardware, limits=""):
    """The card of a LoRA adapter trained by DPO.

    base_model: its Hub id, or a folder; data: `Data`; settings: a dict as `settings_of` gives it;
    measured: rows of `Measured`, [] if nothing was measured, which the card then says; hardware and
    limits: in words. The licence is that of the data, the stricter of the two for RLAIF-V.
    """
    head = ModelCardData(
        base_model=base_model if on_hub(base_model) else None,
        datasets=[data.name] if on_hub(data.name) else None,
        library_name="peft",
        license=data.licence or "unknown",
        pipeline_tag="image-text-to-text",
        tags=["dpo", "lora", "trl"],
    )
    rows = "\n".join(f"| {name} | {value} |" for name, value in settings.items())
    base = base_model if on_hub(base_model) else Path(base_model).name
    where = "" if on_hub(base_model) else " (a folder of its own, not on the Hub)"
    return ModelCard(f"""---
{head.to_yaml()}
---
# {repo_id.split("/")[-1]}

A LoRA adapter for `{base}`{where}, trained by Direct Preference
Optimization on preference pairs about pictures.

```python
from peft import PeftModel
from transformers import AutoModelForImageTextToText

base = AutoModelForImageTextToText.from_pretrained("{base}")
model = PeftModel.from_pretrained(base, "{repo_id}")
```

## Data

{_named(data)}: {data.train:,} pairs for training, {data.test:,} held out, no image in both.

## Settings

| setting | value |
|---|---|
{rows}
| hardware | {hardware} |
| trl, peft, transformers | {version("trl")}, {version("peft")}, {version("transformers")} |

## Before and after

{_table(measured)}

## Limits

{limits or "Not examined beyond the table above."} One run with one seed. What the table does not
measure may have got worse. Not for decisions about people.

Licence of the data: {data.licence or "none stated"}.
""")


def _table(measured):
    if not measured:
        return "**Nothing was measured**: whether the adapter is better than its base is not known."
    lines = [
        "The same items for the base and with the adapter; in brackets the change's 95% interval.",
        "",
        "| metric | before | after | change | n |",
        "|---|---|---|---|---|",
    ]
    for m in measured:
        change = f"{m.after - m.before:+.3f} [{m.low:+.3f}, {m.high:+.3f}]"
        lines.append(f"| {m.metric} | {m.before:.3f} | {m.after:.3f} | {change} | {m.n:,} |")
    if unsure := [m.metric for m in measured if m.low <= 0 <= m.high]:
        lines += ["", f"Not distinguishable from no change: {', '.join(unsure)}."]
    return "\n".join(lines)
