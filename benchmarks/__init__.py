"""One command a question; results as JSON and a table."""

from pipeline import command as command  # before PyTorch, whose idle threads soon sleep then
