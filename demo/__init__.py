"""The tour of Debut on real music: data that may ship, simulated listeners, and the script behind `make demo`."""
