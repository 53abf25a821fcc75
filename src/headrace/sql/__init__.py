"""The stream SQL engine: Stream Analytics' language on Arrow and NumPy."""
