"""What a run leaves behind for people and for other programs: metrics, samples, curves, the report, exports."""
