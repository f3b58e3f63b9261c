"""From prompts to preference pairs: draw, rank, answer, score, pair.

    pipeline = Pipeline(generator, image_reward, [answerer, another], answer_reward)
    pairs = run(prompts, pipeline, Settings(candidates=4), "runs/07", "truth")  # raw columns

Several pictures are drawn for each prompt and an image reward keeps the best; every answerer says
something about each, an answer reward scores what was said, and a rule makes pairs of it. This is
PDS-DPO's pipeline (arXiv 2412.17417) with the filters that it lacks, any rewards and any rule. What
a stage is stands in `helpers.feedback.stages`.

    runs/07/
        results.jsonl, files/*.png    what every stage gave, under a key of all it depends on
        truth/pairs.parquet           RLAIF-V's columns
        truth/README.md, funnel.json  the card, and what was dropped where
        truth/items.jsonl             all candidates, answers and scores of this run

A run that is killed is gone on with by the same call, does nothing twice and makes the same pairs.
Another judge, rule or answerer with the same folder and another name draws no picture again.
"""

import copy
import hashlib
import io
import json
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import pyarrow.parquet as pq
from datasets import Dataset, Features, Value
from datasets import Image as ImageColumn
from PIL import Image

from helpers.feedback.card import Step, funnel_table, run_card
from helpers.feedback.pairing import (
    Filters,
    Scored,
    best_worst,
    length_of,
    sound_answers,
    sound_pairs,
)
from helpers.feedback.stages import (
    Calls,
    Item,
    Prompt,
    SynthesisError,
    as_json,
    name_of,
    read_picture,
    read_score,
    read_text,
    seed_of,
)
from helpers.pairs.check import check_pairs
from helpers.pairs.images import RAW_COLUMNS
from helpers.plots.cards import print_wrapped
from helpers.setup.storage import Store, write_whole

FEATURES = Features(
    {name: Value("string") for name in RAW_COLUMNS}
    | {"image": ImageColumn(), "idx": Value("int64")}
)


@dataclass(frozen=True)
class Pipeline:
    """The stages of a run, and the rule that makes pairs (`helpers.feedback.pairing`)."""

    generator: Callable
    image_reward: Callable
    answerers: list[Callable]
    answer_reward: Callable
    pairing: Callable = best_worst

    def __post_init__(self):
        stages = [self.generator, self.image_reward, *self.answerers, self.answer_reward]
        for stage in [*stages, self.pairing]:
            if not callable(stage):
                raise ValueError(f"{stage!r:.80} is no stage: pass something that can be called")
        names = Counter(map(name_of, self.answerers))
        if not names:
            raise ValueError("there is no answerer: pass one at least")
        if twice := [name for name, count in names.items() if count > 1]:
            raise ValueError(f"two answerers are called {twice[0]!r}: give one another `name`")


@dataclass(frozen=True)
class Settings:
    """What a run does with its stages."""

    seed: int = 0
    candidates: int = 4  # pictures drawn for each prompt
    keep: int = 1  # of them, the best ones, are asked about
    least_image_score: float | None = None  # and only those with this score or more
    samples: int = 1  # answers of each answerer to each picture
    filters: Filters = field(default_factory=Filters)
    batch_size: int = 32  # items in one call of a stage
    on_error: str = "stop"  # or "skip": list the item in the card and go on

    def __post_init__(self):
        for name in ("candidates", "keep", "samples", "batch_size"):
            value = getattr(self, name)
            if not (isinstance(value, int) and value >= 1):
                raise ValueError(f"{name} is {value!r}: set it to a whole number, 1 or more")
        if not isinstance(self.seed, int):
            raise ValueError(f"seed is {self.seed!r}: set it to a whole number")
        if self.on_error not in ("stop", "skip"):
            raise ValueError(f"on_error is {self.on_error!r}: set it to 'stop' or 'skip'")


def run(
    prompts: Iterable[Prompt],
    pipeline: Pipeline,
    settings: Settings,
    folder: str | Path,
    name: str = "pairs",
) -> Dataset:
    """Make pairs of prompts, or go on making them; returns a Dataset of raw pairs.

    `folder` keeps what the stages gave, for any number of runs; the pairs and their card are
    written to `folder/name`. Prints what was dropped where; how every pair came to be is in the
    card, and for each pair in its `origin_split`. Raises SynthesisError naming the stage and the
    item of an error (see `Settings.on_error`), or what was dropped if no pair is left; StorageError
    if the folder cannot be written. What was made before is kept.
    """
    prompts = list(prompts)
    _require_prompts(prompts)
    if len(pipeline.answerers) * settings.samples < 2:
        raise SynthesisError(
            "one answerer with one sample gives no two answers to compare: raise samples, or pass "
            "another answerer"
        )
    making = _Run(prompts, pipeline, settings, Store(folder))
    rows, steps = making.rows(), making.steps
    columns = {column: [row[column] for row in rows] for column in RAW_COLUMNS}
    pairs, folder = Dataset.from_dict(columns, features=FEATURES), Path(folder, name)
    buffer = io.BytesIO()
    pq.write_table(pairs.data.table, buffer, row_group_size=100)  # to_parquet has a bar of its own
    card = run_card(name, prompts, pipeline, settings, pairs, steps, making.log)
    items = "".join(f"{json.dumps(line)}\n" for line in making.log)
    write_whole(folder / "pairs.parquet", buffer.getvalue())
    write_whole(folder / "items.jsonl", items.encode())
    write_whole(folder / "funnel.json", json.dumps([asdict(s) for s in steps], indent=1).encode())
    write_whole(folder / "README.md", card.encode())
    print_wrapped(f"{funnel_table(steps)}\n\n{length_of(pairs)}")
    if not rows:
        raise SynthesisError(
            f"no pair is left of {len(prompts)} prompts; the table above, also in {folder}, says "
            "where they went: change the filters, or let the answers differ more"
        )
    return pairs


def _require_prompts(prompts):
    if not prompts:
        raise SynthesisError("there are no prompts: pass a list of Prompt(text, question)")
    for i, prompt in enumerate(prompts):
        if not isinstance(prompt, Prompt):
            raise SynthesisError(
                f"prompt {i} is a {type(prompt).__name__}: make it a Prompt(text, question)"
            )


@dataclass
class _Run:
    """One run under way: each method is a stage, and takes what the one before it returns."""

    prompts: list[Prompt]
    pipeline: Pipeline
    settings: Settings
    store: Store
    steps: list[Step] = field(default_factory=list)
    pictures: dict = field(default_factory=dict)  # key -> {"file", "sha256", "about"}
    image_scores: dict = field(default_factory=dict)  # key -> {"score", "about"}
    log: list[dict] = field(default_factory=list)  # all that the stages gave, in order

    def rows(self):
        """All stages, one after the other: the rows of the pairs that are left."""
        groups = self.score(self.ask(self.rank(self.draw())))
        considered, dropped = self.pipeline.pairing(groups, seed=self.settings.seed)
        self.step("pair", "possible pairs", len(considered) + dropped.total(), dropped)
        pairs, dropped = sound_pairs(considered, self.settings.filters)
        self.step("filter", "pairs", len(considered), dropped)
        made, faults = [self.row(pair) for pair in pairs], {}
        for problem in check_pairs(made) if made else ():
            faults.setdefault(problem.row, problem.code)
        self.step("check_pairs", "pairs", len(made), Counter(faults.values()))
        sound = [row for i, row in enumerate(made) if i not in faults]
        return [row | {"idx": i} for i, row in enumerate(sound)]

    def draw(self):
        """The keys of the pictures that were drawn."""

        def read(result):
            data, about = read_picture(result)
            sha256 = hashlib.sha256(data).hexdigest()
            path = self.store.file(sha256, ".png")  # named by what is in it
            write_whole(path, data)  # before the line that names it
            file = path.relative_to(self.store.folder).as_posix()
            return {"file": file, "sha256": sha256, "about": about}

        numbers = range(self.settings.candidates)
        keys = [f"{i}/{number}" for i in range(len(self.prompts)) for number in numbers]
        self.pictures = self.call("pictures", self.pipeline.generator, keys, read)
        self.step("draw", "pictures", len(keys), Counter(error=len(keys) - len(self.pictures)))
        return list(self.pictures)

    def rank(self, keys):
        """The keys of the best pictures of each prompt; of equally good ones, the first."""
        scores = self.call("image_scores", self.pipeline.image_reward, keys, read_score)
        least, by_prompt, self.image_scores = self.settings.least_image_score, {}, scores
        dropped = Counter(error=len(keys) - len(scores))
        for key, value in scores.items():
            if value["score"] is None:
                dropped["nothing to score"] += 1
            elif least is not None and value["score"] < least:
                dropped[f"score below {least:g}"] += 1
            else:
                by_prompt.setdefault(key.split("/")[0], []).append(key)
        for found in by_prompt.values():
            found.sort(key=lambda key: -scores[key]["score"])  # equally good ones stay in order
            dropped["not among the best"] += len(found[self.settings.keep :])
        self.step("rank", "pictures", len(keys), dropped)
        return [key for found in by_prompt.values() for key in found[: self.settings.keep]]

    def ask(self, pictures):
        """{picture's key: {answer's key: text}}, without what the filters drop."""
        said, asked, dropped = {}, 0, Counter(error=0)
        for stage in self.pipeline.answerers:
            numbers = range(self.settings.samples)
            keys = [f"{picture}/{name_of(stage)}/{k}" for picture in pictures for k in numbers]
            found = self.call("answers", stage, keys, read_text)
            for key, value in found.items():
                said.setdefault(picture_of(key), {})[key] = value["answer"]
            asked += len(keys)
            dropped["error"] += len(keys) - len(found)
        for picture, texts in said.items():
            faults = sound_answers(list(texts.values()), self.settings.filters)
            dropped.update(fault for fault in faults if fault)
            sound = zip(texts, faults, strict=True)
            said[picture] = {key: texts[key] for key, fault in sound if fault is None}
        self.step("answer", "answers", asked, dropped)
        return said

    def score(self, said):
        """The `Scored` answers to each picture, a list of lists, in the order of the pictures."""
        texts = {key: text for answers in said.values() for key, text in answers.items()}
        reward = self.pipeline.answer_reward
        scores = self.call("answer_scores", reward, list(texts), read_score, texts)
        dropped = Counter(error=len(texts) - len(scores))
        groups = {picture: [] for picture in said}
        for key, value in scores.items():
            if value["score"] is None:
                dropped["nothing to score"] += 1
            else:
                scored = Scored(key, texts[key], value["score"], value["about"])
                groups[picture_of(key)].append(scored)
        self.step("score", "answers", len(texts), dropped)
        return list(groups.values())

    def step(self, stage, unit, entered, dropped):
        self.steps.append(Step(stage, unit, entered, dict(+dropped)))

    def call(self, kind, stage, keys, read, texts=None):
        """{key: value} of a stage's items; what was skipped is not in it."""
        items, digests, settings = [], [], self.settings
        for key in keys:
            prompt, picture = self.prompt_of(key), self.pictures.get(picture_of(key), {})
            seed, answer = seed_of(settings.seed, kind, key), texts[key] if texts else None
            about = prompt.about | picture.get("about", {})
            items.append(Item(key, prompt.text, prompt.question, seed, None, answer, about))
            digests.append(picture.get("sha256"))
        how = (self.store, settings.batch_size, settings.on_error)
        found = Calls(kind, stage, read, self.ready, *how).values(items, digests)
        for key, value in found.items():
            self.log.append({"stage": kind, "by": name_of(stage), "item": key, **value})
        return {key: value for key, value in found.items() if "error" not in value}

    def prompt_of(self, key):
        return self.prompts[int(key.split("/")[0])]

    def ready(self, item):
        """With its picture and a copy of what is known of it: a stage may do with it as it likes.

        Pictures are read from their files, so that stages see the same after an interruption.
        """
        item = replace(item, about=copy.deepcopy(item.about))
        if (key := picture_of(item.key)) not in self.pictures:
            return item
        image = Image.open(io.BytesIO(self.image_data(key)))
        image.load()
        return replace(item, image=image)

    def image_data(self, key):
        """The bytes of a picture's file, which must be those that were kept."""
        path = self.store.folder / self.pictures[key]["file"]
        data = path.read_bytes() if path.exists() else b""
        if hashlib.sha256(data).hexdigest() != self.pictures[key]["sha256"]:
            raise SynthesisError(
                f"{path} is gone or was changed: restore it, or start again in another folder"
            )
        return data

    def row(self, pair):
        """A pair in RLAIF-V's columns; `origin_split` tells how it came to be."""
        key = picture_of(pair.chosen.key)
        picture, prompt = self.pictures[key], self.prompt_of(key)
        told = {
            **prompt.about,
            **picture["about"],
            "prompt": prompt.text,
            "picture": {"key": key, "seed": seed_of(self.settings.seed, "pictures", key),
                        "score": self.image_scores[key]["score"]},
        }  # fmt: skip
        for side, answer in (("chosen", pair.chosen), ("rejected", pair.rejected)):
            by = answer.key.split("/", 2)[2].rsplit("/", 1)[0]
            seed = seed_of(self.settings.seed, "answers", answer.key)
            told[side] = {"key": answer.key, "answerer": by, "seed": seed, "score": answer.score}
            if answer.about:
                told[side]["about"] = answer.about
        return {
            "ds_name": "synthesis",
            "image": {"bytes": self.image_data(key), "path": None},
            "question": prompt.question,
            "chosen": pair.chosen.text,
            "rejected": pair.rejected.text,
            "origin_dataset": name_of(self.pipeline.generator),
            "origin_split": as_json(told, "what is known of a pair"),
            "idx": 0,  # numbered when all are there
            "image_path": picture["file"],
        }


def picture_of(key: str) -> str:
    """The key of the picture that an answer is about: "7/2" of "7/2/base/0"."""
    return "/".join(key.split("/")[:2])
