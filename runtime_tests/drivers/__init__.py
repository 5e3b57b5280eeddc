"""Drivers: one file for each way in which an app uses a model's components. They speak to a `Session` only.

An artifact's manifest names its driver and holds the driver's constants, so that an app can do the same.
"""
