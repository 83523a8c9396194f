"""The machine that a run is on: processes, devices, signals, files, the terminal, estimates of cost."""
