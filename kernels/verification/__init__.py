"""Are the Triton kernels right on this card, and are they faster? Found out once, and remembered.

subject.py      what is checked, on which card: the key of a verdict
cases.py        small inputs that reach every part of the kernels
reference.py    the losses from their definitions, in the type of their tensors: float64 is the truth
compare.py      a case's loss, gradients, repeatability and memory, and what is wrong with them
race.py         the kernel's time and the chunked form's, on a run's own shape
check.py        all cases, then the race
verdict.py      what was found, which implementation it speaks for, and in which words
remembered.py   verdicts in a file
"""
