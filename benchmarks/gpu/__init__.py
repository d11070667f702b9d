"""One command on one card: tests, kernel, steps, resume, loading, scores, switches, the demo."""
