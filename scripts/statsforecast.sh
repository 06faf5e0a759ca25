#!/bin/sh
# Reveille's forecasts beside those of statsforecast (PyPI) on M4 hourly, in one run on one core: MASE, sMAPE, seconds.
#
#   scripts/statsforecast.sh DIR [SERIES [MODEL]...]     DIR as for `reveille bench forecast`; SERIES of it, evenly spread
#
# Without SERIES all are taken; AutoARIMA alone needs up to a minute for each of them. MODEL is SeasonalNaive, MSTL,
# AutoETS or AutoARIMA; without one all of them. A virtual environment is made once below target/; `make test` does not
# need it.
set -eu

[ $# -ge 1 ] || {
    echo "usage: scripts/statsforecast.sh DIR [SERIES [MODEL]...]" >&2
    exit 2
}
dir=$(cd "$1" && pwd)
shift
cd "$(dirname "$0")/.."
venv=target/statsforecast/venv
if [ ! -e "$venv/complete" ]; then
    command -v python3 >/dev/null || {
        echo "statsforecast.sh: python3 is missing: apt-get install python3-venv" >&2
        exit 1
    }
    python3 -m venv "$venv"
    "$venv/bin/pip" install --quiet --disable-pip-version-check 'statsforecast==2.0.*'
    touch "$venv/complete"
fi
cargo build --release --locked --quiet --bin reveille
# One thread of every library that would take more, and one core for whatever still does.
export OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 MKL_NUM_THREADS=1 NUMBA_NUM_THREADS=1
export PYTHONDONTWRITEBYTECODE=1
exec taskset --cpu-list 0 "$venv/bin/python" scripts/m4_beside.py target/release/reveille \
    target/statsforecast/data "$dir" "$@"
