"""The stages of dvc.yaml, and the code that connects them to DVC, MLflow and Prefect."""
