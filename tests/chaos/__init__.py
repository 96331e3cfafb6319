"""Real processes, a real Valkey and a real S3 server, where something always goes wrong; `make chaos` runs the long form."""
