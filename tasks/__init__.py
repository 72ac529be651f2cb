"""Celery: tasks of a few lines, beat's schedule, publishing, heartbeats, metrics, and Flower's start.

A task calls one function of `coordinator` and publishes what follows from it. No rules.
May import: coordinator, models, config.
"""
