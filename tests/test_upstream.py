"""The faults of docs/upstream.md are still there, and its reproductions notice when they are not.

Each script ends with status 0 while its fault is there. A failure after an upgrade is good news: a
fault is mended, so its section, its script and what works around it in helpers/ can go.
About 35 seconds of one core, of which 8 are the import of trl.
"""

import contextlib
import functools
import io
import re
import runpy
import subprocess
import sys
import warnings
from pathlib import Path

import datasets
import pytest
import transformers
import trl
import trl.models.utils
import trl.trainer.dpo_trainer
from trl.trainer.dpo_trainer import DataCollatorForVisionPreference

from helpers.dpo.shared_images import SharedImageDPOTrainer
from helpers.dpo.trainer import keep_adapter_in_float32

ROOT = Path(__file__).resolve().parent.parent
PAGE, FOLDER = ROOT / "docs" / "upstream.md", ROOT / "docs" / "upstream"
SCRIPTS = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem != "tiny")
SECONDS = re.compile(r"\d+\.\d+ s\b")


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    """As when a script is run: its own folder comes first."""
    monkeypatch.syspath_prepend(FOLDER)


def run(script):
    """(what it printed, its exit status or sentence)"""
    printed = io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stdout(printed):
        warnings.simplefilter("ignore")
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(FOLDER / f"{script}.py"), run_name="__main__")
    return printed.getvalue(), ended.value.code


run_once = functools.cache(run)


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_fault_is_there(script):
    printed, status = run_once(script)
    assert status == 0, f"{script}.py, {status}\n{printed}"


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_page_shows_what_the_script_prints(script):
    shown = dict(
        re.findall(r"upstream/(\w+)\.py\) prints[^`]*```text\n(.*?)```", PAGE.read_text(), re.S)
    )
    assert SECONDS.sub("_ s", shown[script]) == SECONDS.sub("_ s", run_once(script)[0])


def test_a_script_runs_on_its_own():
    script = FOLDER / "ties_count_as_wrong.py"
    ended = subprocess.run([sys.executable, script], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout == run_once(script.stem)[0]


def test_the_page_names_the_versions_that_are_pinned():
    pinned = dict(re.findall(r"^([\w-]+)==(\S+)", (ROOT / "constraints.txt").read_text(), re.M))
    named = dict(re.findall(r"\b(trl|transformers|datasets|peft) (\d[\d.]*\d)", PAGE.read_text()))
    assert named == {library: pinned[library] for library in named} and len(named) == 4


# --- a script that cannot say "mended" watches nothing -----------------------------------------


def hooks_only_where_needed(patch):
    """Checkpointing that is not reentrant needs no input that requires a gradient."""
    patch.setattr(transformers.PreTrainedModel, "enable_input_require_grads", lambda self: None)


def hooks_replaced(patch):
    stock = transformers.PreTrainedModel.enable_input_require_grads

    def replace(self):
        self.disable_input_require_grads()
        stock(self)

    patch.setattr(transformers.PreTrainedModel, "enable_input_require_grads", replace)


def checkpointing_left_on(patch):
    """The warning that switching it off avoids comes only from reentrant checkpointing."""

    def untouched(model, gradient_checkpointing_kwargs=None):
        return contextlib.nullcontext()

    patch.setattr(trl.trainer.dpo_trainer, "disable_gradient_checkpointing", untouched)


def pictures_shared(patch):
    import tiny

    patch.setattr(tiny, "DPOTrainer", SharedImageDPOTrainer)


def published_bytes_kept(patch):
    """A picture remembers the bytes that it was decoded from, and is written with them."""
    stock = datasets.Image.decode_example

    def decode(self, value, *args, **kwargs):
        image = stock(self, value, *args, **kwargs)
        image.published = value["bytes"]
        return image

    patch.setattr(datasets.Image, "decode_example", decode)
    patch.setattr(datasets.features.image, "image_to_bytes", lambda image: image.published)


def labelled_positions_only(patch):
    patch.setattr(trl.trainer.utils, "_use_triton", lambda device: True)


def cut_completions_named(patch):
    stock = DataCollatorForVisionPreference.torch_call

    def warn(self, examples):
        batch = stock(self, examples)
        if not batch["completion_mask"].any(dim=1).all():
            warnings.warn("max_length leaves rows without completion", stacklevel=1)
        return batch

    patch.setattr(DataCollatorForVisionPreference, "torch_call", warn)


def ties_count_half(patch):
    stock = trl.DPOTrainer.evaluate

    def evaluate(self, *args, **kwargs):
        metrics = stock(self, *args, **kwargs)
        return {**metrics, "eval_rewards/accuracies": 0.5}

    patch.setattr(trl.DPOTrainer, "evaluate", evaluate)


def callback_does_nothing(patch):
    patch.setattr(trl.LogCompletionsCallback, "on_step_end", lambda *args, **kwargs: None)


def adapter_in_float32(patch):
    stock = trl.DPOTrainer.__init__

    def build(self, *args, **kwargs):
        stock(self, *args, **kwargs)
        keep_adapter_in_float32(self.model)

    patch.setattr(trl.DPOTrainer, "__init__", build)


MENDS = {
    "images_encoded_four_times": pictures_shared,
    "frozen_tower_backward": hooks_only_where_needed,
    "hooks_leak": hooks_replaced,
    "checkpointing_settings_lost": checkpointing_left_on,
    "jpegs_saved_again": published_bytes_kept,
    "reference_cache_refused": pictures_shared,
    "every_position_scored": labelled_positions_only,
    "cut_completions_silent": cut_completions_named,
    "ties_count_as_wrong": ties_count_half,
    "log_completions_crash": callback_does_nothing,
    "qlora_adapter_bf16": adapter_in_float32,
}


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_script_notices_a_mend(script, monkeypatch):
    MENDS[script](monkeypatch)
    printed, status = run(script)
    assert str(status).startswith("mended"), f"{script}.py: {status}\n{printed}"
