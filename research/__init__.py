"""Studies: which parts of the method pay, on what, and why."""
