"""Transactional ordered key-value engines under one small contract (`contract.py`)."""
