"""vmcellar: live, incremental, verified backups of KVM virtual machines.

The engine. It imports no Prefect and can be used from any Python program; `tasks/` and `flows/` put it on Prefect.
"""

__version__ = "0.1.0"
