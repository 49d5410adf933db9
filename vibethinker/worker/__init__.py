"""Runs each step in a process of its own; the only place where a trainer starts.

    flow process ── host.Host ──stdin/stdout, JSON lines──▶ server ──▶ zygote ──fork──▶ child (one step)
                                                              └──────── or a fresh process ──▶ child

The server (`python -m vibethinker.worker serve`) imports nothing heavy. On Linux without a GPU it keeps a zygote that
has imported torch and the trainers and forks a child a step; with a GPU, which doesn't survive a fork, a child is a
fresh process. The interpreter is the setting `worker.python`, so that trainers need no Prefect in their environment.

When the flow process dies, however it dies, the server reads end-of-file, kills every child's process group and ends;
zygote and forked children also ask the kernel to be killed with their parent. Left out: remote hosts; a runner that
places tasks on other machines starts a host there.

Requests: {"op": "run", "id", "request": {...}}, {"op": "stop", "id"}. Events: {"id", "sequence", "time", "event", ...}
with event one of progress, metrics, warning, end; an end carries `kind`, see `vibethinker.errors`, and `message` or
`result`.
"""
