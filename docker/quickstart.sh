#!/bin/sh
# The three stages of the quickstart; on the Ray cluster of RAY_ADDRESS and with the data at TRAFLOW_DATA if they are set.
set -eu
data=${TRAFLOW_DATA:-runs/quickstart/data}
traflow-pipeline generate --config quickstart --out "$data"
traflow-pipeline train --config quickstart --data "$data"
traflow-pipeline evaluate --config quickstart
