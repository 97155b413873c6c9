"""`exastore demo`: the whole story on one machine, with real processes and real files."""
