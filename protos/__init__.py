"""What crosses a process: messages, shared value types, the one error tree, block hashes, the clock.

Everything may import this package; it imports nothing of Baton, and neither torch nor Ray.
"""
