#!/bin/sh
# What a worker's container runs: give the server that PREFECT_API_URL names what it lacks (work pool and queues, a limit
# for each GPU seen here, automations, deployments), then serve the pool. Its health is told on 127.0.0.1:8080, for the
# container alone.
#
# Asked to end, the worker lets its flow runs save what they have (flows/worker.py). One that dies leaves them, and the
# container's end would kill them. So this script stays its parent, and sees to those.
set -eu
cd "$(dirname "$0")/.."
export PREFECT_WORKER_WEBSERVER_HOST="${PREFECT_WORKER_WEBSERVER_HOST:-127.0.0.1}"
export PREFECT_FLOWS_HEARTBEAT_FREQUENCY="${PREFECT_FLOWS_HEARTBEAT_FREQUENCY:-30}"
VIBETHINKER_SERVICE="$(uname -n)-$$-$(date +%s)" # flows.processes.MARK, by which the flow runs are found
export VIBETHINKER_SERVICE

leave() {
  trap '' TERM INT
  asked=yes
  kill -TERM "$worker" || :
}

trap 'exit 143' TERM INT
python -c 'import os; from flows import registration; registration.prepare(); registration.deploy(os.environ)'
# In a session of its own, as each flow run is in one, and with SIGINT as elsewhere: a shell has its background ignore it,
# by which alone Prefect's own worker ends.
setsid env --default-signal=INT prefect worker start --pool vibethinker --name "$(uname -n)" --with-healthcheck \
  --install-policy never &
worker=$! asked='' status=0
trap leave TERM INT
wait "$worker" || status=$?
if [ "$asked" ]; then # that was no end of the worker's, but of the waiting
  status=0
  wait "$worker" || status=$?
fi
trap '' TERM INT
python -c 'import os, sys; from flows import processes as p
p.stop_flow_runs(os.environ[p.MARK], {int(sys.argv[1])}, lambda text: print(text, flush=True))' "$worker" || :
exit "$status"
