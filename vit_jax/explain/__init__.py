"""Looking inside: what a trained model attends to, what it was fed, and how faithful an explanation is."""
