"""SASRec, interactions, metrics and the training loop."""
