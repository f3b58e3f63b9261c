"""Between the course and the Hugging Face Hub: pairs streamed and kept, results published.

From the ground: `remote` (bytes over a network that breaks), `rawform` (columns), `sources` (which
files), `shards` (their rows), `streaming` (the first pairs of a dataset, kept on disk), `modelcard`
and `publish`.
"""
