#!/usr/bin/env python3
"""M4 hourly by statsforecast and by Reveille, one after the other: see statsforecast.sh.

Usage: m4_beside.py REVEILLE SCRATCH DIR [SERIES [MODEL]...]

Scores are the competition's: errors over 48 hours scaled by the mean absolute seasonal difference (24 hours) of the
history (MASE), and the symmetric percentage error; the mean over all series. Seconds are CPU time of the process,
without what is compiled at the first use: each model forecasts one series before the clock starts."""

import csv
import json
import pathlib
import subprocess
import sys
import time
import warnings

import numpy as np
import pandas as pd
from statsforecast import StatsForecast
from statsforecast.models import MSTL, AutoARIMA, AutoETS, SeasonalNaive

DAY, WEEK, HORIZON = 24, 168, 48
FILES = ("Hourly-train.csv", "Hourly-test.csv")


def rows(path):
    with open(path, newline="") as lines:
        head, *body = csv.reader(lines)
    return head, {row[0]: row for row in body}


def take(source, target, count):
    """Writes `count` of the series, evenly spread, to a directory of its own; tells which."""
    train = rows(source / FILES[0])[1]
    names = list(train)
    if count is not None and count < len(names):
        names = [names[i * len(names) // count] for i in range(count)]
    (target / "m4_hourly").mkdir(parents=True, exist_ok=True)
    for file in FILES:
        head, body = rows(source / file)
        with open(target / "m4_hourly" / file, "w", newline="") as lines:
            csv.writer(lines).writerows([head] + [body[name] for name in names])
    return names


def series(path):
    values = rows(path)[1].items()
    return {name: np.array([float(cell) for cell in row[1:] if cell not in ("", "NA")]) for name, row in values}


def frame(train, names):
    parts = [pd.DataFrame({"unique_id": name, "ds": np.arange(len(train[name])), "y": train[name]}) for name in names]
    return pd.concat(parts, ignore_index=True)


def measure(model, train, test):
    """MASE, sMAPE in percent and CPU seconds."""
    first = next(iter(train))
    forecaster = StatsForecast(models=[model], freq=1, n_jobs=1, fallback_model=SeasonalNaive(DAY))
    forecaster.forecast(df=frame(train, [first]), h=HORIZON)
    whole = frame(train, train)
    began = time.process_time()
    found = forecaster.forecast(df=whole, h=HORIZON)
    seconds = time.process_time() - began
    if "unique_id" not in found.columns:
        found = found.reset_index()
    column = [name for name in found.columns if name not in ("unique_id", "ds")][0]
    mase, smape = [], []
    for name, actual in test.items():
        path = found.loc[found.unique_id == name, column].to_numpy()[: len(actual)]
        scale = np.mean(np.abs(train[name][DAY:] - train[name][:-DAY]))
        mase.append(np.mean(np.abs(path - actual)) / scale)
        smape.append(200 * np.mean(np.abs(path - actual) / (np.abs(path) + np.abs(actual))))
    return np.mean(mase), np.mean(smape), seconds


def main():
    reveille, scratch, source = sys.argv[1], pathlib.Path(sys.argv[2]), pathlib.Path(sys.argv[3])
    count = int(sys.argv[4]) if len(sys.argv) > 4 else None
    if count is not None and count < 1:
        sys.exit("statsforecast.sh: SERIES is at least 1")
    warnings.filterwarnings("ignore")
    names = take(source / "m4_hourly", scratch, count)
    train, test = (series(scratch / "m4_hourly" / file) for file in FILES)
    print(f"M4 hourly, {len(names)} series, 48 h ahead, one core    MASE   sMAPE   CPU seconds", flush=True)

    def line(what, mase, smape, seconds):
        print(f"  {what:<48} {mase:6.3f}  {smape:6.2f}  {seconds:12.2f}", flush=True)

    command = [reveille, "--json", "bench", "forecast", "--m4", "--quick", str(scratch)]
    report = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    for row in report["m4_hourly"]:
        line(f"Reveille {row['model']}", row["mase"], row["smape"], row["ms"] * row["series"] / 1000)
    multiple = MSTL(season_length=[DAY, WEEK], trend_forecaster=AutoETS(model="ZZN"))
    models = {
        "SeasonalNaive": SeasonalNaive(DAY),
        "MSTL": multiple,
        "AutoETS": AutoETS(season_length=DAY),
        "AutoARIMA": AutoARIMA(season_length=DAY),
    }
    for what in sys.argv[5:] or models:
        if what not in models:
            sys.exit(f"statsforecast.sh: there is no model {what}; there are {', '.join(models)}")
        line(f"statsforecast {what}", *measure(models[what], train, test))


main()
