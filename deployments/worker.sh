#!/bin/sh
# What a worker's container runs: give the server that PREFECT_API_URL names what it lacks (work pool and queues, a limit
# for each GPU seen here, automations, deployments), then serve the pool. Its health is told on 127.0.0.1:8080, for the
# container alone.
set -eu
cd "$(dirname "$0")/.."
export PREFECT_WORKER_WEBSERVER_HOST="${PREFECT_WORKER_WEBSERVER_HOST:-127.0.0.1}"
export PREFECT_FLOWS_HEARTBEAT_FREQUENCY="${PREFECT_FLOWS_HEARTBEAT_FREQUENCY:-30}"
python -c 'import os; from flows import registration; registration.prepare(); registration.deploy(os.environ)'
exec prefect worker start --pool vibethinker --name "$(uname -n)" --with-healthcheck --install-policy never
