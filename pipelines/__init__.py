"""The stages of dvc.yaml and what joins them to DVC, MLflow and Prefect."""
