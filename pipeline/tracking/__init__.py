"""MLflow: one run an experiment. `python -m pipeline.tracking sync` and `checkout RUN`."""
