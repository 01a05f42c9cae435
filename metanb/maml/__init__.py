"""From tasks to gradients: the network, the inner loop, the regulariser, the outer loop."""
