"""People label pairs: which of two answers says better what is in the picture.

    session = Session(load_photos().select(range(20)), "Ada", "runs/labels")
    annotate(session)                 # in a notebook: buttons and keys, in JupyterLab and Colab
    session.label("A")                # in a program: what the button does

The answers come blind, their sides shuffled for each annotator and pair. Every choice is on disk
before the next pair shows; a session that was cut off goes on where it stopped. What several people
said becomes a dataset in `helpers.annotate.votes`; `helpers.agreement` says how far they agree.
"""

from helpers.annotate.labels import Label, LabelError, pair_keys, read_labels
from helpers.annotate.session import Card, Session
from helpers.annotate.votes import conflict_cards, conflicts, read_votes, to_preferences, verdicts
from helpers.annotate.widget import annotate

__all__ = ["Card", "Label", "LabelError", "Session", "annotate", "conflict_cards", "conflicts",
    "pair_keys", "read_labels", "read_votes", "to_preferences", "verdicts"]  # fmt: skip
