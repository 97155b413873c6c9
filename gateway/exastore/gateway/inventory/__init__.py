"""Inventories: lists of what is in a bucket, written into another one day by day."""
