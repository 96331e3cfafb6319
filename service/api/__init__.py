"""The HTTP API: thin routes over ``service.jobs``; errors are shaped in one place."""
