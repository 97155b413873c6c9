"""Objects sealed with AES-256-GCM, frame by frame, so that a range needs its own frames alone."""
