"""vmcellar: live, incremental, verified backups of KVM virtual machines.

The engine. It imports no Prefect and can be used from any Python program; `tasks/` and `flows/` put it on Prefect.
"""

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
# Before numpy is loaded: OpenBLAS starts a thread for each core, and each spins for 0.1 s of CPU time in every process
# that starts. Nothing here multiplies large matrices.

__version__ = "0.1.0"
