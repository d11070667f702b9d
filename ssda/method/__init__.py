"""What the paper is about: one file for each box of its framework."""
