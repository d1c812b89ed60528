#!/usr/bin/env bash
# The GPU gate, in one call of less than nine minutes: tests, then benchmarks. No network, nothing
# installed: it runs from the checkout with the Python that has the frameworks.
#
#   tests/gpu/run.sh [--part tests|measure|step|train]... [--dry] [--output FOLDER] [--minutes N]
#
# Call it again with the same folder and it goes on where it was stopped. PYTHON names another
# interpreter. docs/developers.md says more.
set -uo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
export PYTHONPATH="$root:$root/backends:$root/adapters${PYTHONPATH:+:$PYTHONPATH}"
python=${PYTHON:-$(command -v python3 || command -v python)}
if [ -z "$python" ]; then
  echo "There is no Python on the path; name one: PYTHON=/path/to/python $0" >&2
  exit 2
fi
exec "$python" "$root/tests/gpu/gate.py" "$@"
