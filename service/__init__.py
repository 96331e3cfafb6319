"""What people and programs touch: command line, media in and out, API, jobs, workers and storage."""
