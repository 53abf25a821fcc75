"""Errors, time, config, contracts, plugins: what every floor above speaks. Imports nothing of ours from above."""
