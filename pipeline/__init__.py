"""One file a stage, named as in dvc.yaml; the only code that knows DVC and MLflow."""
