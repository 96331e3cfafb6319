"""Requests at a steady rate, by locust: the API while a video renders, beside a bare BentoML service on the same machine."""
