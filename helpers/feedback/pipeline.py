"""From prompts to preference pairs: draw, rank, answer, score, pair.

    parts = Parts(generator, image_reward, [answerer, another], answer_reward)
    pairs = run(prompts, parts, Settings(candidates=4), "runs/07/pairs")     # raw RLAIF-V columns

Several pictures are drawn for each prompt and an image reward keeps the best; every answerer says
something about each, an answer reward scores what was said, and a rule makes pairs of it. This is
PDS-DPO's pipeline (arXiv 2412.17417) with the filters that it lacks, any rewards and any rule.

The folder keeps every result as soon as it is there (`helpers.feedback.store`): a run that is
killed is gone on with by the same call, does nothing twice and makes the same pairs. What a stage
is stands in `helpers.feedback.items`, what to set in `helpers.feedback.plan`.
"""

import copy
import io
import json
from collections import Counter
from dataclasses import dataclass, field, replace

from datasets import Dataset, Features, Value
from datasets import Image as ImageColumn
from PIL import Image
from tqdm.auto import tqdm

from helpers.feedback.calling import (
    Task,
    Work,
    call_stage,
    read_picture,
    read_score,
    read_text,
)
from helpers.feedback.card import Step, funnel_table, write_results
from helpers.feedback.filters import length_of, sound_answers, sound_pairs
from helpers.feedback.items import Item, Prompt, SynthesisError, as_json, name_of
from helpers.feedback.pairing import Scored
from helpers.feedback.plan import Parts, Settings, run_identity, seed_of
from helpers.feedback.store import image_data, open_run, read_errors, take_over
from helpers.pairs.check import check_pairs
from helpers.pairs.images import RAW_COLUMNS
from helpers.plots.cards import print_wrapped

FEATURES = Features(
    {name: Value("string") for name in RAW_COLUMNS}
    | {"image": ImageColumn(), "idx": Value("int64")}
)


def run(prompts, parts, settings, folder, reuse=None):
    """Make pairs of `Prompt`s in `folder`, or go on making them; returns a Dataset of raw pairs.

    `reuse`: the folder of another run. What it made in the same way is taken over, so that two
    answer rewards can judge the same answers, or two rules pair them by the same scores.

    Prints what was dropped where; that and how every pair came to be is in the folder's README.md,
    and for each pair in its `origin_split`. Raises SynthesisError naming the stage and the item of
    an error (see `Settings.on_error`), the settings in which the run in the folder differs, or what
    was dropped if no pair is left. What was made before is kept.
    """
    prompts = list(prompts)
    identity = run_identity(prompts, parts, settings)
    folder = open_run(folder, identity)
    if reuse is not None:
        take_over(reuse, folder, identity)
    with tqdm(desc="make pairs") as bar:
        work = Work(folder, settings.batch_size, settings.on_error, bar)
        making = Making(prompts, parts, settings, work)
        made = making.pairs()
    rows, dropped = _sound_rows([making.row(pair) for pair in made])
    steps = [*making.steps, Step("check_pairs", "pairs", len(made), dropped)]
    columns = {name: [row[name] for row in rows] for name in RAW_COLUMNS}
    pairs = Dataset.from_dict(columns, features=FEATURES)
    write_results(folder, pairs, identity, steps, making.errors)
    print_wrapped(f"{funnel_table(steps)}\n\n{length_of(pairs)}")
    if not rows:
        raise SynthesisError(
            f"no pair is left of {len(prompts)} prompts; the table above, also in {folder}, says "
            "where they went: change the filters, or let the answers differ more"
        )
    return pairs


@dataclass
class Making:
    """One run under way; the records are those of `helpers.feedback.store`, by their keys."""

    prompts: list[Prompt]
    parts: Parts
    settings: Settings
    work: Work
    steps: list[Step] = field(default_factory=list)  # what went in and out, so far
    pictures: dict = field(default_factory=dict)
    image_scores: dict = field(default_factory=dict)
    errors: dict = field(default_factory=dict)  # (stage, key) -> sentence, of what was skipped

    def pairs(self):
        """All stages, one after the other: a list of `Pair`."""
        groups = self.score(self.ask(self.rank(self.draw())))
        considered, dropped = self.parts.pairing(groups, seed=self.settings.seed)
        self._step("pair", "possible pairs", len(considered) + dropped.total(), dropped)
        pairs, dropped = sound_pairs(considered, self.settings.filters)
        self._step("filter", "pairs", len(considered), dropped)
        return pairs

    def draw(self):
        """The keys of the pictures that were drawn."""
        numbers = range(self.settings.candidates)
        keys = [f"{i}/{number}" for i in range(len(self.prompts)) for number in numbers]
        read = read_picture(self.work.folder, self.settings.image_format, self.settings.size)
        later = len(keys) + self._answers_to_come(len(self.prompts))
        self.pictures = self._call("pictures", self.parts.generator, keys, read, later)
        self._step("draw", "pictures", len(keys), Counter(error=len(keys) - len(self.pictures)))
        return list(self.pictures)

    def rank(self, keys):
        """The keys of the best pictures of each prompt; of equally good ones, the first."""
        later = self._answers_to_come(len(self.prompts))
        scores = self._call("image_scores", self.parts.image_reward, keys, read_score, later)
        self.image_scores, by_prompt = scores, {}
        dropped = Counter(error=len(keys) - len(scores))
        for key, record in scores.items():
            if fault := self._too_poor(record["score"]):
                dropped[fault] += 1
            else:
                by_prompt.setdefault(key.split("/")[0], []).append(key)
        for found in by_prompt.values():
            found.sort(key=lambda key: -scores[key]["score"])  # equally good ones stay in order
            dropped["not among the best"] += len(found[self.settings.keep :])
        self._step("rank", "pictures", len(keys), dropped)
        return [key for found in by_prompt.values() for key in found[: self.settings.keep]]

    def ask(self, pictures):
        """{picture's key: {answer's key: text}}, without what the filters drop."""
        to_come, said = self._answers_to_come(len(pictures)), {}
        for number, stage in enumerate(self.parts.answerers):
            keys = [
                f"{picture}/{name_of(stage)}/{k}"
                for picture in pictures
                for k in range(self.settings.samples)
            ]
            to_come -= len(keys)
            known = self._call("answers", stage, keys, read_text, to_come, part=f"{number}-")
            for key, record in known.items():
                said.setdefault(picture_of(key), {})[key] = record["answer"]
        asked = self._answers_to_come(len(pictures)) // 2
        dropped = Counter(error=asked - sum(map(len, said.values())))
        for picture, texts in said.items():
            faults = sound_answers(list(texts.values()), self.settings.filters)
            dropped.update(fault for fault in faults if fault)
            sound = zip(texts, faults, strict=True)
            said[picture] = {key: texts[key] for key, fault in sound if fault is None}
        self._step("answer", "answers", asked, dropped)
        return said

    def score(self, said):
        """The `Scored` answers to each picture, a list of lists, in the order of the pictures."""
        texts = {key: text for answers in said.values() for key, text in answers.items()}
        reward = self.parts.answer_reward
        scores = self._call("answer_scores", reward, list(texts), read_score, 0, texts=texts)
        dropped = Counter(error=len(texts) - len(scores))
        dropped["nothing to score"] = sum(r["score"] is None for r in scores.values())
        self._step("score", "answers", len(texts), dropped)
        groups = {picture: [] for picture in said}
        for key, record in scores.items():
            if record["score"] is not None:
                scored = Scored(key, texts[key], record["score"], json.loads(record["about"]))
                groups[picture_of(key)].append(scored)
        return list(groups.values())

    def _too_poor(self, score):
        least = self.settings.least_image_score
        if score is None:
            return "nothing to score"
        return f"score below {least:g}" if least is not None and score < least else None

    def _answers_to_come(self, pictures):
        """Answers and their scores, if every one of so many groups comes to that."""
        return 2 * pictures * self.settings.samples * len(self.parts.answerers)

    def _step(self, stage, unit, entered, dropped):
        self.steps.append(Step(stage, unit, entered, dict(+dropped)))

    def _call(self, kind, stage, keys, read, later, part="", texts=None):
        """{key: record}; `later`: how much the bar is to expect of the stages after this one."""
        self.work.bar.total = self.work.bar.n + len(keys) + later
        items = [self._item(kind, key, (texts or {}).get(key)) for key in keys]
        done = call_stage(Task(kind, stage, items, read, self._ready, part), self.work)
        failed, skipped = read_errors(self.work.folder), [key for key in keys if key not in done]
        self.errors |= {(kind, key): failed[kind, key] for key in skipped}
        return done

    def _item(self, kind, key, answer):
        prompt = self.prompts[int(key.split("/")[0])]
        seed = seed_of(self.settings.seed, kind, key)
        return Item(key, prompt.text, prompt.question, seed, answer=answer)

    def _ready(self, item):
        """With its picture and a copy of what is known of it: a stage may do with it as it likes.

        Pictures are read from their files, so that stages see the same after an interruption.
        """
        about = copy.deepcopy(self.prompts[int(item.key.split("/")[0])].about)
        picture = self.pictures.get(picture_of(item.key))
        if picture is None:
            return replace(item, about=about)
        image = Image.open(io.BytesIO(image_data(self.work.folder, picture)))
        image.load()
        return replace(item, image=image, about=about | json.loads(picture["about"]))

    # --- the results ---------------------------------------------------------------------

    def row(self, pair):
        """A pair in RLAIF-V's columns; `origin_split` tells how it came to be."""
        key = picture_of(pair.chosen.key)
        picture, prompt = self.pictures[key], self.prompts[int(key.split("/")[0])]
        told = {
            **prompt.about,
            **json.loads(picture["about"]),
            "prompt": prompt.text,
            "picture": {"key": key, "seed": seed_of(self.settings.seed, "pictures", key),
                        "score": self.image_scores[key]["score"]},
            "chosen": self._told(pair.chosen),
            "rejected": self._told(pair.rejected),
        }  # fmt: skip
        return {
            "ds_name": "synthesis",
            "image": {"bytes": image_data(self.work.folder, picture), "path": None},
            "question": prompt.question,
            "chosen": pair.chosen.text,
            "rejected": pair.rejected.text,
            "origin_dataset": name_of(self.parts.generator),
            "origin_split": as_json(told, "what is known of a pair"),
            "idx": 0,  # numbered when all are there
            "image_path": picture["file"],
        }

    def _told(self, answer):
        seed = seed_of(self.settings.seed, "answers", answer.key)
        by = answer.key.split("/", 2)[2].rsplit("/", 1)[0]
        told = {"key": answer.key, "answerer": by, "seed": seed, "score": answer.score}
        return told | ({"about": answer.about} if answer.about else {})


def picture_of(key):
    """The key of the picture that an answer is about: "7/2" of "7/2/base/0"."""
    return "/".join(key.split("/")[:2])


def _sound_rows(rows):
    """(rows without those that `check_pairs` finds fault with, how often for what)."""
    faults = {}
    for problem in check_pairs(rows) if rows else ():
        faults.setdefault(problem.row, problem.code)
    kept = [row for i, row in enumerate(rows) if i not in faults]
    return [row | {"idx": i} for i, row in enumerate(kept)], dict(Counter(faults.values()))
