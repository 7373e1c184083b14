"""Loss implementations side by side: time, memory, and the device's limits.

shapes.py        the sizes that every contestant is given
inputs.py        the tensors that every contestant is given
contestants.py   srsplan's own implementations
peers.py         other people's, where they are installed
predicted.py     the ledger's memory of a contestant
measuring.py     time, memory and value of one contestant
ceilings.py      the device's own limits, and the floor that they set
environment.py   hardware, versions and free memory
limits.py        sizes that are refused before any work
results.py       results as rows, and the file that they go to
bout.py          the whole comparison: what `srsplan bench` calls
"""
