"""Search for hyperparameters: spaces, proposals of points, and methods that distribute a budget of epochs."""
