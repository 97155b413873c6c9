"""The simulator: years of a cluster, event by event, decided by the cluster's own code."""
