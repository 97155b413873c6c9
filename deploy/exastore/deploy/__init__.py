"""The composition root: command line, local clusters, the demo, and the shell of every process."""
