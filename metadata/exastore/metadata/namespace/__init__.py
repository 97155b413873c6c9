"""Buckets, objects, extents and multipart uploads as functions over a transaction."""
