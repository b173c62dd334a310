"""The load generator behind `baton bench serve`: requests, a light client, statistics, a report."""
