"""Samplers of the sampled losses: where negatives come from, and the logQ correction of their logits.

kind.py           the samplers as an enumeration, which the Triton kernels are compiled for
sampling.py       the settings that every sampled loss shares
alias_table.py    draws in proportion to any weights
in_batch.py       draws from the targets of the same batch
mixed.py          draws from both: some of a set's negatives from the batch, the others from the whole catalog
hardest.py        of what a set draws, every token keeps what the model scores highest for it
draw.py           negatives as tensors
log_q.py          the logQ correction
"""
