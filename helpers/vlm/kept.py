"""Answers kept on disk as they come: an interrupted evaluation goes on where it stopped.

    texts = kept_answers(model, processor, images, questions, "runs/06")

An answer is found again only by all that it hangs on: the model's weights, its adapters and which
of them are on, the processor, the prompt, the picture's pixels and the settings. When one of them
changes the key is another one, and the answer is made anew; old ones stay in the file and do no
harm. The folder's kept.jsonl has one line a batch, a JSON object {key: result}: a line that was cut
off when the process was killed is passed over, and its batch is done again.
"""

import hashlib
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import torch
import transformers
from peft.tuners.tuners_utils import BaseTunerLayer

from helpers.pairs.images import image_digest
from helpers.setup.storage import check_writable
from helpers.vlm.answers import Answer, answering, probing, scoring, warn_of_cut
from helpers.vlm.batches import in_batches

# Of a configuration, what training or the way of loading changes and no answer hangs on.
PASSING = {
    "_name_or_path", "dtype", "transformers_version", "use_cache", "output_attentions",
    "output_hidden_states", "return_dict",
}  # fmt: skip


def kept_answers(
    model,
    processor,
    images,
    questions,
    folder,
    *,
    batch_size=64,
    max_new_tokens=64,
    temperature=0.0,
    seed=0,
    bar=None,
):
    """`generate.answers`, kept in `folder`: only what is not there is generated.

    Sampled answers have a seed for each batch, so they are not those of `generate.answers`; a run
    that is killed and gone on with at the same `batch_size` gives those of an uninterrupted one.
    Raises StorageError if the folder cannot be written.
    """
    job = answering(model, processor, images, questions, max_new_tokens, temperature)
    settings = ["answers", int(max_new_tokens), float(temperature), seed if temperature else None]
    keys = _keys(model, processor, images, job.prompts, settings)
    if temperature:  # the same question about the same picture asks for one more sample
        keys = list(_numbered(keys))
    found = kept(_seeded(job, keys), keys, folder, batch_size, bar)
    return warn_of_cut([Answer(text, cut) for text, cut in found], max_new_tokens)


def kept_logps(model, processor, images, questions, texts, folder, *, batch_size=32, bar=None):
    """`generate.answer_logps`, kept in `folder`."""
    job = scoring(model, processor, images, questions, texts)
    given = [[prompt, text] for prompt, text in zip(job.prompts, texts, strict=True)]
    keys = _keys(model, processor, images, given, ["logps"])
    return torch.tensor(kept(job, keys, folder, batch_size, bar))


def kept_log_odds(model, processor, images, questions, folder, *, batch_size=64, bar=None):
    """`generate.yes_no_log_odds`, kept in `folder`."""
    job = probing(model, processor, images, questions)
    keys = _keys(model, processor, images, job.prompts, ["log odds"])
    return torch.tensor(kept(job, keys, folder, batch_size, bar))


# --- the file ------------------------------------------------------------------------------


def kept(job, keys, folder, size, bar=None):
    """The result for each key: from the file, or from the job and then into the file."""
    check_writable(folder, 10_000_000)
    file = Path(folder, "kept.jsonl")
    known = _read(file)
    missing = dict.fromkeys(keys[row] for row in job.order if keys[row] not in known)
    first = {key: row for row, key in reversed(list(enumerate(keys)))}  # of equal rows, one is done
    if len(missing) < len(first):
        print(f"{len(first) - len(missing)} of {len(first)} results are in {file}")
    if bar is not None:
        bar.update(len(keys) - len(missing))
    rest = replace(job, order=[first[key] for key in missing])
    for rows, results in in_batches(rest, size, bar):
        new = {keys[row]: _plain(result) for row, result in zip(rows, results, strict=True)}
        _append(file, new)
        known |= new
    return [known[key] for key in keys]


def _read(file):
    known = {}
    for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else ():
        try:
            known |= json.loads(line)
        except (ValueError, TypeError):
            continue  # cut off in the middle, or empty
    return known


def _append(file, results):
    """One line, closed before the next batch begins. Begun on a new line, as the last one may have
    been cut off."""
    with open(file, "a", encoding="utf-8") as lines:
        lines.write(f"\n{json.dumps(results)}\n")


def _plain(result):
    return [str(result), result.cut] if isinstance(result, Answer) else result


# --- keys ----------------------------------------------------------------------------------


def _keys(model, processor, images, texts, settings):
    """One key a row: a fingerprint of all that its result hangs on."""
    common = [model_digest(model), processor_digest(processor), *settings]
    return [
        digest(json.dumps([*common, text, _pixels(image)]))
        for text, image in zip(texts, images, strict=True)
    ]


def _pixels(image):
    """A palette picture is its colours, not its indices."""
    return image_digest(image.convert("RGBA") if image.mode == "P" else image)


def _numbered(keys):
    seen = Counter()
    for key in keys:
        seen[key] += 1
        yield f"{key}-{seen[key]}"


def _seeded(job, keys):
    """The job with a seed for each batch, from its keys, in which the caller's seed is."""

    def run(rows):
        torch.manual_seed(int(digest("".join(keys[row] for row in rows))[:15], 16))
        return job.run(rows)

    return replace(job, run=run)


def model_digest(model, of=lambda name: True, passing=PASSING):
    """A fingerprint of what the model computes: every weight, the configuration, the adapters.

    Of each adapter also whether it is on and how strongly, and which modules have a hook of the
    caller's. `of`: the weights to look at, by name; `passing`: the settings of the configuration
    not to look at. About a second for each GB of weights on a server's CPU.
    """
    sha = hashlib.sha256(transformers.__version__.encode())
    for name, weight in model.state_dict().items():
        if of(name):
            sha.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
            sha.update(weight.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    about = [_without(passing, c.to_dict()) for c in (model.config, model.generation_config)]
    about += [_switches(name, module) for name, module in model.named_modules()]
    sha.update(json.dumps(about, sort_keys=True, default=str).encode())
    return sha.hexdigest()[:24]


def _switches(name, module):
    hooks = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
    theirs = [h for h in hooks if not h.__module__.startswith(("transformers.", "peft."))]
    names = [(name, h.__module__, getattr(h, "__qualname__", type(h).__name__)) for h in theirs]
    if not isinstance(module, BaseTunerLayer):
        return names
    if module.disable_adapters:
        return [*names, "off"]
    return [*names, module.active_adapters, getattr(module, "scaling", None)]


def _without(names, value):
    if isinstance(value, dict):
        return {key: _without(names, v) for key, v in value.items() if key not in names}
    return value


def processor_digest(processor):
    """A fingerprint of how pictures and texts become what the model sees."""
    words = json.dumps(_rules(processor.tokenizer), sort_keys=True)
    return digest(processor.to_json_string() + str(processor.chat_template) + words)


def _rules(tokenizer):
    """What a tokenizer makes of a text hangs on; padding and truncation are each call's own."""
    if not hasattr(tokenizer, "backend_tokenizer"):
        return tokenizer.get_vocab()
    rules = json.loads(tokenizer.backend_tokenizer.to_str())
    return {name: value for name, value in rules.items() if name not in ("padding", "truncation")}


def digest(text):
    return hashlib.sha256(text.encode()).hexdigest()[:24]
