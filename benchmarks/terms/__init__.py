"""Each loss term by itself: what it costs where the teacher is remembered, and how true its memory is."""
