"""Find what is wrong with preference pairs before a trainer does, or worse, does not.

A bad row rarely stops a training run: an answer that is cut away gives a loss of ln 2 and no
gradient, an identical pair teaches nothing, a leaked image flatters the evaluation.

    for problem in check_pairs(train, processor, max_length=1024, other=test):
        print(problem.row, problem.code, problem.message)
    train = require_sound(train)     # or: stop here, and say which rows
"""

import hashlib
import io
from dataclasses import replace

from datasets import Image
from PIL import Image as PILImage
from tqdm.auto import tqdm

from helpers.pairs.images import (
    PreferenceDataError,
    column_names,
    digests_of,
    image_bytes,
    images_of,
    missing_columns,
    rows,
)
from helpers.pairs.messages import (
    UNREADABLE,
    Problem,
    conversation,
    kind,
    placeholder_problems,
    text_problems,
)


def check_pairs(dataset, processor=None, max_length=None, other=None):
    """A list of `Problem`, one for each thing found; empty when the pairs are sound.

    dataset: raw (RLAIF-V's columns) or conversational (`to_conversational`), or a list of dicts.
    processor: also run each row that looks sound through it, as TRL's collator does.
    max_length: tokens of prompt, image and answer; find the answers that it would cut.
    other: the other side of a split, to find images that are on both.
    Raises ValueError for a max_length without a processor.
    """
    if max_length is not None and processor is None:
        raise ValueError("max_length counts tokens: pass the processor as well")
    columns = column_names(dataset)
    total = len(dataset) if hasattr(dataset, "__len__") else None
    if next(iter(rows(dataset)), None) is None:
        return [Problem(None, "empty_dataset", "there are no rows: look at the file or the filter")]
    if missing := missing_columns(columns):
        return [Problem(None, "missing_column", _missing_text(c, columns)) for c in missing]
    problems, seen, theirs = [], {}, _first_rows(other)
    for i, row in enumerate(tqdm(rows(dataset), "check pairs", total, leave=False, delay=1)):
        found = list(row_problems(row, processor, max_length))
        found += _repeat_problems(row, i, seen, theirs)
        problems += [replace(problem, row=i) for problem in found]
    return problems


def require_sound(dataset, processor=None, max_length=None, other=None):
    """The dataset itself if it is sound; else PreferenceDataError with up to ten of its rows."""
    problems = check_pairs(dataset, processor, max_length, other)
    if not problems:
        return dataset
    lines = [
        f"  {'all rows' if p.row is None else f'row {p.row}'}: {p.message} [{p.code}]"
        for p in problems[:10]
    ]
    count = f"{len(problems)} problem{'s' * (len(problems) > 1)} in the preference pairs"
    shown = f", the first {len(lines)}" if len(problems) > len(lines) else ""
    raise PreferenceDataError("\n".join([f"{count}{shown}:", *lines]), problems)


def _missing_text(column, columns):
    return (
        f"the column `{column}` is missing (there are: {', '.join(map(str, columns))}): "
        "rename the one that holds it, or make it with to_conversational"
    )


# --- one row: each check yields a Problem ----------------------------------------------------


def row_problems(row, processor=None, max_length=None):
    """A `Problem` for each thing wrong with one row, whatever is in it."""
    if not isinstance(row, dict):
        return [Problem(None, "not_a_row", f"it is a {kind(row)}: make it a dict of columns")]
    turns, images = conversation(row), images_of(row)
    found = text_problems(turns) + list(_image_problems(images))
    if isinstance(images, list) and not UNREADABLE & {problem.code for problem in found}:
        found += placeholder_problems(turns, images, getattr(processor, "image_token", "<image>"))
    if processor is not None and not found:
        found += _token_problems(turns, images, processor, max_length)
    return found


def _image_problems(images):
    if images is None:
        yield Problem(
            None,
            "missing_image",
            "`images` is None: give a list (an empty one for a text-only row)",
        )
    elif not isinstance(images, list):
        yield Problem(
            None, "unreadable_image", f"`images` is a {kind(images)}: make it a list of images"
        )
    else:
        for image in images:
            yield from _one_image_problems(image)


def _one_image_problems(image):
    """Reads the file to its end: a JPEG that is cut off opens well, and fails only then."""
    try:
        data = None if image is None else image_bytes(image)
    except TypeError as error:
        yield Problem(None, "unreadable_image", f"{error}: store the bytes of the image file")
    except Exception as error:  # beside OSError, what the protocol of an address raises
        message = f"its image cannot be read ({error}): restore the file, or remove the row"
        yield Problem(None, "missing_image", message)
    else:
        if data is None:
            yield Problem(None, "missing_image", "it has no image: add one, or remove the row")
        elif not data or isinstance(image, PILImage.Image) and 0 in image.size:
            message = "its image is empty (no bytes or no pixels): fetch it again"
            yield Problem(None, "zero_sized_image", message)
        elif not isinstance(image, PILImage.Image):
            yield from _file_problems(data)


def _file_problems(data):
    try:
        with PILImage.open(io.BytesIO(data)) as image:
            image.verify()  # checks the sums of a PNG, up to its last chunk
        decoded(data)
    except Exception as error:  # PIL raises whatever its codecs do
        cut = "truncated" in str(error).lower()
        yield Problem(
            None,
            "truncated_image" if cut else "unreadable_image",
            f"its image file of {len(data)} bytes {'is cut off' if cut else 'is damaged'} "
            f"({error}): fetch it again",
        )


def decoded(image):
    """The picture as training sees it: `datasets` also turns it as its EXIF data says."""
    if isinstance(image, PILImage.Image):
        return image
    return Image().decode_example({"bytes": image_bytes(image), "path": None})


def _token_problems(turns, images, processor, max_length):
    """Counts tokens as TRL's DataCollatorForVisionPreference does, with each image once."""
    from trl.data_utils import apply_chat_template, prepare_multimodal_messages  # slow to import

    def length(text, pictures=None):
        batch = processor(images=pictures, text=[text], add_special_tokens=False)
        return len(batch["input_ids"][0])

    try:
        pictures = [decoded(image) for image in images]
        prompt = prepare_multimodal_messages(turns["prompt"], pictures)
        answers = {c: prepare_multimodal_messages(turns[c]) for c in ("chosen", "rejected")}
        texts = apply_chat_template({"prompt": prompt, **answers}, processor)
        before = length(texts["prompt"], [pictures] if pictures else None)
        ends = {column: before + length(texts[column]) for column in answers}
    except Exception as error:  # chat templates and processors raise many kinds
        yield Problem(
            None, "processor_error", f"the processor refuses this row ({kind(error)}: {error})"
        )
        return
    for column, end in ends.items():
        if max_length is not None and end > max_length:
            yield Problem(
                None,
                "answer_cut",
                f"`{column}` ends at token {end} ({before} before it) and max_length={max_length} "
                f"would cut it: use max_length=None, at least {end}, or smaller images",
            )


# --- one row against the others --------------------------------------------------------------


def _first_rows(dataset):
    """The first row of each image: {digest: row}."""
    found = {}
    for i, row in enumerate(rows(dataset) if dataset is not None else ()):
        for digest in digests_of(row):
            found.setdefault(digest, i)
    found.pop(None, None)  # images that cannot be read are a matter for their own check
    return found


def _repeat_problems(row, i, seen, theirs):
    digests = digests_of(row)
    content = repr((digests, conversation(row) if isinstance(row, dict) else row))
    first = seen.setdefault(hashlib.sha256(content.encode("utf-8", "replace")).digest(), i)
    if first != i:
        yield Problem(None, "duplicate_pair", f"it repeats row {first}: keep one of them")
    for digest in dict.fromkeys(digests):
        if digest in theirs:
            yield Problem(
                None,
                "image_on_both_sides",
                f"its image is also in row {theirs[digest]} of the other side: "
                "split with split_by_image",
            )
