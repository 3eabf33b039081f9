"""A pool of replicas, whatever their service: discovery, health, balancing, circuit breakers, failover, hedging."""
