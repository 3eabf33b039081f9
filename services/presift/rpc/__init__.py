"""All gRPC plumbing, once: server, status table, channel, wire conversions, telemetry. Knows no service by name."""
