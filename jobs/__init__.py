"""How a sweep runs: the command line, the hosts (this process, Ray Tune), MLflow."""
