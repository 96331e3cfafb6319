"""Measuring talking-portrait videos with judges that took no part in making them (dlib's detectors, plain signal measures)."""
