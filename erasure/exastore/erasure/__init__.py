"""Codes over GF(2^8): encode, decode, repair plans. Imports no other room."""
