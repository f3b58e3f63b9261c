"""DPOTrainer preprocesses each picture twice and encodes it four times a pair.

The collator repeats the pictures for chosen and rejected, the policy's pass encodes both copies,
and the reference's pass encodes both again. With the vision tower frozen the four are equal, to
rounding.
"""

import torch
from tiny import dpo_trainer, verdict

trainer = dpo_trainer(gradient_checkpointing=False)
image_processor = trainer.processing_class.image_processor
preprocess, prepared, encoded = image_processor.preprocess, [], []


def counted(images, *args, **kwargs):
    prepared.extend(picture for row in images for picture in row)
    return preprocess(images, *args, **kwargs)


image_processor.preprocess = counted
tower = trainer.model.get_base_model().model.vision_model
tower.register_forward_hook(lambda module, args, out: encoded.extend(out.last_hidden_state))
trainer.train()

pairs = trainer.args.per_device_train_batch_size
preparations, passes = len(prepared) / pairs, len(encoded) / pairs
first = [features for i, features in enumerate(encoded) if i % pairs == 0]  # of the first picture
equal = all(torch.allclose(first[0], features, rtol=0, atol=1e-5) for features in first)
print(f"the {len(first)} results equal to rounding:", equal)
verdict(
    there=preparations > 1 or passes > 1,
    expected="each picture of a pair is preprocessed once and encoded once",
    happens=f"preprocessed {preparations:g} times, encoded {passes:g} times",
)
