"""The basis of every run: randomness, devices, processes, files, downloads, the console."""
