"""Stages that look at the picture with a VLM of the course's own loader.

    track = choose("t4")
    answers = Answerer(track, temperature=0.7)(items)        # texts
    SightedReward(track)(answered)                           # log odds that all of it is true
    FactCount(track)(answered)                               # minus the sentences that are denied

Each holds the model of its track, from its first call to `release()` (`helpers.feedback.part`).
"""

import re
from dataclasses import dataclass, replace

import numpy as np
import torch

from helpers.feedback.items import Score
from helpers.feedback.pairing import fact_score
from helpers.feedback.part import Part, public, require, short
from helpers.setup.tracks import Track, choose
from helpers.vlm.answers import answering, probing, warn_of_cut
from helpers.vlm.load import load_policy

TRUTHFUL = (
    "Someone was asked about this picture: {question}\nThe answer was: {answer}\n"
    "Is everything in the answer true of the picture? Answer Yes or No."
)
FACT = "Is this true of the picture? {fact} Answer Yes or No."

# Two that a T4 holds in float32 one after another (1 and 2 GB), and that differ in what they see.
SMALL_VLMS = ("HuggingFaceTB/SmolVLM-256M-Instruct", "HuggingFaceTB/SmolVLM-500M-Instruct")


def answer_tracks(track, models=SMALL_VLMS):
    """The track with each of these models in turn, for one `Answerer` each."""
    return [choose(track.name, model=model) for model in models]


@dataclass(eq=False)
class Looker(Part):
    """A part whose weights are the model of a track."""

    track: Track

    remedy = "lower the track's image_edge or max_new_tokens, or load the model in 4 bits"

    @property
    def batch_size(self):
        return self.track.eval_batch

    @property
    def name(self):
        return short(self.track.model)

    @property
    def settings(self):
        precision = "4 bits" if self.track.quantize else self.track.dtype
        edge = self.track.image_edge
        return {"weights": public(self.track.model), "dtype": precision, "image_edge": edge}

    def load(self):
        return load_policy(self.track)


@dataclass(eq=False)
class Answerer(Looker):
    """Answerer: `item.question` about `item.image`, in the chat template of the model.

    Greedy at temperature 0. Else each batch is sampled with a seed made of those of its items: the
    same items give the same answers, if the memory does not force smaller batches. Results are
    `helpers.vlm.answers.Answer`s; cut ones are warned of.
    """

    temperature: float = 0.0

    def __post_init__(self):
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(f"temperature={self.temperature}: 0 is greedy, 1 the model's own")

    @property
    def name(self):
        how = f" at temperature {self.temperature:g}" if self.temperature else ""
        return super().name + how

    @property
    def settings(self):
        tokens = {"max_new_tokens": self.track.max_new_tokens, "temperature": self.temperature}
        return super().settings | tokens | ({"batch": self.batch_size} if self.temperature else {})

    def results(self, items, model, processor):
        require(items, "question", "image")
        images, questions = [item.image for item in items], [item.question for item in items]
        tokens = self.track.max_new_tokens
        job = answering(model, processor, images, questions, tokens, self.temperature)

        def run(rows):
            torch.manual_seed(_one_seed(items[row].seed for row in rows))
            return job.run(rows)

        return warn_of_cut(self.run(replace(job, run=run), items), tokens)


def _one_seed(seeds):
    return int(np.random.SeedSequence(list(seeds)).generate_state(1)[0])


class Asker(Looker):
    """An answer reward made of yes/no questions about the picture, in one batch of all of them.

    A kind of it defines `questions(item) -> list` and `score([(question, log odds of yes)])`.
    """

    def results(self, items, model, processor):
        require(items, "question", "image", "answer")
        asked = [(row, text) for row, item in enumerate(items) for text in self.questions(item)]
        about = [items[row] for row, _ in asked]
        images, texts = [item.image for item in about], [text for _, text in asked]
        job = probing(model, processor, images, texts)
        found = [[] for _ in items]
        for (row, text), odds in zip(asked, self.run(job, about), strict=True):
            found[row].append((text, odds))
        return [self.score(replies) for replies in found]


@dataclass(eq=False)
class SightedReward(Asker):
    """Answer reward that looks: log p(Yes) - log p(No) to "is everything in the answer true?".

    One question for the whole answer, as VQAScore asks about a caption (arXiv 2404.01291); log
    odds rank as the probability does and do not round to 1. Score(None) for an empty answer.
    """

    ask: str = TRUTHFUL

    @property
    def name(self):
        return f"{super().name} (yes or no)"

    @property
    def settings(self):
        return super().settings | {"ask": self.ask}

    def questions(self, item):
        asked = self.ask.format(question=item.question, answer=item.answer)
        return [asked] if item.answer.strip() else []

    def score(self, replies):
        return Score(replies[0][1] if replies else None)


@dataclass(eq=False)
class FactCount(Asker):
    """Answer reward that looks at every fact: minus the number of facts that the model denies.

    RLAIF-V's rule (arXiv 2405.17220, section 3). There a language model splits the answer into
    facts and words them as questions; here a fact is a sentence. The `about` of a score lists
    them, [question, accepted]. The fewer sentences, the fewer can be denied: see to the length by
    a filter. Score(None) for an answer without a sentence.
    """

    ask: str = FACT

    @property
    def name(self):
        return f"{super().name} (facts)"

    @property
    def settings(self):
        return super().settings | {"ask": self.ask}

    def questions(self, item):
        return [self.ask.format(fact=sentence) for sentence in sentences(item.answer)]

    def score(self, replies):
        facts = [[text, odds > 0] for text, odds in replies]
        return Score(fact_score(accepted for _, accepted in facts), {"facts": facts})


def sentences(text):
    """The sentences and list points of a text, without bullets; those without a letter are none."""
    parts = re.split(r"(?<=[.!?;])\s+|\s*\n\s*", text)
    bare = (re.sub(r"^(?:[-*•]|\d+[.)])\s+", "", part.strip()) for part in parts)
    return [part for part in bare if re.search(r"[^\W\d_]", part)]
