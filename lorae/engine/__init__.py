"""Running stacks: training, predicting, resuming. Loads torch."""
