"""The pruning law: the pressure sweep, its fit, its outliers, and the saliencies of what survives."""
