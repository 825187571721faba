"""What every run stands on: randomness, devices, processes, files, the console."""
