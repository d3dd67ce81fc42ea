#!/bin/sh
# The three stages of the quickstart; on the Ray cluster of RAY_ADDRESS if it is set.
set -eu
traflow-pipeline generate --config quickstart
traflow-pipeline train --config quickstart
traflow-pipeline evaluate --config quickstart
