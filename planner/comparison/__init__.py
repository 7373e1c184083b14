"""Comparisons: configurations x data x seeds, trained in processes of their own, and what may be said about them.

document.py         the file that a user writes, strictly checked
configurations.py   from its lists to configurations with names
output.py           the folder: whose it is, where each run lies
scheduling.py       which run starts next within a card's memory: a pure function
processes.py        one run as a process with a log
running.py          all of them, until nothing is left to start
results.py          what finished runs left behind, as one table
statistics.py       means, paired differences, Friedman and Nemenyi
findings.py         all of that for one comparison, and in sentences what cannot be said
tables.py           runs.csv, summary.csv, summary.md, tests.csv
diagram.py          critical_difference.svg
"""
