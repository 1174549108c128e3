"""Training one run: a member's step, the loop around it, evaluation. Knows no folder names.

member.py     a network, its optimiser and its batches; one step
optimizer.py  parameter groups and the schedule of the rate
bank.py       steps recorded as CUDA graphs and replayed, for several members on one GPU
loop.py       steps until the end, looks at the clock, epochs, best val, divergence
history.py    the rows of history.csv
evaluate.py   forward passes over a split
checkpoint.py files to resume from
hardware.py   device, class of CPU, precision
"""

RESULT_VERSION = 2
"""Part of every run's identity: raise it when the same config would give other weights."""
