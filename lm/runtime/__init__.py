"""The machine of a run: processes, devices, signals, files, the terminal, and cost estimates."""
