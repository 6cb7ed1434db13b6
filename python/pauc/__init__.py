"""Train image encoders without labels, and use what they learned.

```python
import pauc

run = pauc.run("recipes/quickstart.ron", set={"train.epochs": 5})
print(run.status, run.metrics)
table = pauc.runs("runs").to_dataframe()     # needs pandas
encoder = pauc.encoder(run)                  # needs PyTorch
```

The package needs NumPy alone. It contains the program `pauc-cli`; the environment variable `PAUC_CLI` names
another one.
"""

from __future__ import annotations

from ._binary import binary
from ._embeddings import Embeddings, embeddings
from ._encoder import encoder
from ._errors import DataError, Interrupted, MissingPackage, PaucError, RecipeError, RunFailed
from ._follow import follow
from ._ron import Component
from ._run import resume, run
from ._runs import Metrics, Run, Runs, metrics, runs

__all__ = [
    "Component",
    "DataError",
    "Embeddings",
    "Interrupted",
    "Metrics",
    "MissingPackage",
    "PaucError",
    "RecipeError",
    "Run",
    "RunFailed",
    "Runs",
    "binary",
    "embeddings",
    "encoder",
    "follow",
    "metrics",
    "resume",
    "run",
    "runs",
]
