"""Bulk enhancement on a cluster: recordings by URI, long ones piece by piece, on Ray."""
