"""Training on Ray: settings, the driver, the workers' loop, their feed, the log book."""
