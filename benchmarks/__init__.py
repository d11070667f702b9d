"""One command a question; results as JSON and a table."""
