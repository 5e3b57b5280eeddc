"""Tests of device_farm/."""
