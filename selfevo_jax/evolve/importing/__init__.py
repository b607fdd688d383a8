"""Files that the five published systems wrote, read into records; ReflectEvo's also written."""
