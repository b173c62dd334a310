"""The composition root: configuration, the Ray Serve application, the directory and the `baton`
command.

Owns where workers run, who is a member, and how everything is put together. No request and no token
passes through it: gateways and workers talk over gRPC. Everything else of Baton is below it.
"""
