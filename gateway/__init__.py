"""The front door: OpenAI HTTP and gRPC, auth, limits, chat templates, tokenizing, streaming,
replay.

Two fronts (HTTP in `http_app`, gRPC in `grpc_service`) call one core (`service`), which talks to
workers through a `Fleet`. Knows neither torch nor Ray.
"""
