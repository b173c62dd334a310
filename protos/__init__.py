"""What crosses a process: messages, shared value types, one error tree, block hashes, the clock.

Everything may import this package; it imports nothing of Baton, and neither torch nor Ray.
"""
