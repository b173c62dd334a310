"""KV through LMCache: a shared place below the workers' pools, and a connector.

One LMCache server per machine keeps objects in shared memory, and beyond it wherever it is told to
(a shared file system, Redis, other servers). `client` speaks to it, `tier` is a `Tier` on top,
`channel` carries a connector's writes. `server` starts one, as the process in `process`, and keeps
it running; `module` is the part of Baton that runs inside of it. The package `lmcache` is an
optional extra: only `client`, `process` and `module` import it, when they are used.
"""
