"""Direct Preference Optimization: losses, trainer, checkpoints, publishing."""
