"""rewards/accuracies starts at 0.0: policy and reference are equal, and a tie counts as wrong.

A reader takes 0.0 for a model that prefers every rejected answer, and a swapped dataset, which
also shows 0.0, cannot be told from a healthy first step.
"""

from tiny import dpo_trainer, pairs, verdict

metrics = dpo_trainer().evaluate(pairs())
accuracy, margin = metrics["eval_rewards/accuracies"], metrics["eval_rewards/margins"]
print(f"before the first step: rewards/margins {margin}, loss {metrics['eval_loss']:.4f}")
verdict(
    there=margin == 0 and accuracy == 0,
    expected="rewards/accuracies 0.5 where chosen and rejected tie",
    happens=f"rewards/accuracies {accuracy}",
)
