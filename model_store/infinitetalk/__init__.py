"""The production engine: the 14B video diffusion transformer with audio, streamed chunk by chunk."""
