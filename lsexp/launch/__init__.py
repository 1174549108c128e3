"""Where runs execute: from a config to a finished run folder."""
