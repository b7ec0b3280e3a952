"""A tracker that writes the metrics of a run as CSV: a line per metric, with step, tag and value.

    marl train toy/climbing --trackers examples/tracker.py:CsvTracker

Then `runs/.../metrics.csv` opens in a spreadsheet or with pandas.
"""

import csv

import marl


class CsvTracker(marl.Tracker):
    """Write metrics.csv into the run's folder."""

    def start(self, folder, step):
        self.file = open(folder / "metrics.csv", "a" if step else "w", newline="")  # noqa: SIM115 - until close
        self.writer = csv.writer(self.file)
        if not step:
            self.writer.writerow(["step", "tag", "value"])

    def log(self, step, values):
        self.writer.writerows([step, tag, value] for tag, value in values.items())

    def close(self):
        self.file.close()
