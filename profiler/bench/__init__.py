"""Loss implementations side by side: time, memory, and the device's limits. Runs with torch and numpy alone.

shapes.py        the sizes that every contestant is given
logits.py        the logits that every contestant is given
inputs.py        the tensors that they become
contestants.py   srsplan's own implementations: a new one is one entry of a list
peers.py         other people's, where they are installed
predicted.py     the ledger's memory of a contestant
timing.py        the time of a call, without the host's part of it
measuring.py     time, memory and value of one contestant
kernel_times.py  the time of each of its kernels
sweep.py         the time of each launch that its kernels may have
ceilings.py      the device's own limits, and the floor that they set
environment.py   hardware, versions and free memory
limits.py        sizes that are refused before any work
request.py       the options, and what they mean
results.py       results as rows, and the file that they go to
lines.py         results as lines for people
bout.py          the whole comparison: what `srsplan bench` calls
__main__.py      the same as a command of its own: python -m srsplan.profiler.bench
"""
