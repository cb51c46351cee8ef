"""From stored features to training batches: datasets, the batch loader and the motion stream."""
