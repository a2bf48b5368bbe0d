"""The stages of dvc.yaml, and the code that connects them to DVC, MLflow and Prefect."""

import upsr as upsr  # before torch, so that its threads wait as `upsr` decides
