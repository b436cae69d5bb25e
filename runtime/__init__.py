"""What every process needs before it can work: settings, clock, queues, logs. Imports nothing of ours."""
