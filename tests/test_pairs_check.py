"""Preference pairs: bytes survive everything, and each kind of bad row is found, and only it."""

import copy
import errno
import io
import json
import random
from types import SimpleNamespace

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from datasets import Dataset, DatasetDict, Features, Image, Value, load_from_disk
from PIL import Image as PILImage

from helpers.pairs import load as preferences
from helpers.pairs.check import check_pairs, require_sound
from helpers.pairs.format import CONVERSATIONAL, conversation, to_conversational
from helpers.pairs.images import RAW_COLUMNS, rows
from helpers.pairs.load import split_by_image, word_diff
from helpers.setup.storage import PreferenceDataError
from helpers.vlm import pocket
from helpers.world.scenes import DESCRIBE, draw, sample_scene, sample_scenes

TEXT = Value("string")
RAW = Features({c: TEXT for c in RAW_COLUMNS} | {"image": Image(), "idx": Value("int64")})


def jpeg(seed, size=(40, 30)):
    noise = np.random.default_rng(seed).integers(0, 255, (*size[::-1], 3), dtype=np.uint8)
    file = io.BytesIO()
    PILImage.fromarray(noise).save(file, "JPEG")
    return file.getvalue()


def raw_rows(count=6):
    return [
        {
            "ds_name": "test", "image": {"bytes": jpeg(i), "path": f"{i}.jpg"},
            "question": DESCRIBE, "chosen": f"I see a red ball on the left {i} .",
            "rejected": "I see a blue cup in the middle.", "origin_dataset": "test",
            "origin_split": "{}", "idx": i, "image_path": f"{i}.jpg",
        }
        for i in range(count)
    ]  # fmt: skip


def raw(count=6):
    return Dataset.from_list(raw_rows(count), features=RAW)


def chat_row(seed=0, images=1):
    """One sound conversational row, as plain Python."""
    row = conversation(raw_rows(seed + 1)[seed])
    row["prompt"][0]["content"] = [{"type": "image"}] * images + row["prompt"][0]["content"][1:]
    return {"images": [{"bytes": jpeg(seed + 50 * i), "path": None} for i in range(images)], **row}


def stored(dataset):
    """The bytes of every image."""
    return [
        image["bytes"]
        for row in rows(dataset)
        for image in (row["images"] if "images" in row else [row["image"]])
    ]


def codes(*args, **kwargs):
    return [problem.code for problem in check_pairs(*args, **kwargs)]


@pytest.fixture(scope="module")
def processor():
    return pocket.build_processor()


# --- format ----------------------------------------------------------------------------------


def test_the_collator_of_trl_takes_the_pairs(processor, tmp_path):
    from trl.trainer.dpo_trainer import DataCollatorForVisionPreference

    preferences.save(to_conversational(raw(3)), tmp_path / "pairs")
    dataset = load_from_disk(tmp_path / "pairs")
    batch = DataCollatorForVisionPreference(processor)([dataset[i] for i in range(3)])
    expected = processor.image_processor([[i] for i in raw(3)["image"]], return_tensors="pt")
    assert batch["pixel_values"][:3].equal(expected["pixel_values"])
    assert batch["pixel_values"][3:].equal(expected["pixel_values"])  # again, for the rejected
    for i, row in enumerate(raw_rows(3)):
        for ids, mask, answer in (
            (batch["input_ids"][i], batch["completion_mask"][i], row["chosen"]),
            (batch["input_ids"][i + 3], batch["completion_mask"][i + 3], row["rejected"]),
        ):
            known = processor.tokenizer(answer)["input_ids"]
            said = ids[mask.bool()].tolist()
            assert any(said[k : k + len(known)] == known for k in range(len(said)))
            prompt = ids[~mask.bool()].tolist()
            assert prompt.count(processor.image_token_id) == pocket.IMAGE_SEQ_LEN
            assert set(processor.tokenizer(DESCRIBE)["input_ids"]) <= set(prompt)


# --- check: sound rows -----------------------------------------------------------------------


def test_sound_pairs_have_no_problems(processor):
    for dataset in (raw(), to_conversational(raw()), raw().to_iterable_dataset(), raw_rows()):
        assert check_pairs(dataset) == []
        assert require_sound(dataset) is dataset
    assert check_pairs(to_conversational(raw()), processor, max_length=200) == []


def test_other_forms_that_trl_takes_are_sound(processor):
    text_only, plain, system, several = chat_row(0, 0), chat_row(1), chat_row(2), chat_row(3, 2)
    plain["prompt"][0]["content"] = DESCRIBE  # TRL inserts the image
    plain["chosen"][0]["content"] = "Yes ."
    system["prompt"].insert(0, {"role": "system", "content": [{"type": "text", "text": "See ."}]})
    longer = chat_row(4)
    longer["prompt"] += [
        {"role": "assistant", "content": [{"type": "text", "text": "Yes ."}]},
        {"role": "user", "content": [{"type": "text", "text": "What ?"}]},
    ]
    assert check_pairs([text_only, plain, system, several, longer]) == []
    assert check_pairs([text_only, system, several, longer], processor) == []
    # What Arrow makes of mixed parts.
    filled = chat_row(5)
    filled["prompt"][0]["content"][0]["text"] = None
    assert check_pairs([filled]) == []


def test_progress_and_order_do_not_depend_on_soundness():
    table = raw_rows(5)
    table[1]["chosen"], table[3]["rejected"] = "", " \n"
    formatted = to_conversational(Dataset.from_list(table, features=RAW))
    assert len(formatted) == 5
    assert [(p.row, p.code) for p in check_pairs(formatted)] == [
        (1, "empty_answer"),
        (3, "empty_answer"),
    ]


# --- check: each malformed row, raw ----------------------------------------------------------

PNG = io.BytesIO()
draw(sample_scene(0)).save(PNG, "PNG")
PNG = PNG.getvalue()

BAD_RAW = {
    "empty question": ("empty_question", {"question": ""}),
    "blank question": ("empty_question", {"question": " \n\t"}),
    "empty chosen": ("empty_answer", {"chosen": ""}),
    "blank rejected": ("empty_answer", {"rejected": "  "}),
    "no question": ("none_text", {"question": None}),
    "no chosen": ("none_text", {"chosen": None}),
    "identical": ("identical_answers", {"chosen": "a dog", "rejected": "a dog"}),
    "nearly identical": ("identical_answers", {"chosen": "A dog", "rejected": " a  DOG\n"}),
    "no image": ("missing_image", {"image": None}),
    "no bytes and no path": ("missing_image", {"image": {"bytes": None, "path": None}}),
    "lost file": ("missing_image", {"image": {"bytes": None, "path": "/nowhere/at/all.jpg"}}),
    "not an image": ("unreadable_image", {"image": {"bytes": b"hello there", "path": None}}),
    "only zeros": ("unreadable_image", {"image": {"bytes": bytes(900), "path": None}}),
    "cut jpeg": ("truncated_image", {"image": {"bytes": jpeg(0)[:-30], "path": None}}),
    "half a jpeg": ("truncated_image", {"image": {"bytes": jpeg(0)[:800], "path": None}}),
    "half a png": ("truncated_image", {"image": {"bytes": PNG[: len(PNG) // 2], "path": None}}),
    "png without end": ("unreadable_image", {"image": {"bytes": PNG[:-16], "path": None}}),
    "no bytes": ("zero_sized_image", {"image": {"bytes": b"", "path": "0.jpg"}}),
    "placeholder in question": ("placeholder_count", {"question": "<image>\nWhat is it?"}),
    "placeholder in answer": ("placeholder_count", {"chosen": "It is <image> ."}),
}


@pytest.mark.parametrize("name", BAD_RAW)
def test_each_bad_raw_row_is_found_and_only_it(name, processor):
    code, change = BAD_RAW[name]
    table = raw_rows(4)
    table[2] |= change
    image = pyarrow.array([row["image"] for row in table], Image.pa_type)
    plain = [{k: v for k, v in row.items() if k != "image"} for row in table]
    dataset = Dataset(pyarrow.Table.from_pylist(plain).append_column("image", image))
    dataset = dataset.cast_column("image", Image())
    stream = dataset.to_iterable_dataset()
    for form in (table, dataset, stream, to_conversational(dataset), to_conversational(stream)):
        found = check_pairs(form, processor, max_length=200)
        assert [(p.row, p.code) for p in found] == [(2, code)]
        assert len(found[0].message) > 20


def test_the_dataset_as_a_whole():
    for column in ("image", "question", "chosen", "rejected"):
        (found,) = check_pairs(raw().remove_columns(column))
        assert (found.row, found.code) == (None, "missing_column")
        assert f"`{column}`" in found.message
    for column in ("images", "prompt", "chosen", "rejected"):
        (found,) = check_pairs(to_conversational(raw()).remove_columns(column))
        assert (found.row, found.code) == (None, "missing_column")
        assert f"`{column}`" in found.message
    empty = raw().select([])
    none = raw().to_iterable_dataset().filter(lambda row: False)
    for dataset in (empty, to_conversational(empty), [], none):
        assert [(p.row, p.code) for p in check_pairs(dataset)] == [(None, "empty_dataset")]
    with pytest.raises(PreferenceDataError, match="choose one"):
        check_pairs(DatasetDict(train=raw()))
    with pytest.raises(ValueError, match="processor"):
        check_pairs(raw(), max_length=10)


# --- check: each malformed row, conversational -----------------------------------------------


def change(path, value):
    """A row changer: change(("chosen", 0, "role"), "user") sets row["chosen"][0]["role"]."""

    def apply(row):
        *front, last = path
        for step in front:
            row = row[step]
        row[last] = value

    return apply


IMAGE_PART, TEXT_PART = {"type": "image"}, {"type": "text", "text": "What is it?"}
USER = {"role": "user", "content": [TEXT_PART]}
ASSISTANT = {"role": "assistant", "content": [{"type": "text", "text": "Yes."}]}
CONTENT = ("prompt", 0, "content")

BAD_CHAT = {
    "images is None": ("missing_image", change(("images",), None)),
    "no image for a placeholder": ("missing_image", change(("images",), [])),
    "None for an image": ("missing_image", change(("images", 0), None)),
    "one image, not a list": ("unreadable_image", change(("images",), {"bytes": jpeg(0)})),
    "a number for an image": ("unreadable_image", change(("images", 0), 7)),
    "no bytes": ("zero_sized_image", change(("images", 0), b"")),
    "no pixels": ("zero_sized_image", change(("images", 0), PILImage.new("RGB", (0, 5)))),
    "lost file": ("missing_image", change(("images", 0), "/nowhere/at/all.jpg")),
    "two placeholders": (
        "placeholder_count", change(CONTENT, [IMAGE_PART, IMAGE_PART, TEXT_PART])),
    "no placeholder": ("placeholder_count", change(CONTENT, [TEXT_PART])),
    "placeholder in the answer": (
        "placeholder_count", change(("chosen", 0, "content"), [IMAGE_PART, TEXT_PART])),
    "two images": ("placeholder_count", change(("images",), [jpeg(1), jpeg(2)])),
    "an empty image field": (
        "image_in_content", change(CONTENT, [IMAGE_PART, {**TEXT_PART, "image": None}])),
    "an image in the content": (
        "image_in_content", change(CONTENT, [{**IMAGE_PART, "image": "x.jpg"}, TEXT_PART])),
    "misspelt role": ("wrong_role", change(("prompt", 0, "role"), "usr")),
    "no role": ("wrong_role", change(("prompt", 0), {"content": [IMAGE_PART, TEXT_PART]})),
    "user answers": ("wrong_role", change(("chosen", 0, "role"), "user")),
    "prompt inside chosen": ("wrong_role", change(("chosen",), [USER, ASSISTANT])),
    "list for a role": ("wrong_role", change(("rejected", 0, "role"), ["assistant"])),
    "no answer": ("missing_turn", change(("rejected",), [])),
    "no user turn": ("wrong_role", change(("prompt",), [
        {"role": "assistant", "content": [IMAGE_PART, TEXT_PART]}])),
    "prompt ends with assistant": ("missing_turn", change(("prompt",), [
        {"role": "user", "content": [IMAGE_PART, TEXT_PART]}, ASSISTANT])),
    "two user turns": ("missing_turn", change(("prompt",), [
        {"role": "user", "content": [IMAGE_PART, TEXT_PART]}, USER])),
    "answer is None": ("none_text", change(("chosen",), None)),
    "content is None": ("none_text", change(("chosen", 0, "content"), None)),
    "text is None": ("none_text", change((*CONTENT, 1, "text"), None)),
    "text is not there": ("none_text", change(CONTENT, [IMAGE_PART, {"type": "text"}])),
    "text is a number": ("not_text", change((*CONTENT, 1, "text"), 3)),
    "content is a number": ("not_text", change(("chosen", 0, "content"), 3.5)),
    "blank text": ("empty_question", change((*CONTENT, 1, "text"), " ")),
    "picture but no words": ("empty_question", change(CONTENT, [IMAGE_PART])),
    "empty content": ("empty_answer", change(("chosen", 0, "content"), [])),
    "plain string": ("not_messages", change(("prompt",), "What is it?")),
    "messages are strings": ("not_messages", change(("chosen",), ["a dog"])),
    "parts are strings": ("not_messages", change(("chosen", 0, "content"), ["a dog"])),
    "unknown part": ("not_messages", change(CONTENT, [IMAGE_PART, TEXT_PART, {"type": "imge"}])),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_CHAT)
def test_each_bad_conversation_is_found_and_only_it(name, processor):
    code, apply = BAD_CHAT[name]
    table = [chat_row(seed) for seed in range(3)]
    apply(table[1])
    found = check_pairs(copy.deepcopy(table), processor)
    assert [(p.row, p.code) for p in found] == [(1, code)]


def test_a_pair_that_occurs_twice():
    table = raw_rows(3)
    (found,) = check_pairs(Dataset.from_list([*table, table[1]], features=RAW))
    assert (found.row, found.code) == (3, "duplicate_pair")
    assert "row 1" in found.message
    swapped = table[1] | {"chosen": table[1]["rejected"], "rejected": table[1]["chosen"]}
    other_image = table[1] | {"image": {"bytes": jpeg(9), "path": None}}
    assert codes([*table, swapped, other_image]) == []


def test_the_same_image_on_both_sides():
    here, there = raw_rows(5), raw_rows(8)[5:]
    assert codes(here, other=there) == []
    there[1]["image"] = {"bytes": jpeg(3), "path": "another-name.jpg"}
    for other in (there, to_conversational(Dataset.from_list(there, features=RAW))):
        (found,) = check_pairs(here, other=other)
        assert (found.row, found.code) == (3, "image_on_both_sides")
        assert "row 1" in found.message
    # Rows without an image share none.
    assert codes([chat_row(0, 0)], other=[chat_row(1, 0)]) == []
    lost = raw_rows(1)[0] | {"image": None}
    assert codes([lost], other=[lost]) == ["missing_image"]


def test_max_length_is_exact(processor):
    """The shortest max_length that passes keeps the whole batch of TRL's collator, one less not."""
    from trl.trainer.dpo_trainer import DataCollatorForVisionPreference

    table = [chat_row(0), chat_row(1, 2), chat_row(2, 0)]
    table[0]["chosen"][0]["content"][0]["text"] += " I see a red ball."
    table[2]["rejected"][0]["content"][0]["text"] += " I see a red ball."
    dataset = Dataset.from_list(table, features=CONVERSATIONAL)
    for i in range(3):
        lengths = DataCollatorForVisionPreference(processor)([dataset[i]])["attention_mask"].sum(1)
        row = dataset.select([i])
        for n, side in enumerate(("chosen", "rejected")):
            cut = check_pairs(row, processor, max_length=int(lengths[n]) - 1)
            assert any(p.code == "answer_cut" and f"`{side}`" in p.message for p in cut)
            kept = check_pairs(row, processor, max_length=int(lengths[n]))
            assert not any(f"`{side}`" in p.message for p in kept)


def test_a_row_that_the_processor_refuses_is_a_problem(processor):
    def refuse(*args, **kwargs):
        raise RuntimeError("no")

    broken = SimpleNamespace(image_token="<image>", apply_chat_template=refuse)
    assert codes(raw(1), broken) == ["processor_error"]


# --- check: hostile rows ---------------------------------------------------------------------

TINY = [PILImage.new("1", (1, 1))]
JUNK = [
    None, 0, 3.5, float("nan"), True, "", " ", "x", "\ud800", b"", b"x", [], [None], [[]], {},
    {"role": "user"}, {"content": 1}, [{"role": None, "content": None}], [{"role": 1}], (), {1: 2},
    [{"role": "user", "content": [{"type": ["image"]}]}], [{"type": "image"}], {"bytes": "text"},
    {"bytes": None, "path": 5}, {"bytes": b"\x89PNG\r\n\x1a\n"}, [{"bytes": jpeg(0)[:60]}],
    {"path": "\0"}, {"path": "/"}, TINY, [b"", None, 4], object(), {"a"},
    [{"role": "user", "content": "<image>" * 3}], [{"role": "assistant", "content": {"text": 1}}],
    np.zeros(3), [np.zeros((2, 2))],
]  # fmt: skip


def test_hostile_rows_never_crash_and_never_pass(processor):
    rng = random.Random(0)
    for _ in range(400):
        table = [chat_row(0), rng.choice((raw_rows(2)[1], chat_row(1)))]
        row = table[1]
        for _ in range(rng.choice((1, 1, 2, 3))):
            target = row
            while isinstance(target, (dict, list)) and target:
                keys = list(target) if isinstance(target, dict) else range(len(target))
                key = rng.choice([k for k in keys if k not in ("ds_name", "idx")] or list(keys))
                if rng.random() < 0.4 or not isinstance(target[key], (dict, list)):
                    target[key] = copy.deepcopy(rng.choice(JUNK))
                    break
                target = target[key]
        for problem in check_pairs(table[:1] + [row], processor):
            assert problem.row in (None, 1) and problem.message and problem.code
    for junk in JUNK:
        found = check_pairs([chat_row(0), junk])
        assert found and all(p.row == 1 for p in found)
        for column in ("images", "prompt", "chosen", "rejected"):
            if column == "images" and junk is TINY:
                continue  # small, and sound
            assert check_pairs([chat_row(0), chat_row(1) | {column: junk}]), (column, junk)


def test_a_truncated_image_that_pil_has_not_loaded_yet():
    lazy = PILImage.open(io.BytesIO(jpeg(0)[:800]))
    found = check_pairs([chat_row(0) | {"images": [lazy]}])
    assert len(found) == 1 and "image" in found[0].code


def test_require_sound_lists_ten_rows_and_the_count():
    table = raw_rows(14)
    for row in table[1:]:
        row["chosen"] = ""
    with pytest.raises(PreferenceDataError) as caught:
        require_sound(Dataset.from_list(table, features=RAW))
    text = str(caught.value)
    assert text.startswith("13 problems") and "row 10:" in text and "row 11:" not in text
    assert len(caught.value.problems) == 13


# --- split -----------------------------------------------------------------------------------


def test_split_shares_no_image_and_loses_no_row():
    table = raw_rows(20)
    for row in table[10:]:
        row["image"] = table[row["idx"] % 10]["image"]  # each image twice
    dataset = Dataset.from_list(table, features=RAW)
    for form in (dataset, to_conversational(dataset)):
        train, test = split_by_image(form, 0.3, seed=1)
        assert not set(stored(train)) & set(stored(test))
        assert sorted(stored(train) + stored(test)) == sorted(stored(dataset))
        assert (len(train), len(test)) == (14, 6)
        assert codes(train, other=test) == []
    train, test = split_by_image(dataset, 0.3, seed=1)
    assert train["idx"] == sorted(train["idx"]) and test["idx"] == sorted(test["idx"])
    shuffled = split_by_image(dataset.shuffle(seed=3), 0.3, seed=1)[1]
    assert sorted(shuffled["idx"]) == test["idx"]
    sides = {tuple(split_by_image(dataset, 0.3, seed)[1]["idx"]) for seed in range(5)}
    assert len(sides) > 1


def test_split_follows_images_through_rows_that_have_several():
    images = [{"bytes": jpeg(i), "path": None} for i in range(5)]
    chain = [chat_row(0) | {"images": [images[i], images[i + 1]]} for i in range(4)]
    alone = [chat_row(seed) for seed in range(20, 24)]
    dataset = Dataset.from_list(chain + alone, features=CONVERSATIONAL)
    for seed in range(6):
        train, test = split_by_image(dataset, 0.3, seed)
        assert not set(stored(train)) & set(stored(test))
        assert sum(images[0]["bytes"] in stored(side) for side in (train, test)) == 1


def test_split_says_what_it_cannot_do():
    for share in (0, 1, -0.1, 1.5):
        with pytest.raises(ValueError, match="test_share"):
            split_by_image(raw(), share)
    one_image = raw().map(lambda row: {"image": raw_rows(1)[0]["image"]}, features=RAW)
    with pytest.raises(PreferenceDataError, match="empty"):
        split_by_image(one_image, 0.5)
    with pytest.raises(PreferenceDataError, match="stream"):
        split_by_image(raw().to_iterable_dataset())
    with pytest.raises(PreferenceDataError, match="`image`"):
        split_by_image(raw().remove_columns("image"))


# --- load, save, compare ---------------------------------------------------------------------

POCKET = SimpleNamespace(name="pocket", dataset="pocket")


@pytest.fixture
def pocket_file(tmp_path, monkeypatch):
    scenes = sample_scenes(7, part="preference")
    table = [
        row | {"origin_split": json.dumps({"scene": scene.to_json()}), "part": part}
        for row, scene, part in zip(raw_rows(7), scenes, ["train"] * 5 + ["test"] * 2, strict=True)
    ]
    for row in table:
        del row["image"]
    path = tmp_path / "preferences.parquet"
    Dataset.from_list(table).to_parquet(path)
    monkeypatch.setattr(preferences, "POCKET_PAIRS", path)
    return path, scenes


def test_pocket_pairs_are_drawn(pocket_file):
    dataset = preferences.load_raw(POCKET)
    assert dataset.column_names == list(RAW_COLUMNS)
    assert isinstance(dataset.features["image"], Image)
    for row, scene in zip(dataset, pocket_file[1], strict=False):
        assert row["image"].format == "PNG"
        assert np.array_equal(row["image"], draw(scene))
    assert preferences.load_raw(POCKET, count=3)["idx"] == [0, 1, 2]
    assert preferences.load_raw(POCKET, "test")["idx"] == [5, 6]
    assert stored(preferences.load_raw(POCKET)) == stored(dataset)
    assert check_pairs(to_conversational(dataset)) == []
    assert preferences.load_photos().column_names == list(RAW_COLUMNS)


def test_loading_says_what_it_cannot_do(pocket_file, tmp_path, monkeypatch):
    with pytest.raises(PreferenceDataError, match="5 pairs, not 6"):
        preferences.load_raw(POCKET, count=6)
    with pytest.raises(ValueError, match="split"):
        preferences.load_raw(POCKET, "validation")
    with pytest.raises(ValueError, match="count"):
        preferences.load_raw(POCKET, count=0)
    path = pocket_file[0]
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(PreferenceDataError, match="git checkout"):
        preferences.load_raw(POCKET)
    monkeypatch.setattr(preferences, "PHOTO_PAIRS", tmp_path / "none.parquet")
    with pytest.raises(PreferenceDataError, match="is missing"):
        preferences.load_photos()
    away = SimpleNamespace(name="t4", dataset=str(tmp_path / "nothing"), train_pairs=3)
    with pytest.raises(PreferenceDataError, match="pocket track"):
        preferences.load_raw(away)


def test_saving_and_loading_say_what_is_wrong(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(PreferenceDataError, match="another folder"):
        preferences.save(raw(1), tmp_path / "file" / "pairs")
    with pytest.raises(PreferenceDataError, match="save"):
        preferences.load(tmp_path / "nothing")
    preferences.save(raw(1), tmp_path / "pairs")
    (tmp_path / "pairs" / "state.json").write_text("{")
    with pytest.raises(PreferenceDataError, match="save"):
        preferences.load(tmp_path / "pairs")

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Dataset, "save_to_disk", full)
    with pytest.raises(PreferenceDataError, match="No space left.*make room"):
        preferences.save(raw(1), tmp_path / "more")


def test_word_diff_tells_both_answers():
    chosen, rejected = "I see a plate and a cup.", "I see a plate, a fork and a cup."
    pieces = word_diff(chosen, rejected)
    for side, answer in (("chosen", chosen), ("rejected", rejected)):
        assert [w for op, words in pieces if op in ("same", side) for w in words] == answer.split()
    assert word_diff("a b", "a b") == [("same", ["a", "b"])]
    assert word_diff("", "") == []
