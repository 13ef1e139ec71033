"""VideoPhy's headline scores from the files that its evaluator writes."""
