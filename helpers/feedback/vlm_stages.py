"""Stages that look at the picture with the VLM of a track.

answerers = [Answerer(one, temperature=0.7) for one in answer_tracks(choose("t4"))]
judges = [SightedReward(track), FactCount(track)]
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from helpers.feedback.hub_stages import ModelStage, Weights
from helpers.feedback.pairing import fact_score
from helpers.feedback.stages import Score
from helpers.setup.tracks import Track, choose
from helpers.vlm.answers import answering, probing, warn_of_cut
from helpers.vlm.load import load_policy

# Two that a T4 holds in float32 one after another (1 and 2 GB), and that differ in what they see.
SMALL_VLMS = ("HuggingFaceTB/SmolVLM-256M-Instruct", "HuggingFaceTB/SmolVLM-500M-Instruct")

TRUTHFUL = (
    "Someone was asked about this picture: {question}\nThe answer was: {answer}\n"
    "Is everything in the answer true of the picture? Answer Yes or No."
)
FACT = "Is this true of the picture? {fact} Answer Yes or No."


def answer_tracks(track: Track, models: Sequence[str] = SMALL_VLMS) -> list[Track]:
    """The track with each of these models in turn, for one `Answerer` each."""
    return [choose(track.name, model=model) for model in models]


@dataclass(eq=False)
class VLMStage(ModelStage):
    """A stage whose weights are the model of a track."""

    track: Track

    remedy = "lower the track's image_edge or max_new_tokens, or load the model in 4 bits"

    @property
    def weights(self):
        return Weights(self.track.model)

    @property
    def batch_size(self):
        return self.track.eval_batch

    @property
    def settings(self):
        precision = "4 bits" if self.track.quantize else self.track.dtype
        return super().settings | {"dtype": precision, "image_edge": self.track.image_edge}

    def load(self):
        return load_policy(self.track)


@dataclass(eq=False)
class Answerer(VLMStage):
    """Answerer: `item.question` about `item.image`, in the chat template of the model.

    Greedy at temperature 0. Else each batch is sampled with a seed made of those of its items: the
    same items give the same answers, if the memory does not force smaller batches. Results are
    `helpers.vlm.answers.Answer`s; cut ones are warned of.
    """

    temperature: float = 0.0

    def __post_init__(self):
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(f"temperature={self.temperature}: 0 is greedy, 1 the model's own")
        self.by_batch = self.temperature > 0

    @property
    def suffix(self):
        return f" at temperature {self.temperature:g}" if self.temperature else ""

    @property
    def settings(self):
        tokens = {"max_new_tokens": self.track.max_new_tokens, "temperature": self.temperature}
        return super().settings | tokens | ({"batch": self.batch_size} if self.temperature else {})

    def results(self, items, model, processor):
        images, questions = zip(*((item.image, item.question) for item in items), strict=True)
        tokens = self.track.max_new_tokens
        job = answering(model, processor, images, questions, tokens, self.temperature)

        def run(rows):
            seeds = np.random.SeedSequence([items[row].seed for row in rows])
            torch.manual_seed(int(seeds.generate_state(1)[0]))
            return job.run(rows)

        return warn_of_cut(self.run(replace(job, run=run)), tokens)


class YesNoReward(VLMStage):
    """An answer reward made of yes/no questions about the picture, in one batch of all of them.

    A kind of it defines `questions(item) -> list` and `score([(question, log odds of yes)])`.
    """

    @property
    def settings(self):
        return super().settings | {"ask": self.ask}

    def results(self, items, model, processor):
        asked = [(row, text) for row, item in enumerate(items) for text in self.questions(item)]
        images, texts = [items[row].image for row, _ in asked], [text for _, text in asked]
        odds = self.run(probing(model, processor, images, texts))
        replies = [[] for _ in items]
        for (row, text), value in zip(asked, odds, strict=True):
            replies[row].append((text, value))
        return [self.score(some) for some in replies]


class SightedReward(YesNoReward):
    """Answer reward that looks: log p(Yes) - log p(No) to "is everything in the answer true?".

    One question for the whole answer, as VQAScore asks about a caption (arXiv 2404.01291); log
    odds rank as the probability does and do not round to 1. Score(None) for an empty answer.
    """

    ask, suffix = TRUTHFUL, " (yes or no)"

    def questions(self, item):
        asked = self.ask.format(question=item.question, answer=item.answer)
        return [asked] if item.answer.strip() else []

    def score(self, replies):
        return Score(replies[0][1] if replies else None)


class FactCount(YesNoReward):
    """Answer reward that looks at every fact: minus the number of facts that the model denies.

    RLAIF-V's rule (arXiv 2405.17220, section 3). There a language model splits the answer into
    facts and words them as questions; here a fact is a sentence. The `about` of a score lists
    them, [question, accepted]. The fewer sentences, the fewer can be denied: see to the length by
    a filter. Score(None) for an answer without a sentence.
    """

    ask, suffix = FACT, " (facts)"

    def questions(self, item):
        return [self.ask.format(fact=sentence) for sentence in sentences(item.answer)]

    def score(self, replies):
        facts = [[text, odds > 0] for text, odds in replies]
        return Score(fact_score(accepted for _, accepted in facts), {"facts": facts})


def sentences(text: str) -> list[str]:
    """The sentences and list points of a text, without bullets; those without a letter are none."""
    pieces = re.split(r"(?<=[.!?;])\s+|\s*\n\s*", text)
    bare = (re.sub(r"^(?:[-*•]|\d+[.)])\s+", "", piece.strip()) for piece in pieces)
    return [piece for piece in bare if re.search(r"[^\W\d_]", piece)]
