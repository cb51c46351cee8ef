"""From videos to frame features: which frames are taken, decoding, encoders, and the run over many videos."""
