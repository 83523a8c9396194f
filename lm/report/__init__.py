"""The results of a run: metrics, samples and curves, the report, exports for other programs."""
