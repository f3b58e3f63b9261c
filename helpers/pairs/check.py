"""Find what is wrong with preference pairs before a trainer does, or worse, does not.

A bad row rarely stops a training run: an answer that is cut away gives a loss of ln 2 and no
gradient, an identical pair teaches nothing, a leaked image flatters the evaluation.

    for problem in check_pairs(train, processor, max_length=1024, other=test):
        print(problem.row, problem.code, problem.message)
    train = require_sound(train)     # or: stop here, and say which rows

Each check yields (code, message), and takes whatever it is given: nothing in a row is trusted.
"""

import hashlib
import io
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from datasets import Dataset, Image, IterableDataset
from PIL import Image as PILImage
from tqdm.auto import tqdm

from helpers.pairs.format import conversation
from helpers.pairs.images import (
    column_names,
    digests_of,
    image_bytes,
    images_of,
    missing_columns,
    rows,
)
from helpers.setup.storage import PreferenceDataError

Pairs = Dataset | IterableDataset | list[dict]
Found = Iterator[tuple[str, str]]  # code, message

# A text part with one of these keys, even empty, is a second picture to some chat templates.
PICTURE_KEYS = ("image", "image_url", "video")
# After one of these codes the texts and the placeholders of a row cannot be compared.
UNREADABLE = {"not_messages", "none_text", "not_text", "image_in_content"}


@dataclass(frozen=True)
class Problem:
    """One thing to mend. `row` is None when it concerns the dataset as a whole."""

    row: int | None
    code: str
    message: str


def check_pairs(
    dataset: Pairs, processor: Any = None, max_length: int | None = None, other: Pairs | None = None
) -> list[Problem]:
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
        there = ", ".join(map(str, columns))
        message = (
            "the column `{}` is missing (there are: {}): rename the one that holds it, or make it "
            "with to_conversational"
        )
        return [Problem(None, "missing_column", message.format(c, there)) for c in missing]
    problems: list[Problem] = []
    seen: dict[bytes, int] = {}
    theirs = _first_rows(other)
    for i, row in enumerate(tqdm(rows(dataset), "check pairs", total, leave=False, delay=1)):
        found = [*_row_problems(row, processor, max_length), *_repeats(row, i, seen, theirs)]
        problems += [Problem(i, code, message) for code, message in found]
    return problems


def require_sound(
    dataset: Pairs, processor: Any = None, max_length: int | None = None, other: Pairs | None = None
) -> Pairs:
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


def _row_problems(row: Any, processor: Any, max_length: int | None) -> list[tuple[str, str]]:
    """What is wrong with one row by itself; the processor sees only rows that look sound."""
    if not isinstance(row, dict):
        return [("not_a_row", f"it is a {_kind(row)}: make it a dict of columns")]
    turns, images = conversation(row), images_of(row)
    found = [problem for column in turns for problem in _turn_problems(column, turns[column])]
    comparable = not UNREADABLE & {code for code, _ in found}
    found += _same_answers(turns) if comparable else ()
    found += _image_problems(images)
    if comparable and isinstance(images, list):
        found += _placeholder_problems(turns, images, getattr(processor, "image_token", "<image>"))
    if processor is not None and not found:
        found += _token_problems(turns, images, processor, max_length)
    return found


def _kind(value: Any) -> str:
    return "None" if value is None else type(value).__name__


def _among(value: Any, names: tuple[str, ...]) -> bool:
    """value in names, for any value: one that is no string may have no hash."""
    return isinstance(value, str) and value in names


# --- texts and roles ---------------------------------------------------------------------------


def _turn_problems(column: str, messages: Any) -> Found:
    if messages is None:
        yield "none_text", f"`{column}` is None: write it, or remove the row"
    elif not isinstance(messages, list) or not all(isinstance(m, dict) for m in messages):
        yield (
            "not_messages",
            f"`{column}` is a {_kind(messages)}, not a list of messages with role and content: "
            "make it one (a plain string would be trained without its end-of-answer token)",
        )
    else:
        yield from _role_problems(column, [message.get("role") for message in messages])
        for n, message in enumerate(messages, 1):
            where = f"`{column}`" if len(messages) == 1 else f"turn {n} of `{column}`"
            yield from _content_problems(column, where, message)


def _role_problems(column: str, roles: list) -> Found:
    """Speakers take turns; the prompt begins and ends with the user, an answer with assistant."""
    speaker = "user" if column == "prompt" else "assistant"
    if column == "prompt" and roles and _among(roles[0], ("system",)):
        roles = roles[1:]
    wrong = [role for role in roles if not _among(role, ("user", "assistant"))]
    if wrong or roles and roles[0] != speaker:
        yield (
            "wrong_role",
            f"`{column}` has a message with the role {(wrong or roles)[0]!r}: its roles must be "
            f"user and assistant in turn, {speaker} first",
        )
    elif not roles or roles[-1] != speaker or any(a == b for a, b in pairwise(roles)):
        yield (
            "missing_turn",
            f"`{column}` lacks a turn (it has: {', '.join(roles) or 'none'}): user and assistant "
            f"must alternate, and the last one must be the {speaker}",
        )


def _content_problems(column: str, where: str, message: dict) -> Found:
    content = message.get("content")
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    if parts is None:
        yield "none_text", f"the content of {where} is None: write a text, or remove the row"
    elif not isinstance(parts, list):
        yield "not_text", f"the content of {where} is a {_kind(parts)}: make it a text"
    elif not all(isinstance(p, dict) and _among(p.get("type"), ("text", "image")) for p in parts):
        yield (
            "not_messages",
            (f"the content of {where} holds something else than parts of type 'text' or 'image'"),
        )
    elif any(key in part for part in parts for key in PICTURE_KEYS):
        yield (
            "image_in_content",
            f"a part of {where} has an image field of its own, which some chat templates take for "
            "one more picture: keep only `type` and `text`, and the picture in `images`",
        )
    else:
        texts = _texts([message])
        if any(text is None for text in texts):
            yield "none_text", f"a text of {where} is None: write it, or remove the row"
        elif not all(isinstance(text, str) for text in texts):
            yield "not_text", f"a text of {where} is not a string: convert it"
        elif not "".join(texts).strip() and not _among(message.get("role"), ("system",)):
            code = "empty_question" if column == "prompt" else "empty_answer"
            yield code, f"{where} has no words: write some, or remove the row"


def _parts(messages: list[dict]) -> list[dict]:
    """All content parts; a content given as a string is one text part."""
    contents = [message.get("content") for message in messages]
    contents = [[{"type": "text", "text": c}] if isinstance(c, str) else c for c in contents]
    return [part for content in contents for part in content]


def _texts(messages: list[dict]) -> list:
    return [part.get("text") for part in _parts(messages) if part["type"] == "text"]


def _same_answers(turns: dict) -> Found:
    """Same words, whatever the spaces and capitals: the pair would only teach those."""
    chosen, rejected = (
        " ".join(_texts(turns[column])).casefold().split() for column in ("chosen", "rejected")
    )
    if chosen and chosen == rejected:
        yield (
            "identical_answers",
            ("chosen and rejected are the same words (spaces and capitals aside): remove the row"),
        )


def _placeholder_problems(turns: dict, images: list, token: str) -> Found:
    """One placeholder in the prompt for each image, none in the answers.

    The processor also counts a `token` that is written out in a text, as in "<image> What is it?".
    """

    def count(messages):
        typed = sum(part["type"] == "image" for part in _parts(messages))
        return typed + sum(text.count(token) for text in _texts(messages))

    asked = count(turns["prompt"])
    plain = [m for m in turns["prompt"] if isinstance(m["content"], str)]
    if any(_among(message.get("role"), ("user",)) for message in plain):
        asked += len(images)  # TRL puts them before the first user text that is a plain string
    if asked and not images:
        yield "missing_image", (f"the prompt asks for {asked} and `images` is empty: add the image")
    elif asked != len(images):
        yield (
            "placeholder_count",
            f"{asked} image placeholders (with any {token} in the text) for {len(images)} images: "
            "put one part of type 'image' into the prompt for each",
        )
    for column in ("chosen", "rejected"):
        if count(turns[column]):
            yield "placeholder_count", f"`{column}` has an image placeholder: take it out"


# --- images ------------------------------------------------------------------------------------


def _image_problems(images: Any) -> Found:
    if images is None:
        yield "missing_image", "`images` is None: give a list (an empty one for a text-only row)"
    elif not isinstance(images, list):
        yield "unreadable_image", f"`images` is a {_kind(images)}: make it a list of images"
    else:
        for image in images:
            yield from _one_image_problems(image)


def _one_image_problems(image: Any) -> Found:
    try:
        data = None if image is None else image_bytes(image)
    except TypeError as error:
        yield "unreadable_image", f"{error}: store the bytes of the image file"
    except Exception as error:  # beside OSError, what the protocol of an address raises
        message = f"its image cannot be read ({error}): restore the file, or remove the row"
        yield "missing_image", message
    else:
        if data is None:
            yield "missing_image", "it has no image: add one, or remove the row"
        elif not data or isinstance(image, PILImage.Image) and 0 in image.size:
            yield "zero_sized_image", "its image is empty (no bytes or no pixels): fetch it again"
        elif not isinstance(image, PILImage.Image):
            yield from _file_problems(data)


def _file_problems(data: bytes) -> Found:
    """Reads the file to its end: a JPEG that is cut off opens well, and fails only then."""
    try:
        with PILImage.open(io.BytesIO(data)) as image:
            image.verify()  # checks the sums of a PNG, up to its last chunk
        decoded(data)
    except Exception as error:  # PIL raises whatever its codecs do
        cut = "truncated" in str(error).lower()
        yield (
            "truncated_image" if cut else "unreadable_image",
            f"its image file of {len(data)} bytes {'is cut off' if cut else 'is damaged'} "
            f"({error}): fetch it again",
        )


def decoded(image: Any) -> PILImage.Image:
    """The picture as training sees it: `datasets` also turns it as its EXIF data says."""
    if isinstance(image, PILImage.Image):
        return image
    return Image().decode_example({"bytes": image_bytes(image), "path": None})


# --- tokens ------------------------------------------------------------------------------------


def _token_problems(turns: dict, images: list, processor: Any, max_length: int | None) -> Found:
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
        yield "processor_error", f"the processor refuses this row ({_kind(error)}: {error})"
        return
    for column, end in ends.items():
        if max_length is not None and end > max_length:
            yield (
                "answer_cut",
                f"`{column}` ends at token {end} ({before} before it) and max_length={max_length} "
                f"would cut it: use max_length=None, at least {end}, or smaller images",
            )


# --- one row against the others ----------------------------------------------------------------


def _first_rows(dataset: Pairs | None) -> dict[str, int]:
    """The first row of each image: {digest: row}."""
    found: dict[str, int] = {}
    for i, row in enumerate(rows(dataset) if dataset is not None else ()):
        for digest in digests_of(row):
            found.setdefault(digest, i)
    found.pop(None, None)  # images that cannot be read are a matter for their own check
    return found


def _repeats(row: Any, i: int, seen: dict[bytes, int], theirs: dict[str, int]) -> Found:
    digests = digests_of(row)
    content = repr((digests, conversation(row) if isinstance(row, dict) else row))
    first = seen.setdefault(hashlib.sha256(content.encode("utf-8", "replace")).digest(), i)
    if first != i:
        yield "duplicate_pair", f"it repeats row {first}: keep one of them"
    for digest in dict.fromkeys(digests):
        if digest in theirs:
            yield (
                "image_on_both_sides",
                f"its image is also in row {theirs[digest]} of the other side: "
                "split with split_by_image",
            )
