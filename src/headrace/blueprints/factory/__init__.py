"""Five factories: machines, their tools, predictive maintenance and anomalies."""
