"""Training on one device with all samples in its memory, where crops are cut and augmented, too.

    python -m pipeline.pack train.parquet pack.safetensors
    python -m cpm_core.resident.train pack.safetensors my-net.safetensors --minutes 8

No cluster and no loaders: a GPU cuts crops faster than CPUs can send them.
"""

import time

STARTED = time.monotonic()
"""About when the process began, where this is a program's own package: before PyTorch is there."""
