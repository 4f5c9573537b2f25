"""The agent of a host: runs the schedulers that its configuration enables, says how they do, and puts everything back.

`config` reads the file, `agent` puts the parts together and lives as long as they do, `http` answers, `metrics` says it
in numbers, `systemd` talks to the service manager.
"""
