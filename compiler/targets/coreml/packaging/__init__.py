"""How an app is meant to call Core ML packages, a file for each driver."""
