"""Pictures and speech in, MP4 out: every file is judged by its content and written in sync to one frame."""
