"""Studies: which parts of the method pay, on what, and why."""

from pipeline import command as command  # before PyTorch, whose idle threads soon sleep then
