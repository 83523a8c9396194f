"""The results of a run: metrics, samples, curves and the report."""
