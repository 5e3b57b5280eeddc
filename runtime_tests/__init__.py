"""Runtime tests: an artifact runs in its real runtime, in a child process, against its own golden vectors.

Nothing of the compiler is imported here, so the same test runs wherever the artifact and its runtime are.
"""
