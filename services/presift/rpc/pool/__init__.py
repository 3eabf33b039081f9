"""Replicas: the processes of one service, found, watched, chosen among, asked in turn. Knows no service by name."""
