#!/bin/sh
# What a worker's container runs: give the server that PREFECT_API_URL names what it lacks (work pool, a limit for each
# GPU seen here, deployments), then serve the pool. Its health is told on 127.0.0.1:8080, for the container alone.
set -eu
cd "$(dirname "$0")/.."
export PREFECT_WORKER_WEBSERVER_HOST="${PREFECT_WORKER_WEBSERVER_HOST:-127.0.0.1}"
export PREFECT_FLOWS_HEARTBEAT_FREQUENCY="${PREFECT_FLOWS_HEARTBEAT_FREQUENCY:-30}"
pool=vibethinker

prefect --no-prompt work-pool inspect "$pool" >/dev/null 2>&1 \
    || prefect --no-prompt work-pool create "$pool" --type process
limits='from vibethinker import hardware, holders
print(*map(holders.limit_name, hardware.devices()))'
for limit in $(python -c "$limits"); do
    prefect --no-prompt gcl inspect "$limit" >/dev/null 2>&1 || prefect --no-prompt gcl create "$limit" --limit 1
done
prefect --no-prompt deploy --all
exec prefect worker start --pool "$pool" --name "$(uname -n)" --with-healthcheck --install-policy never
