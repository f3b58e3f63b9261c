"""Conversations as TRL wants them, and what can be wrong with one.

A prompt is a list of messages that ends with the user, an answer one that ends with the assistant;
a message has a role and a content, which is a text or a list of typed parts:

    conversation({"question": "What is it?", "chosen": "A dog.", "rejected": "A cat."})
    # prompt: [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": ...}]}]

Each check yields a `Problem` and takes whatever it is given: nothing in a row is trusted.
"""

from dataclasses import dataclass
from itertools import pairwise

SPEAKERS = ("user", "assistant")
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


def turns(*texts):
    """Messages about one picture: question, answer, question, answer, ... as far as given."""
    messages = [
        {"role": SPEAKERS[i % 2], "content": [{"type": "text", "text": text}]}
        for i, text in enumerate(texts)
    ]
    messages[0]["content"].insert(0, {"type": "image"})
    return messages


def conversation(row):
    """`prompt`, `chosen`, `rejected` of a row in TRL's form; a raw row's texts are put into it."""
    if "prompt" in row:
        return {column: row.get(column) for column in ("prompt", "chosen", "rejected")}
    prompt, chosen = turns(row.get("question"), row.get("chosen"))
    rejected = turns(row.get("question"), row.get("rejected"))[1]
    return {"prompt": [prompt], "chosen": [chosen], "rejected": [rejected]}


def kind(value):
    return "None" if value is None else type(value).__name__


def _among(value, names):
    return isinstance(value, str) and value in names


def text_problems(turns):
    """What is wrong with the texts and the roles of a conversation, all columns."""
    found = [problem for column in turns for problem in _turn_problems(column, turns[column])]
    if not UNREADABLE & {problem.code for problem in found}:
        found += _same_problems(turns)
    return found


def _turn_problems(column, messages):
    if messages is None:
        yield Problem(None, "none_text", f"`{column}` is None: write it, or remove the row")
    elif not isinstance(messages, list) or not all(isinstance(m, dict) for m in messages):
        yield Problem(
            None,
            "not_messages",
            f"`{column}` is a {kind(messages)}, not a list of messages with role and content: "
            "make it one (a plain string would be trained without its end-of-answer token)",
        )
    else:
        yield from _role_problems(column, [message.get("role") for message in messages])
        for n, message in enumerate(messages, 1):
            where = f"`{column}`" if len(messages) == 1 else f"turn {n} of `{column}`"
            yield from _content_problems(column, where, message)


def _role_problems(column, roles):
    """Speakers take turns; the prompt begins and ends with the user, an answer with assistant."""
    speaker = "user" if column == "prompt" else "assistant"
    if column == "prompt" and roles and _among(roles[0], ("system",)):
        roles = roles[1:]
    wrong = [role for role in roles if not _among(role, SPEAKERS)]
    if wrong or roles and not _among(roles[0], (speaker,)):
        yield Problem(
            None,
            "wrong_role",
            f"`{column}` has a message with the role {(wrong or roles)[0]!r}: its roles must be "
            f"user and assistant in turn, {speaker} first",
        )
    elif not roles or roles[-1] != speaker or any(a == b for a, b in pairwise(roles)):
        yield Problem(
            None,
            "missing_turn",
            f"`{column}` lacks a turn (it has: {', '.join(roles) or 'none'}): user and assistant "
            f"must alternate, and the last one must be the {speaker}",
        )


def _content_problems(column, where, message):
    content = message.get("content")
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    if parts is None:
        yield Problem(
            None, "none_text", f"the content of {where} is None: write a text, or remove the row"
        )
    elif not isinstance(parts, list):
        yield Problem(
            None, "not_text", f"the content of {where} is a {kind(parts)}: make it a text"
        )
    elif not all(isinstance(p, dict) and _among(p.get("type"), ("text", "image")) for p in parts):
        yield Problem(
            None,
            "not_messages",
            f"the content of {where} holds something else than parts of type 'text' or 'image'",
        )
    elif any(key in part for part in parts for key in PICTURE_KEYS):
        yield Problem(
            None,
            "image_in_content",
            f"a part of {where} has an image field of its own, which some chat templates take for "
            "one more picture: keep only `type` and `text`, and the picture in `images`",
        )
    else:
        yield from _words_problems(column, where, message)


def _words_problems(column, where, message):
    texts = _texts([message])
    if any(text is None for text in texts):
        yield Problem(None, "none_text", f"a text of {where} is None: write it, or remove the row")
    elif not all(isinstance(text, str) for text in texts):
        yield Problem(None, "not_text", f"a text of {where} is not a string: convert it")
    elif not "".join(texts).strip() and not _among(message.get("role"), ("system",)):
        code = "empty_question" if column == "prompt" else "empty_answer"
        yield Problem(None, code, f"{where} has no words: write some, or remove the row")


def _parts(messages):
    """All content parts; a content given as a string is one text part."""
    for content in (message.get("content") for message in messages):
        yield from [{"type": "text", "text": content}] if isinstance(content, str) else content


def _texts(messages):
    return [part.get("text") for part in _parts(messages) if part["type"] == "text"]


def _same_problems(turns):
    """Same words, whatever the spaces and capitals: the pair would only teach those."""
    chosen, rejected = (
        " ".join(_texts(turns[column])).casefold().split() for column in ("chosen", "rejected")
    )
    if chosen and chosen == rejected:
        yield Problem(
            None,
            "identical_answers",
            "chosen and rejected are the same words (spaces and capitals aside): remove the row",
        )


def placeholder_problems(turns, images, token):
    """One placeholder in the prompt for each image, none in the answers.

    The processor also counts a `token` that is written out in a text, as in "<image> What is it?".
    """

    def count(messages):
        typed = sum(part["type"] == "image" for part in _parts(messages))
        return typed + sum(text.count(token) for text in _texts(messages))

    asked = count(turns["prompt"])
    # TRL puts all images before the first user text that is a plain string.
    if any(
        _among(m.get("role"), ("user",)) and isinstance(m["content"], str) for m in turns["prompt"]
    ):
        asked += len(images)
    if asked and not images:
        yield Problem(
            None,
            "missing_image",
            f"the prompt asks for {asked} and `images` is empty: add the image",
        )
    elif asked != len(images):
        yield Problem(
            None,
            "placeholder_count",
            f"{asked} image placeholders (with any {token} in the text) for {len(images)} images: "
            "put one part of type 'image' into the prompt for each",
        )
    for column in ("chosen", "rejected"):
        if count(turns[column]):
            yield Problem(
                None, "placeholder_count", f"`{column}` has an image placeholder: take it out"
            )
