"""trl/examples/datasets/rlaif-v.py decodes every JPEG and saves it again, at another quality.

`map` hands the script decoded pictures, and returning one makes `datasets` write it anew. Whoever
trains on the result trains on other pixels than the dataset's authors published.
"""

import io

import numpy as np
from datasets import Dataset, Features, Image, List
from PIL import Image as PILImage
from tiny import verdict


def to_conversational(row):
    """What the script does to a row, as far as pictures go."""
    prompt = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "?"}]}]
    return {"prompt": prompt, "images": [row["image"]]}


def formatted(dataset):
    dataset = dataset.map(to_conversational, remove_columns=dataset.column_names)
    return dataset.cast_column("images", List(Image(decode=False)))[0]["images"][0]["bytes"]


def pixels(data):
    return np.asarray(PILImage.open(io.BytesIO(data)), np.int16)


smooth = PILImage.fromarray(np.random.default_rng(0).integers(0, 256, (12, 16, 3), np.uint8))
grain = np.random.default_rng(1).integers(-12, 13, (480, 640, 3))
photo = np.asarray(smooth.resize((640, 480), PILImage.Resampling.BICUBIC), np.int16) + grain
file = io.BytesIO()
PILImage.fromarray(photo.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=95)
published = file.getvalue()
row = {"image": {"bytes": published, "path": None}}
source = Dataset.from_list([row], features=Features(image=Image()))

written = formatted(source)
untouched = formatted(source.cast_column("image", Image(decode=False)))
difference = np.abs(pixels(published) - pixels(written)).mean()
print(f"published {len(published) // 1000} kB, written {len(written) // 1000} kB,", end=" ")
print(f"mean difference of a pixel {difference:.1f} of 255")
print("with Image(decode=False) first, the published bytes:", untouched == published)
verdict(
    there=written != published,
    expected="formatting the texts leaves the bytes of the pictures alone",
    happens="other bytes" if written != published else "the same bytes",
)
