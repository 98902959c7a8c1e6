"""The leaderboard: every run of some result trees side by side, as a static site, tables, and records that travel."""
