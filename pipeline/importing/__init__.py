"""Labelled pictures of any source -> one `samples` table (see `pipeline.schema.samples_table`).

One module per format reads the original files into `Labelled` records (`record`); `near_duplicates`
and `tuning` decide what is kept apart for tuning; `table` writes.
"""

from pipeline.importing.run import Counts, import_samples
from pipeline.importing.settings import ImportSettings

__all__ = ["Counts", "ImportSettings", "import_samples"]
