"""What prefill and decode workers have in common: the engine they stand on, and giving KV away.

`host` starts and stops an engine with its connector, reports and server; `service` is the API that
both serve; `sender` computes prompts for other workers and pushes their KV there. It knows nothing
of clients' requests, of routing, or of Ray.
"""
