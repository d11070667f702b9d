"""MLflow: one run an experiment.

`python -m pipeline.tracking sync`, `checkout RUN`, `register RUN NAME`.
"""
