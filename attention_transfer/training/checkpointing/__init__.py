"""What a run saves, under which names, and how it resumes."""
