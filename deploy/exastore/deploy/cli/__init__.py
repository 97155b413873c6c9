"""The `exastore` command.

Exit codes: 0 done; 1 the operation failed; 2 wrong option, file or name; 3 the cluster is not
running or not fully redundant; 4 this machine cannot take it now (port taken, disk full, not
writable); 130 interrupted.
"""

from exastore.deploy.cli.app import main

__all__ = ["main"]
