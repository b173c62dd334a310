"""What `baton doctor` looks at on a machine, and what it says."""
