"""Ways to compute a training step's update on tensors: the plain one, faster ones held to it, and the choice."""
